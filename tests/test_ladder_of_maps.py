import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import laws
from vae_jax import ladder_of_maps, layer_forms, likelihoods, posteriors, priors
from vae_jax.estimators import sgvb
from vae_jax.types import each_example, log_joint, log_weight

MAPS = ((7, 6, 2), (4, 3, 3), (4, 3, 1))  # two layers at one resolution


def _images(*, maps=MAPS, x_shape=(14, 12), likelihood=None, **changed):
    settings = {
        "width": 4,
        "num_blocks": 1,
        "form": layer_forms.residual_normal(),
        "posterior": posteriors.diag_normal(2, max_log_std=5.0),
        "prior": priors.standard_normal(2),
        "likelihood": likelihood or likelihoods.bernoulli(x_shape),
    }
    return ladder_of_maps.images(maps, x_shape, **settings | changed)


def _shapes(model, x_shape):
    """Those of a draw's parts and of the mean of x, traced alone."""

    def one(key, x):
        key_init, key_draw = jax.random.split(key)
        params = model.init(key_init)
        sampled = model.draw(key_draw, params, x, model.recognition.encode(params, x))
        return sampled, model.generative.mean_observation(params, sampled.z)

    key = jax.eval_shape(lambda: jax.random.key(0))
    sampled, mean = jax.eval_shape(one, key, jax.ShapeDtypeStruct(x_shape, jnp.float32))
    assert sampled.log_likelihood.shape == mean.shape == x_shape
    return sampled.z.shape, sampled.kl.shape


@pytest.mark.slow
def test_before_the_first_step_every_layer_is_a_standard_normal_and_x_is_not_read():
    model, x = _images(form=layer_forms.plain_normal()), jnp.ones((14, 12))

    @jax.jit
    def start(key):
        key_init, key_draw = jax.random.split(key)
        params = model.init(key_init)
        sampled = model.draw(key_draw, params, x, model.recognition.encode(params, x))
        zs = jnp.split(sampled.z, [7 * 6 * 2 + 4 * 3 * 3 + 4 * 3])[0]
        return sampled, jax.scipy.stats.norm.logpdf(zs).sum()

    sampled, log_prob = start(jax.random.key(0))
    np.testing.assert_array_equal(sampled.kl[:-1], 0.0)
    top = -0.5 * (np.log(2 * np.pi) + sampled.z[-2:] ** 2).sum()
    np.testing.assert_allclose(sampled.log_prior, log_prob + top, rtol=1e-5)
    np.testing.assert_allclose(sampled.log_likelihood, -np.log(2.0), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("residual", "share"), [(True, 0.6), (False, 0.8)])
def test_blocks_computed_anew_give_the_same_gradient_in_less_memory(residual, share):
    x, key = jnp.ones((8, 14, 12)), jax.random.key(1)

    def compiled(remat):
        model = _images(num_blocks=6, width=16, residual=residual, remat=remat)
        params = jax.jit(model.init)(jax.random.key(0))
        params = jax.tree.map(lambda leaf: leaf + 0.01, params)  # no zeros at the start

        def bound(params):
            elbo = sgvb.sgvb_b(model, num_samples=1)
            return each_example(elbo)(jax.random.clone(key), params, x).mean()

        gradient = jax.jit(jax.grad(bound)).lower(params).compile()
        memory = gradient.memory_analysis()
        assert memory is not None
        return gradient(params), memory.temp_size_in_bytes

    (slope, size), (slope_anew, size_anew) = compiled(False), compiled(True)
    chex.assert_trees_all_close(slope_anew, slope, rtol=1e-3, atol=1e-5)
    assert size_anew < share * size


@pytest.mark.slow
def test_a_fused_draw_of_maps_is_what_the_functions_give_and_every_part_learns(x64):
    model, x = _images(), jnp.asarray(np.random.default_rng(0).integers(0, 2, (14, 12)))
    x = x.astype(float)
    params = laws.jiggled(jax.jit(model.init)(jax.random.key(0)), std=0.1)

    @jax.jit
    def all_of(key, params):
        h = model.recognition.encode(params, x)
        sampled = model.draw(key, params, x, h)
        log_p = log_joint(model.generative, params, x, sampled.z)
        apart = log_p - model.recognition.log_prob(params, h, sampled.z)
        slope = jax.grad(sgvb.elbo(model, num_samples=1), 1)
        return sampled, apart, slope(jax.random.clone(key), params, x)

    sampled, apart, slopes = all_of(jax.random.key(1), params)
    np.testing.assert_allclose(log_weight(sampled), apart, rtol=1e-9)
    assert sampled.z.shape == (7 * 6 * 2 + 4 * 3 * 3 + 4 * 3 + 2,)
    assert sampled.kl.shape == (4,)
    assert float(sampled.kl.min()) > 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0.0, path


@pytest.mark.parametrize(
    ("maps", "x_shape", "size"),
    [
        (((14, 14, 1), (7, 7, 2)), (28, 28), 14 * 14 + 7 * 7 * 2),
        (((2, 2, 3),), (8, 8, 3), 12),  # two halvings at once
        (((8, 8, 1), (1, 1, 5)), (8, 8), 64 + 5),
    ],
)
def test_resolutions_may_fall_once_or_more_at_a_layer_or_not_at_all(
    maps, x_shape, size
):
    likelihood = likelihoods.bernoulli(x_shape)
    model = _images(maps=maps, x_shape=x_shape, likelihood=likelihood)
    assert _shapes(model, x_shape) == ((size + 2,), (len(maps) + 1,))


@pytest.mark.slow
def test_a_likelihood_of_several_planes_reads_each_number_at_its_pixel():
    """All means are moved by the one number, and all deviations by the other."""
    likelihood = likelihoods.normal_per_pixel_std((8, 8))
    model = _images(maps=((4, 4, 1),), x_shape=(8, 8), likelihood=likelihood)
    assert _shapes(model, (8, 8)) == ((18,), (2,))
    params, z = jax.jit(model.init)(jax.random.key(0)), jnp.zeros(18)
    theta, shift = params.generative, jnp.repeat(jnp.array([0.25, -1.5]), 64)
    decoder = ladder_of_maps.shift_decoder(
        theta["decoder"], shift, x_shape=(8, 8), planes=2
    )
    shifted = params._replace(generative={**theta, "decoder": decoder})
    mean = jax.jit(model.generative.mean_observation)
    np.testing.assert_allclose(mean(shifted, z) - mean(params, z), 0.25, rtol=1e-6)
    terms = jax.jit(model.generative.log_likelihood_terms)
    x = mean(shifted, z)
    got = terms(shifted, x, z)
    expected = likelihood.log_prob_terms((), shift, x)  # the decoder starts at its bias
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0}, "width must be positive"),
        ({"num_blocks": 0}, "num_blocks must be positive"),
        ({"maps": ()}, "maps must hold one layer or more"),
        ({"maps": ((5, 6, 2),)}, r"maps of \(5, 6\) are not those of \(14, 12\)"),
        ({"maps": ((7, 6, 2), (14, 12, 1))}, r"\(14, 12\) are above .*, and larger"),
        ({"maps": ((28, 24, 1),)}, r"\(28, 24\) are above those of \(14, 12\)"),
        ({"maps": ((4, 3, 2), (3, 2, 1))}, r"maps of \(3, 2\) are not those of"),
        (
            {"likelihood": likelihoods.bernoulli((3, 3))},
            "9 entries are not 1 planes",
        ),
    ],
)
def test_what_makes_no_ladder_of_maps_is_refused(changed, message):
    _images()
    with pytest.raises(ValueError, match=message):
        _images(**changed)
