"""Models whose prior is a function of the encoder, `vae.with_vamp_prior`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from scipy import stats

from tests import problems, testing
from vae_jax import likelihoods, networks, posteriors, priors, vae
from vae_jax.estimators import sgvb
from vae_jax.training import gradient
from vae_jax.types import Batch, Params, per_example

X_SHAPE = (2, 3)


def _vamp(*, num_components=3):
    """A model, its recognition model and parameters with pseudo-inputs at random."""
    encoder, posterior = networks.mlp(6, (4,), 4), posteriors.diag_normal(2)
    recognition = vae.encoder_model(encoder, posterior)
    base, _ = problems.bernoulli_vae(x_shape=X_SHAPE)
    generative = vae.with_vamp_prior(
        base, encoder, posterior, num_components=num_components, x_shape=X_SHAPE
    )
    key_theta, key_phi = jax.random.split(jax.random.key(0))
    theta = jax.jit(generative.init)(key_theta)
    return generative, recognition, Params(theta, jax.jit(recognition.init)(key_phi))


def _with_pseudo_inputs(params, inputs):
    prior = {"prior": {"pseudo_inputs": jnp.asarray(inputs)}}
    return params._replace(generative=params.generative | prior)


@pytest.mark.slow
def test_the_vamp_prior_is_scipys_mixture_of_q_at_clipped_pseudo_inputs(x64):
    generative, recognition, params = _vamp()
    inputs = np.random.default_rng(0).normal(0.5, 0.7, size=(3, *X_SHAPE))
    assert (inputs < 0.0).any()
    assert (inputs > 1.0).any()
    params, z = _with_pseudo_inputs(params, inputs), np.array([0.3, -1.0])
    densities = []
    for u in np.clip(inputs, 0.0, 1.0):
        mean, log_std = np.split(recognition.encode(params, jnp.asarray(u)), 2)
        densities.append(stats.norm.pdf(z, mean, np.exp(log_std)).prod())
    got = jax.jit(generative.log_prior)(params, jnp.asarray(z))
    np.testing.assert_allclose(got, np.log(np.mean(densities)), rtol=1e-9)


@pytest.mark.slow
def test_ancestral_samples_of_the_vamp_prior_have_the_mixtures_moments():
    generative, recognition, params = _vamp()
    inputs = params.generative["prior"]["pseudo_inputs"]
    h = np.asarray(jax.vmap(recognition.encode, (None, 0))(params, inputs))
    mean, variance = h[:, :2], np.exp(2.0 * h[:, 2:])
    keys = jax.random.split(jax.random.key(1), 20_000)
    z = jax.jit(jax.vmap(generative.sample_prior, (0, None)))(keys, params)
    testing.assert_mean_equals(z, mean.mean(0))
    testing.assert_mean_equals(z**2, (mean**2 + variance).mean(0))
    x = generative.sample_observation(jax.random.key(2), params, z[0])
    assert x.shape == X_SHAPE


def test_a_batch_encodes_the_pseudo_inputs_once():
    generative, _, params = _vamp(num_components=7)
    log_prior = jax.vmap(jax.vmap(generative.log_prior, (None, 0)), (None, 0))
    zs = jnp.zeros((11, 5, 2))  # examples, samples
    program = jax.make_jaxpr(log_prior)(params, zs)
    assert sorted(testing.shapes_of_products(program.jaxpr)) == [(7, 4), (7, 4)]


@pytest.mark.slow
def test_gradients_of_the_vamp_prior_reach_encoder_and_pseudo_inputs(x64):
    generative, _, params = _vamp()
    inputs = np.full((3, *X_SHAPE), 0.4) + 0.1 * np.arange(3)[:, None, None]
    inputs[0, 0, 0], inputs[1, 1, 2] = -0.5, 1.5  # clipped: no gradient
    params, z = _with_pseudo_inputs(params, inputs), jnp.array([0.3, -1.0])
    log_prior = jax.jit(lambda params: generative.log_prior(params, z))
    slope = jax.jit(jax.grad(log_prior))(params)
    assert all(np.all(leaf) for leaf in jax.tree.leaves(slope.recognition))
    reached = np.asarray(slope.generative["prior"]["pseudo_inputs"]) != 0.0
    assert reached.sum() == reached.size - 2
    assert not reached[0, 0, 0]
    assert not reached[1, 1, 2]
    check_grads(log_prior, (params,), order=1, modes=("rev",))


def test_the_vamp_prior_takes_the_place_of_the_models_own():
    encoder, posterior = networks.linear(6, 4), posteriors.diag_normal(2)
    base = vae.decoder_model(
        networks.linear(2, 6),
        priors.normal_mixture(2, 5),
        likelihoods.bernoulli(X_SHAPE),
    )
    generative = vae.with_vamp_prior(
        base, encoder, posterior, num_components=3, x_shape=X_SHAPE
    )
    theta = jax.jit(generative.init)(jax.random.key(0))
    expected = jax.jit(base.init)(jax.random.key(0))
    chex.assert_trees_all_equal(theta["decoder"], expected["decoder"])
    assert set(theta["prior"]) == {"pseudo_inputs"}
    inputs = theta["prior"]["pseudo_inputs"]
    assert inputs.shape == (3, *X_SHAPE)
    assert (inputs >= 0.0).all()
    assert (inputs <= 1.0).all()


@pytest.mark.parametrize(
    ("num_components", "x_shape", "named"),
    [(0, X_SHAPE, "num_components .*0"), (3, (2, 0), r"x_shape .*\(2, 0\)")],
)
def test_pseudo_inputs_that_are_none_are_refused(num_components, x_shape, named):
    base, _ = problems.bernoulli_vae(x_shape=X_SHAPE)
    parts = base, networks.linear(6, 4), posteriors.diag_normal(2)
    with pytest.raises(ValueError, match=named):
        vae.with_vamp_prior(*parts, num_components=num_components, x_shape=x_shape)


@pytest.mark.uses_optax
@pytest.mark.slow
def test_estimator_a_trains_with_the_vamp_prior_and_moves_its_pseudo_inputs():
    generative, recognition, params = _vamp()
    model = vae.model(generative, recognition)
    objective = per_example(sgvb.sgvb_a(model, num_samples=2))
    algorithm = gradient.ascent(objective, optax.adam(1e-2))
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(32, *X_SHAPE)) < 0.2, float)
    batch = Batch(x, jnp.arange(32), jnp.ones(32))

    @jax.jit
    def train(params):
        keys = jax.random.split(jax.random.key(1), 200)
        start = algorithm.init(jax.random.key(2), params)
        return jax.lax.scan(lambda s, key: algorithm.step(key, s, batch), start, keys)

    state, info = train(params)
    assert info.bound[-20:].mean() > info.bound[:20].mean() + 0.5
    moved = state.params.generative["prior"]["pseudo_inputs"]
    before = params.generative["prior"]["pseudo_inputs"]
    assert np.abs(moved - before).mean() > 1e-2
