"""The models of partial observations, `vae.masked`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from tests import problems
from vae_jax import likelihoods, networks, priors, types, vae
from vae_jax.types import Params

NAN = float("nan")
X = ((1.0, NAN, 0.0), (NAN, 1.0, 1.0))


def _model():
    generative, recognition = problems.bernoulli_vae(x_shape=(2, 3))
    key_theta, key_phi = jax.random.split(jax.random.key(0))
    params = Params(generative.init(key_theta), recognition.init(key_phi))
    return generative, recognition, params


def test_the_log_likelihood_is_the_sum_over_observed_entries(x64):
    problem = problems.linear_gaussian(num_features=3, std=0.8)
    generative = vae.masked(problem.model).generative
    x, z = jnp.array([0.3, NAN, -2.0]), jnp.array([0.5])
    terms = generative.log_likelihood_terms(problem.params, x, z)
    mean = np.asarray(problem.generative.mean_observation(problem.params, z))
    expected = stats.norm.logpdf(np.asarray(x), mean, 0.8)
    expected[1] = 0.0
    np.testing.assert_allclose(terms, expected, rtol=1e-9)


@pytest.mark.parametrize("fill", [0.0, 0.25])
def test_the_encoder_sees_the_fill_in_the_holes(fill):
    generative, recognition, params = _model()
    masked = vae.masked(vae.model(generative, recognition), fill=fill).recognition
    filled = jnp.where(jnp.isnan(jnp.array(X)), fill, jnp.array(X))
    np.testing.assert_array_equal(
        masked.encode(params, jnp.array(X)), recognition.encode(params, filled)
    )


def test_an_observation_without_holes_is_seen_as_before():
    generative, recognition, params = _model()
    masked = vae.masked(vae.model(generative, recognition), fill=0.5)
    x, z = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), jnp.array([0.2, -0.4])
    np.testing.assert_array_equal(
        masked.generative.log_likelihood_terms(params, x, z),
        generative.log_likelihood_terms(params, x, z),
    )
    np.testing.assert_array_equal(
        masked.recognition.encode(params, x), recognition.encode(params, x)
    )


def test_masking_twice_is_masking_once():
    generative, recognition, params = _model()
    once = vae.masked(vae.model(generative, recognition))
    twice = vae.masked(once)
    x, z, key = jnp.array(X), jnp.array([0.2, -0.4]), jax.random.key(1)
    results = []
    for model in (once, twice):
        h = model.recognition.encode(params, x)
        terms = model.generative.log_likelihood_terms(params, x, z)
        samples = model.draw(jax.random.clone(key), params, x, h)
        results.append((h, terms, samples))
    chex.assert_trees_all_equal(*results)


@pytest.mark.slow
def test_no_nan_reaches_a_gradient(x64):
    generative, recognition, params = _model()
    masked = vae.masked(vae.model(generative, recognition))
    x, z = jnp.array(X), jnp.array([0.2, -0.4])

    def difference(params, z):
        h = masked.recognition.encode(params, x)
        return types.log_joint(
            masked.generative, params, x, z
        ) - masked.recognition.log_prob(params, h, z)

    grads = jax.jit(jax.grad(difference, argnums=(0, 1)))(params, z)
    chex.assert_tree_all_finite(grads)
    check_grads(jax.jit(difference), (params, z), order=1, modes=("rev",))
    of_x = jax.grad(lambda x: types.log_likelihood(masked.generative, params, x, z))(x)
    np.testing.assert_array_equal(of_x[np.isnan(X)], 0.0)
    assert np.isfinite(of_x).all()


@pytest.mark.slow
def test_jit_and_vmap_agree_with_a_loop():
    generative, recognition, params = _model()
    masked = vae.masked(vae.model(generative, recognition))
    holes = jax.random.bernoulli(jax.random.key(1), 0.5, (4, 2, 3))
    xs, z = jnp.where(holes, jnp.nan, 1.0), jnp.array([0.2, -0.4])

    def one(x):
        terms = masked.generative.log_likelihood_terms(params, x, z)
        return terms, masked.recognition.encode(params, x)

    got = jax.jit(jax.vmap(one))(xs)
    for i in range(4):
        for a, b in zip(got, one(xs[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fill", [NAN, float("inf")])
def test_a_fill_that_is_not_finite_is_refused(fill):
    generative, recognition, _ = _model()
    with pytest.raises(ValueError, match=f"fill must be finite, got {fill}"):
        vae.masked(vae.model(generative, recognition), fill=fill)


def test_a_linear_decoder_trains_on_what_is_there_alone():
    """The gradient of a decoder's bias is zero where every row has a hole."""
    model = vae.decoder_model(
        networks.linear(1, 2), priors.standard_normal(1), likelihoods.bernoulli((2,))
    )
    _, recognition, _ = _model()
    generative = vae.masked(vae.model(model, recognition)).generative
    params = Params(model.init(jax.random.key(0)), ())

    def total(params):
        x = jnp.array([1.0, NAN])
        return types.log_likelihood(generative, params, x, jnp.ones(1))

    layer = jax.grad(total)(params).generative["decoder"]["output"]
    assert float(layer["bias"][1]) == 0.0
    assert float(layer["kernel"][0, 1]) == 0.0
    assert float(layer["bias"][0]) > 0.0
