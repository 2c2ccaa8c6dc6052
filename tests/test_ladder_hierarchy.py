import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import ladders, laws
from vae_jax import layer_forms, posteriors, priors, vae
from vae_jax.evaluation import ablation
from vae_jax.inference import full_vb

IMAGE = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
BITS = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
SLOW = pytest.mark.slow
MODELS = {  # and x, the groups of each layer
    "normals": (
        lambda: ladders.normals(layer_forms.merged_normal()),
        IMAGE,
        (3, 2, 1),
    ),
    "bits": (ladders.bits, BITS, (2, 2, 1)),
    "maps": (ladders.maps, IMAGE, (12, 2)),
    "one layer": (
        lambda: ladders.normals(layer_forms.plain_normal(), sizes=(2,)),
        IMAGE,
        (2,),
    ),
    "top of one group": (
        lambda: ladders.normals(
            layer_forms.plain_normal(),
            sizes=(3, 2),
            posterior=posteriors.full_normal(2),
            prior=priors.normal_mixture(2, 2),
        ),
        IMAGE,
        (3, 1),
    ),
    "holes left out": (
        lambda: vae.masked(ladders.normals(layer_forms.residual_normal())),
        np.where(IMAGE > 0.0, IMAGE, np.nan),
        (3, 2, 1),
    ),
}
SLOW_MODELS = [
    name if name == "normals" else pytest.param(name, marks=SLOW) for name in MODELS
]


@functools.cache
def _made(name):
    make, x, counts = MODELS[name]
    model, x = make(), jnp.asarray(x)
    params = laws.jiggled(jax.jit(model.init)(jax.random.key(0)))
    h = jax.jit(model.recognition.encode)(params, x)
    return model, _of(model), params, x, h, counts


def _of(model):
    assert model.hierarchy is not None
    return model.hierarchy


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_MODELS)
def test_what_mixes_nothing_draws_what_q_or_the_prior_draws(x64, name):
    model, hierarchy, params, x, h, counts = _made(name)
    assert hierarchy.groups(params, h) == counts
    mix, key, num = jax.jit(hierarchy.mix), jax.random.key(1), sum(counts)
    z, kl = mix(jax.random.clone(key), params, h, jnp.ones(num, bool))
    sampled = jax.jit(model.draw)(jax.random.clone(key), params, x, h)
    np.testing.assert_allclose(z, sampled.z, rtol=1e-12)
    by_layer = [part.sum() for part in jnp.split(kl, np.cumsum(counts)[:-1])]
    of_draw = sampled.kl if len(counts) > 1 else [sampled.kl.sum()]
    np.testing.assert_allclose(by_layer, of_draw, rtol=1e-9, atol=1e-12)
    z, _ = mix(jax.random.clone(key), params, h, jnp.zeros(num, bool))
    dreamt = jax.jit(model.generative.sample_prior)(key, params)
    np.testing.assert_allclose(z, dreamt, rtol=1e-12)
    assert model.lower == counts[:-1]


@pytest.mark.parametrize("name", ["normals", "maps"])
def test_each_kl_of_a_mix_is_of_its_entry_of_z(x64, name):
    model, hierarchy, params, _, h, counts = _made(name)
    mix, transport = jax.jit(hierarchy.mix), model.generative.transport
    z, kl = mix(jax.random.key(1), params, h, jnp.ones(sum(counts), bool))
    noise = jax.jit(transport.inverse)(params, z)
    _, layers = jax.jit(hierarchy.densities)(params, h, noise)
    expected = []
    for (mean_p, log_p), (mean_q, log_q) in layers:
        square = np.exp(2 * log_q) + (mean_q - mean_p) ** 2
        each = log_p - log_q + 0.5 * (square * np.exp(-2 * log_p) - 1.0)
        expected.extend(np.ravel(each))
    np.testing.assert_allclose(kl[: len(expected)], expected, rtol=1e-9)
    assert len(set(expected)) == len(expected) == sum(model.lower)


def test_the_kl_of_each_map_is_that_of_its_pixels():
    of_maps = ablation.of_maps(ladders.maps(), np.arange(14.0))
    assert of_maps[1] is None
    np.testing.assert_array_equal(of_maps[0], [30.0, 36.0])  # even and odd entries
    vectors = ladders.normals(layer_forms.merged_normal())
    assert ablation.of_maps(vectors, np.ones(6)) == (None, None, None)


@pytest.mark.slow
def test_a_mix_draws_each_group_from_its_source_given_those_above(x64):
    _, hierarchy, params, _, h, _ = _made("normals")
    mix, key = jax.jit(hierarchy.mix), jax.random.key(1)
    whole = np.array([True] * 6)
    (from_q, kl), (one_off, kl_off), (top_off, kl_top_off) = (
        mix(jax.random.clone(key), params, h, jnp.asarray(mask))
        for mask in (whole, np.arange(6) != 1, np.arange(6) != 5)
    )
    np.testing.assert_array_equal(np.asarray(one_off != from_q), np.arange(6) == 1)
    np.testing.assert_array_equal(kl_off, kl)  # nothing lies below z_1
    assert (np.asarray(top_off) != np.asarray(from_q)).all()
    np.testing.assert_array_equal(np.asarray(kl_top_off != kl), np.arange(6) != 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_MODELS)
def test_layers_below_those_that_stay_are_drawn_from_the_prior(x64, name):
    model, hierarchy, params, _, _, counts = _made(name)
    redraw, key = hierarchy.redraw, jax.random.key(1)
    prior = jax.jit(model.generative.sample_prior)
    z, depth = prior(jax.random.key(2), params), len(counts)
    redrawn = jax.jit(
        lambda key, z: [
            redraw(jax.random.clone(key), params, z, num, None)
            for num in range(depth + 1)
        ]
    )(key, z)
    np.testing.assert_array_equal(redrawn[0], z)
    np.testing.assert_allclose(redrawn[depth], prior(key, params), rtol=1e-12)
    ends = np.cumsum(model.lower)
    for num, lower in zip(range(1, depth), ends, strict=False):
        np.testing.assert_array_equal(redrawn[num][lower:], z[lower:])
        if name != "bits":
            assert (np.asarray(redrawn[num][:lower]) != np.asarray(z[:lower])).all()


def test_temperatures_scale_the_noise_of_each_layer(x64):
    model, hierarchy, params, *_ = _made("normals")
    redraw, key, z = hierarchy.redraw, jax.random.key(1), jnp.zeros(6)
    transport = model.generative.transport
    assert transport is not None

    @jax.jit
    def noise_of_each(key):
        every = (None, (0.5, 2.0, 0.0))
        return [
            transport.inverse(params, redraw(jax.random.clone(key), params, z, 3, t))
            for t in every
        ]

    plain, scaled = noise_of_each(key)
    factors = np.repeat([0.5, 2.0, 0.0], [3, 2, 1])
    np.testing.assert_allclose(scaled, factors * plain, rtol=1e-9, atol=1e-12)
    assert (np.asarray(plain) != 0.0).all()


def test_the_means_of_a_linear_ladder_are_those_of_its_posterior(x64):
    known, x = ladders.chain(4, form="plain"), np.array([0.8, -1.3])
    h = known.model.recognition.encode(known.params, jnp.asarray(x))
    hierarchy = _of(known.model)
    assert hierarchy.means is not None
    means = jax.jit(hierarchy.means)(known.params, h)
    np.testing.assert_allclose(means, known.posterior(x)[0], rtol=1e-9)


@pytest.mark.slow
def test_means_of_bits_are_probabilities(x64):
    _, hierarchy, params, _, h, _ = _made("bits")
    assert hierarchy.means is not None
    means = hierarchy.means(params, h)
    assert means.shape == (5,)
    np.testing.assert_allclose(means[-1:], jax.nn.sigmoid(h[0]))
    assert (np.abs(means - 0.5) < 0.5).all()
    assert (np.abs(means - jnp.round(means)) > 1e-6).all()


@pytest.mark.parametrize(
    ("num_layers", "temperatures", "message"),
    [
        (4, None, "num_layers must be 0 to the 3 layers, got 4"),
        (3, (1.0, 1.0), r"one number of each of 3 layers.*got \(1.0, 1.0\)"),
        (3, (1.0, -1.0, 1.0), "0 or more and finite"),
        (1, (0.5, 1.0, 1.0), "z_1 is no map of noise.*must be 1, got 0.5"),
    ],
)
def test_what_cannot_be_redrawn_is_refused(num_layers, temperatures, message):
    model = ladders.bits()
    params = jax.eval_shape(model.init, jax.random.key(0))

    def redraw(params):
        z, key = jnp.zeros(5), jax.random.key(0)
        return _of(model).redraw(key, params, z, num_layers, temperatures)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(redraw, params)


@pytest.mark.parametrize("name", SLOW_MODELS)
def test_densities_of_layers_and_of_the_top_make_up_those_of_the_whole(x64, name):
    model, hierarchy, params, _, h, _ = _made(name)
    prior = jax.jit(model.generative.sample_prior)
    noise = prior(jax.random.key(3), params)  # bits, where z is
    h_top = h[0] if model.lower else h

    @jax.jit
    def of_both(params, h, noise):
        z, layers = hierarchy.densities(params, h, noise)
        z_top, top = z[sum(model.lower) :], hierarchy.top
        return (
            z,
            layers,
            top.generative.log_prior(params, z_top),
            top.recognition.log_prob(params, h_top, z_top),
            model.generative.log_prior(params, z),
            model.recognition.log_prob(params, h, z),
        )

    z, layers, log_p, log_q, whole_p, whole_q = of_both(params, h, noise)
    parts = np.split(np.asarray(z), np.cumsum(model.lower))[:-1]
    for part, (p, q) in zip(parts, layers, strict=True):
        log_p, log_q = log_p + _log_prob(part, *p), log_q + _log_prob(part, *q)
    np.testing.assert_allclose([log_p, log_q], [whole_p, whole_q], rtol=1e-9)
    if (transport := model.generative.transport) is not None:
        made = jax.jit(transport.forward)(params, noise)
        np.testing.assert_allclose(z, made, rtol=1e-12)


def _log_prob(z, first, log_std=None):
    """Of a normal's mean and log_std, or of the logits of bits."""
    if log_std is None:
        return -np.logaddexp(0.0, np.where(z == 1.0, -first, first)).sum()
    return stats.norm.logpdf(z, first, np.exp(log_std)).sum()


def test_at_the_mean_of_theta_a_ladder_has_the_layers_that_it_has_there(x64):
    _, hierarchy, params, _, h, _ = _made("normals")
    wrapped = full_vb.at_mean(ladders.normals(layer_forms.merged_normal()))
    at_mean = params._replace(generative={"mean": params.generative})
    noise = jnp.arange(6.0) / 6.0
    exact = jax.jit(hierarchy.densities)(params, h, noise)
    of_mean = jax.jit(_of(wrapped).densities)(at_mean, h, noise)
    jax.tree.map(np.testing.assert_array_equal, of_mean, exact)
    top = _of(wrapped).top.recognition
    np.testing.assert_array_equal(
        top.log_prob(at_mean, h[0], noise[-1:]),
        hierarchy.top.recognition.log_prob(params, h[0], noise[-1:]),
    )
