import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from tests import problems, testing
from vae_jax import (
    codes,
    flows,
    likelihoods,
    networks,
    posteriors,
    priors,
    vae,
    vector_quantized,
)
from vae_jax.estimators import sgvb
from vae_jax.inference import full_vb
from vae_jax.training import gradient, loop
from vae_jax.types import Batch, Generative, Params, per_example

pytestmark = pytest.mark.uses_optax
NUM_DATA, STD, PRIOR_STD = 12, 0.7, 1.5


def _regression():
    """y = theta . u + noise as a model of x = [u, y]: z has no effect, and q is p(z).

    Only y's term counts, so the model is Bayesian linear regression in theta.
    """
    prior, density = priors.standard_normal(1), posteriors.diag_normal(1)

    def log_likelihood_terms(params, x, z):
        del z
        mean = params.generative @ x[:-1]
        return jax.scipy.stats.norm.logpdf(x[-1:], mean, STD)

    generative = Generative(
        init=lambda key: jax.random.normal(key, (3,)),
        sample_prior=lambda key, params: prior.sample(key, (), jnp.zeros(0)),
        log_prior=lambda params, z: prior.log_prob((), jnp.zeros(0), z),
        log_likelihood_terms=log_likelihood_terms,
        sample_observation=lambda key, params, z: z,
        mean_observation=lambda params, z: z,
    )
    recognition = vae.recognition(lambda params, x: jnp.zeros(2, x.dtype), density)
    return vae.model(generative, recognition)


def _linear():
    return networks.linear(2, 4)


def _with_prior(decoder, prior):
    generative = vae.decoder_model(decoder, prior, likelihoods.bernoulli((4,)))
    encoder = networks.linear(4, 4)
    return vae.model(generative, vae.encoder_model(encoder, posteriors.diag_normal(2)))


def _data():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(NUM_DATA, 3)) @ np.diag([1.0, 2.0, 0.5])
    outputs = inputs @ [0.5, -1.0, 2.0] + STD * generator.normal(size=NUM_DATA)
    return inputs, outputs


def _start():
    q = {"mean": jnp.array([0.3, -0.2, 0.1]), "log_std": jnp.array([-0.5, 0.1, -1.0])}
    return Params(q, ())


def _algorithm(optimizer):
    of_theta = per_example(sgvb.sgvb_a(_regression(), num_samples=1))
    bound = full_vb.full_vb(of_theta, num_data=NUM_DATA, prior_std=PRIOR_STD)
    return gradient.ascent(bound, optimizer)


def _exact(q, x):
    """The mean over rows of the bound, by the moments of a normal theta."""
    inputs, outputs = x[:, :-1], x[:, -1]
    variance = jnp.exp(2.0 * q["log_std"])
    error = (outputs - inputs @ q["mean"]) ** 2 + inputs**2 @ variance
    fit = -0.5 * error / STD**2 - 0.5 * jnp.log(2.0 * jnp.pi * STD**2)
    ratio = variance / PRIOR_STD**2
    kl = 0.5 * jnp.sum(q["mean"] ** 2 / PRIOR_STD**2 + ratio - 1.0 - jnp.log(ratio))
    return fit.mean() - kl / NUM_DATA


@pytest.mark.slow
def test_value_and_gradient_are_unbiased_on_bayesian_linear_regression(x64):
    x = jnp.asarray(np.column_stack(_data()))
    fit = _algorithm(optax.sgd(1.0))
    state = fit.init(jax.random.key(0), _start())
    batch = Batch(x, jnp.arange(NUM_DATA), jnp.ones(NUM_DATA))

    def moved(key):
        after, info = fit.step(key, state, batch)
        return jax.tree.map(jnp.subtract, after.params, state.params), info.bound

    keys = jax.random.split(jax.random.key(1), 20_000)
    change, values = jax.jit(jax.vmap(moved))(keys)
    exact, slope = jax.value_and_grad(_exact)(_start().generative, x)
    testing.assert_mean_equals(values, exact)
    testing.assert_mean_equals(change.generative, slope)


@pytest.mark.slow
def test_it_finds_the_best_factorized_posterior_of_linear_regression(x64):
    inputs, outputs = _data()
    x = jnp.asarray(np.column_stack([inputs, outputs]))
    rate = optax.cosine_decay_schedule(0.05, 6000)
    fit = _algorithm(optax.adam(rate))
    state = loop.start(jax.random.key(0), fit, _start())

    def take(key, data, index):
        del key
        return Batch(data[index], index, jnp.ones(index.shape))

    order = jnp.tile(jnp.arange(NUM_DATA), (6000, 1))
    state, info = loop.scan(fit, take)(state, x, order)
    q = state.inner.params.generative
    precision = inputs.T @ inputs / STD**2 + np.eye(3) / PRIOR_STD**2
    mean = np.linalg.solve(precision, inputs.T @ outputs / STD**2)
    off = np.abs(q["mean"] - mean) * np.sqrt(np.diag(precision))
    assert off.max() < 0.1  # standard deviations
    # The factorized normal nearest a normal has its conditional variances.
    np.testing.assert_allclose(
        np.exp(-2.0 * q["log_std"]), np.diag(precision), rtol=0.1
    )
    marginal = PRIOR_STD**2 * inputs @ inputs.T + STD**2 * np.eye(NUM_DATA)
    log_p = stats.multivariate_normal.logpdf(outputs, mean=None, cov=marginal)  # pyright: ignore[reportArgumentType]
    bound = NUM_DATA * float(_exact(q, x))
    assert log_p - 1.5 < bound < log_p
    del info


def test_one_theta_serves_the_whole_batch():
    fit = _algorithm(optax.sgd(0.1))
    state = fit.init(jax.random.key(0), _start())
    x = jnp.tile(jnp.array([1.0, -1.0, 2.0, 0.5]), (5, 1))
    batch = Batch(x, jnp.arange(5), jnp.ones(5))
    _, info = jax.jit(fit.step)(jax.random.key(1), state, batch)
    assert float(info.spread) < 1e-5


@pytest.mark.slow
def test_the_model_at_the_mean_is_the_plain_model_there():
    model = vae.model(*problems.bernoulli_vae())
    wrapped = full_vb.at_mean(model, initial_std=0.02)
    key = jax.random.key(0)
    params, plain = wrapped.init(jax.random.clone(key)), model.init(key)
    theta = params.generative
    chex.assert_trees_all_equal(params.recognition, plain.recognition)
    chex.assert_trees_all_equal(theta["mean"], plain.generative)
    for leaf in jax.tree.leaves(theta["log_std"]):
        np.testing.assert_allclose(leaf, np.log(0.02), rtol=1e-6)
    z, x, key = jnp.array([0.3, -1.0]), jnp.ones((2, 3)), jax.random.key(1)
    calls = {
        "sample_prior": lambda m, p: m.sample_prior(jax.random.clone(key), p),
        "log_prior": lambda m, p: m.log_prior(p, z),
        "log_likelihood_terms": lambda m, p: m.log_likelihood_terms(p, x, z),
        "sample_observation": lambda m, p: m.sample_observation(
            jax.random.clone(key), p, z
        ),
        "mean_observation": lambda m, p: m.mean_observation(p, z),
    }
    for call in calls.values():
        np.testing.assert_array_equal(
            call(wrapped.generative, params), call(model.generative, plain)
        )


def test_the_model_at_the_mean_keeps_the_priors_symbols():
    books = vector_quantized.rows(2, num_rows=3, width=1)
    prior, z = codes.uniform_prior(books), jnp.array([0.3, -0.4])
    model = _with_prior(
        vector_quantized.summed(_linear(), width=1, num_levels=1), prior
    )
    wrapped = full_vb.at_mean(model)
    params = wrapped.init(jax.random.key(0))
    plain = full_vb.at_mean_of(params)
    lifted, symbols = wrapped.generative.symbols, model.generative.symbols
    assert lifted is not None
    assert symbols is not None
    k = symbols.of(plain, z)
    np.testing.assert_array_equal(lifted.of(params, z), k)
    np.testing.assert_array_equal(lifted.value(params, k), symbols.value(plain, k))
    np.testing.assert_array_equal(
        lifted.log_probs(params, z), symbols.log_probs(plain, z)
    )


def test_the_model_at_the_mean_keeps_the_priors_map_of_noise():
    flow = flows.inverse_autoregressive(networks.made(2, ()), 2)
    model = _with_prior(_linear(), posteriors.flow(priors.standard_normal(2), flow))
    wrapped = full_vb.at_mean(model)
    params, eps = wrapped.init(jax.random.key(0)), jnp.array([0.3, -0.4])
    lifted = wrapped.generative.transport
    transport = model.generative.transport
    assert lifted is not None
    assert transport is not None
    z = transport.forward(full_vb.at_mean_of(params), eps)
    np.testing.assert_array_equal(lifted.forward(params, eps), z)
    np.testing.assert_allclose(lifted.inverse(params, z), eps, rtol=1e-5)


def test_the_divergence_from_the_prior_is_the_sum_over_all_weights(x64):
    q = {
        "mean": {"a": jnp.array([[0.5, -1.0]]), "b": jnp.array([2.0])},
        "log_std": {"a": jnp.array([[0.1, -0.3]]), "b": jnp.array([0.4])},
    }
    means, log_stds = np.array([0.5, -1.0, 2.0]), np.array([0.1, -0.3, 0.4])
    ratio = np.exp(2.0 * log_stds) / 4.0
    expected = 0.5 * np.sum(means**2 / 4.0 + ratio - 1.0 - np.log(ratio))
    np.testing.assert_allclose(
        full_vb.kl_to_prior(q, prior_std=2.0), expected, rtol=1e-9
    )


def test_draws_of_theta_have_the_moments_of_q(x64):
    q = {"mean": [jnp.array([1.0, -2.0])], "log_std": [jnp.array([0.0, -1.0])]}
    keys = jax.random.split(jax.random.key(0), 20_000)
    samples = jax.jit(jax.vmap(lambda key: full_vb.sample(key, q)))(keys)[0]
    testing.assert_mean_equals(samples, q["mean"][0])
    squares = (np.asarray(samples) - np.array([1.0, -2.0])) ** 2
    testing.assert_mean_equals(squares, jnp.exp(2.0 * q["log_std"][0]))


def test_bad_settings_are_refused_when_built():
    objective = per_example(sgvb.sgvb_a(_regression(), num_samples=1))
    with pytest.raises(ValueError, match="num_data must be positive"):
        full_vb.full_vb(objective, num_data=0)
    with pytest.raises(ValueError, match=r"prior_std must lie in \(0, inf\)"):
        full_vb.full_vb(objective, num_data=1, prior_std=0.0)
    projected = objective._replace(project=lambda params, memory: params)
    with pytest.raises(ValueError, match="makes some of its memory"):
        full_vb.full_vb(projected, num_data=1)
    with pytest.raises(ValueError, match=r"initial_std must lie in \(0, inf\)"):
        full_vb.at_mean(_regression(), initial_std=-1.0)
