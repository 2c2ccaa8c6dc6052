import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax import networks, vae
from vae_jax.latent_models import sigmoid_belief
from vae_jax.types import Params, log_joint

LAYERS = [(3,), (2, 3), (2, 1, 2)]
SHAPE = (2, 2)
X = np.array([[1.0, 0.0], [1.0, 1.0]])
NUM_DRAWS = 20_000


def _model(sizes, *, hidden=()):
    """Both models with weights of order one, also those of the prior."""
    return _cached_model(sizes, hidden, jnp.result_type(float))


@functools.cache  # initializing is most of the time of a test
def _cached_model(sizes, hidden, dtype):
    del dtype
    start = networks.normal(std=1.0)
    generative = sigmoid_belief.generative(sizes, SHAPE, initializer=start)
    recognition = sigmoid_belief.recognition(
        sizes, SHAPE, hidden=hidden, initializer=start
    )
    key_theta, key_phi, key_prior = jax.random.split(jax.random.key(0), 3)
    theta = jax.jit(generative.init)(key_theta)
    theta["prior"] = {"logits": jax.random.normal(key_prior, (sizes[-1],))}
    return generative, recognition, Params(theta, jax.jit(recognition.init)(key_phi))


def _all_z(sizes):
    return np.array(list(itertools.product((0.0, 1.0), repeat=sum(sizes))))


def _chance(bit, logit):
    p = 1.0 / (1.0 + math.exp(-logit))
    return p if bit else 1.0 - p


def _affine(layer, i, inputs):
    """Logit of unit i from a Flax layer, one product at a time."""
    weights, bias = layer["output"]["kernel"][:, i], layer["output"]["bias"][i]
    return bias + sum(w * v for w, v in zip(weights, inputs, strict=True))


def _split(z, sizes):
    z, layers = list(z), []
    for size in sizes:
        layers.append(z[:size])
        z = z[size:]
    return layers


def _log_p_by_hand(params, sizes, z):
    """(log p(z), log p(x | z))."""
    theta, layers = jax.device_get(params.generative), _split(z, sizes)
    log_prior = 0.0
    for bit, logit in zip(layers[-1], theta["prior"]["logits"], strict=True):
        log_prior += math.log(_chance(bit, float(logit)))
    for above in range(len(sizes) - 1, 0, -1):
        for i, bit in enumerate(layers[above - 1]):
            logit = _affine(theta[f"layer_{above}"], i, layers[above])
            log_prior += math.log(_chance(bit, logit))
    log_x = 0.0
    for i, pixel in enumerate(X.ravel()):
        log_x += math.log(_chance(pixel, _affine(theta["decoder"], i, layers[0])))
    return log_prior, log_x


def _log_q_by_hand(params, sizes, z):
    phi, layers = jax.device_get(params.recognition), _split(z, sizes)
    names = ["encoder"] + [f"layer_{i}" for i in range(1, len(sizes))]
    nats, below = 0.0, X.ravel()
    for name, bits in zip(names, layers, strict=True):
        for i, bit in enumerate(bits):
            nats += math.log(_chance(bit, _affine(phi[name], i, below)))
        below = bits
    return nats


# Oracle


@pytest.mark.parametrize("sizes", LAYERS)
@pytest.mark.slow
def test_densities_are_those_of_a_loop_and_sum_to_one(x64, sizes):
    generative, recognition, params = _model(sizes)
    x, zs = jnp.asarray(X), _all_z(sizes)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def logs(params, z):
        h = recognition.encode(params, x)
        terms = generative.log_likelihood_terms(params, x, z)
        assert h.shape == (sizes[0],)
        assert terms.shape == SHAPE
        prior = generative.log_prior(params, z)
        return prior, terms.sum(), recognition.log_prob(params, h, z)

    got = np.stack(logs(params, jnp.asarray(zs)), 1)
    expected = [
        [*_log_p_by_hand(params, sizes, z), _log_q_by_hand(params, sizes, z)]
        for z in zs
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(np.exp(got[:, 0]).sum(), 1.0, rtol=1e-9)
    np.testing.assert_allclose(np.exp(got[:, 2]).sum(), 1.0, rtol=1e-9)


def test_one_layer_is_the_model_of_a_prior_and_an_affine_decoder(x64):
    problem, x = problems.binary_model(), jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
    generative = sigmoid_belief.generative([4], (5,))
    recognition = sigmoid_belief.recognition([4], (5,))
    params, z = problem.params, jnp.array([0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(
        log_joint(generative, params, x, z),
        log_joint(problem.generative, params, x, z),
        rtol=1e-9,
    )
    np.testing.assert_allclose(
        recognition.log_prob(params, recognition.encode(params, x), z),
        problem.recognition.log_prob(params, problem.recognition.encode(params, x), z),
        rtol=1e-9,
    )


# Statistical


@pytest.mark.parametrize("sizes", LAYERS)
@pytest.mark.slow
def test_samples_of_prior_and_posterior_have_their_probabilities(sizes):
    generative, recognition, params = _model(sizes)
    keys = jax.random.split(jax.random.key(1), (2, NUM_DRAWS))
    x = jnp.asarray(X, jnp.float32)

    @jax.jit
    def draw(keys, params):
        h = recognition.encode(params, x)
        first = jax.vmap(generative.sample_prior, in_axes=(0, None))(keys[0], params)
        sample = jax.vmap(recognition.sample, in_axes=(0, None, None))
        return first, sample(keys[1], params, h)

    zs = _all_z(sizes)
    samples = draw(keys, params)
    by_hand = (
        (lambda z: _log_p_by_hand(params, sizes, z)[0]),
        (lambda z: _log_q_by_hand(params, sizes, z)),
    )
    for z, log_prob in zip(samples, by_hand, strict=True):
        assert z.shape == (NUM_DRAWS, sum(sizes))
        assert z.dtype == jnp.float32
        counted = np.all(np.asarray(z)[:, None] == zs[None], -1).astype(float)
        np.testing.assert_array_equal(counted.sum(1), 1.0)
        testing.assert_mean_equals(counted, np.exp([log_prob(row) for row in zs]))


@pytest.mark.slow
def test_observations_have_the_mean_that_z_1_gives_them():
    sizes = (2, 3)
    generative, _, params = _model(sizes)
    z = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
    keys = jax.random.split(jax.random.key(2), NUM_DRAWS)
    sample = jax.vmap(generative.sample_observation, in_axes=(0, None, None))
    decoder = jax.device_get(params.generative["decoder"])
    expected = [_chance(1.0, _affine(decoder, i, [1.0, 0.0])) for i in range(4)]
    mean = generative.mean_observation(params, z)
    np.testing.assert_allclose(mean, np.reshape(expected, SHAPE), rtol=1e-5)
    testing.assert_mean_equals(jax.jit(sample)(keys, params, z), mean)


# Transformation and edge


@pytest.mark.slow
def test_jit_and_vmap_agree_with_a_loop():
    sizes = (2, 3)
    generative, recognition, params = _model(sizes, hidden=(4,))
    keys = jax.random.split(jax.random.key(3), 3)
    xs = jax.random.bernoulli(jax.random.key(4), 0.5, (3, *SHAPE)).astype(float)

    def log_weight(key, x):
        h = recognition.encode(params, x)
        z = recognition.sample(key, params, h)
        log_q = recognition.log_prob(params, h, z)
        return log_joint(generative, params, x, z) - log_q

    got = jax.jit(jax.vmap(log_weight))(jax.random.clone(keys), xs)
    eager = log_weight(jax.random.clone(keys)[0], xs[0])
    np.testing.assert_allclose(got[0], eager, rtol=1e-5)
    single = jax.jit(log_weight)
    loop = [single(key, x) for key, x in zip(keys, xs, strict=True)]
    np.testing.assert_allclose(got, loop, rtol=1e-5)


def test_every_layer_has_parameters_of_its_own_and_hidden_units_where_asked():
    generative = sigmoid_belief.generative((2, 3, 4), SHAPE)
    recognition = sigmoid_belief.recognition((2, 3, 4), SHAPE, hidden=(5,))
    theta = jax.eval_shape(generative.init, jax.random.key(0))
    phi = jax.eval_shape(recognition.init, jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: leaf.shape, theta)
    assert shapes == {
        "prior": {"logits": (4,)},
        "decoder": {"output": {"kernel": (2, 4), "bias": (4,)}},
        "layer_1": {"output": {"kernel": (3, 2), "bias": (2,)}},
        "layer_2": {"output": {"kernel": (4, 3), "bias": (3,)}},
    }
    assert set(phi) == {"encoder", "layer_1", "layer_2"}
    assert phi["layer_2"]["hidden_0"]["kernel"].shape == (3, 5)
    assert phi["layer_2"]["output"]["kernel"].shape == (5, 4)


@pytest.mark.parametrize("sizes", [(), (0,), (3, -1)])
def test_layers_that_are_none_or_empty_are_refused(sizes):
    for build in (sigmoid_belief.generative, sigmoid_belief.recognition):
        with pytest.raises(ValueError, match="layer_sizes must be positive"):
            build(sizes, SHAPE)
        with pytest.raises(ValueError, match="x_shape must have positive sizes"):
            build((2,), (2, 0))


@pytest.mark.slow
def test_a_z_of_another_length_is_refused():
    generative, recognition, params = _model((2, 3))
    x = jnp.asarray(X)
    h = recognition.encode(params, x)
    with pytest.raises(ValueError, match=r"z must be \[5\], got \(2,\)"):
        generative.log_likelihood_terms(params, x, jnp.ones(2))
    with pytest.raises(ValueError, match=r"of shape \(5,\), got \(2,\)"):
        recognition.log_prob(params, h, jnp.ones(2))


def test_a_baseline_starts_from_noise_of_its_own():
    """fold_in(key, i) is split(key, n)[i]: the layers of q are made of such keys."""
    model = vae.model(
        sigmoid_belief.generative((5, 5), (5,)),
        sigmoid_belief.recognition((5, 5), (5,), hidden=(7,)),
    )
    of_q = vae.with_baseline(model, networks.mlp(5, (7,), 1)).recognition
    params = of_q.init(jax.random.key(0))
    alone = params["baseline"]["hidden_0"]["kernel"]
    for name in set(params) - {"baseline"}:
        for leaf in jax.tree.leaves(params[name]):
            assert leaf.shape != alone.shape or (leaf != alone).all()
