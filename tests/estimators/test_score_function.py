import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax import networks, posteriors, vae
from vae_jax.estimators import importance, ovis, score_function, wake_sleep
from vae_jax.types import Generative, Params

X = np.array([1.0, 0.0, 1.0, 1.0, 0.0])


def _build(name, problem, **settings):
    builder = getattr(score_function, name)
    return builder(problem.model, **settings)


def _nvil(problem, **settings):
    """NVIL's objective and parameters with a baseline that is not constant."""
    network = networks.linear(len(X), 1, initializer=networks.normal(std=0.5))
    model = vae.with_baseline(problem.model, network)
    baseline = model.recognition.init(jax.random.key(7))["baseline"]
    params = problem.params._replace(
        recognition=problem.params.recognition | {"baseline": baseline}
    )
    objective = score_function.nvil(model, network=network, **settings)
    return objective, params, network


# Gradient


@pytest.mark.parametrize("num_samples", [2, 8])
@pytest.mark.slow
def test_vimco_is_unbiased_for_the_k_sample_bound(x64, num_samples):
    problem = problems.binary_model()
    objective = _build("vimco", problem, num_samples=num_samples)
    bound = problems.k_sample_bound_of_table(problem, num_samples=num_samples)
    testing.assert_unbiased(objective, problem.params, jnp.asarray(X), bound)


def test_the_oracle_is_the_elbo_at_one_sample_and_has_converged(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    bound = problems.k_sample_bound_of_table(problem, num_samples=1)
    got = jax.jit(jax.value_and_grad(bound))(problem.params, x)
    expected = jax.jit(jax.value_and_grad(problem.elbo))(problem.params, x)
    chex.assert_trees_all_close(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["leave_one_out", pytest.param("vimco", marks=pytest.mark.slow)]
)
def test_the_gradient_is_unbiased_for_continuous_latents_too(x64, name):
    problem, x = problems.linear_gaussian(), jnp.array([0.4, -1.0])
    objective = _build(name, problem, num_samples=3)
    num_samples = 3 if name == "vimco" else 1
    bound = problems.k_sample_bound(problem, num_samples=num_samples)
    testing.assert_unbiased(objective, problem.params, x, bound)


@pytest.mark.slow
def test_leave_one_out_descends_half_the_variance_of_the_log_weights(x64):
    """VarGrad, at the samples that both draw from one key."""
    problem, x = problems.binary_model(), jnp.asarray(X)
    draw = importance.log_densities(problem.model, num_samples=4)

    def variance(key, params):
        log_p, log_q = draw(key, params, x)
        return -0.5 * jnp.var(log_p - log_q, ddof=1)

    objective = _build("leave_one_out", problem, num_samples=4)
    key = jax.random.key(5)
    got = jax.grad(objective, 1)(jax.random.clone(key), problem.params, x)
    expected = jax.grad(variance, 1)(key, problem.params)
    chex.assert_trees_all_close(
        got.recognition, expected.recognition, rtol=1e-9, atol=1e-12
    )


@pytest.mark.slow
def test_a_scale_divides_the_gradient_of_phi_alone(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    plain, scaled = (
        testing.draws(
            _build("score_function", problem, num_samples=2, scale=scale),
            problem.params,
            x,
            num_draws=20,
        )
        for scale in (1.0, 4.0)
    )
    expected = plain[1]._replace(
        recognition=jax.tree.map(lambda g: g / 4.0, plain[1].recognition)
    )
    chex.assert_trees_all_close(scaled, (plain[0], expected), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_baselines_cut_the_variance_of_phi(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    spread = {}
    for name, settings in {
        "naive": {"num_samples": 4},
        "constant": {
            "num_samples": 4,
            "baseline": float(problem.elbo(problem.params, x)),
        },
        "leave_one_out": {"num_samples": 4},
    }.items():
        built = "leave_one_out" if name == "leave_one_out" else "score_function"
        objective = _build(built, problem, **settings)
        _, grads = testing.draws(objective, problem.params, x, num_draws=2000)
        leaves = jax.tree.leaves(grads.recognition)
        spread[name] = sum(float(leaf.var(0).sum()) for leaf in leaves)
    assert spread["constant"] < 0.5 * spread["naive"]
    assert spread["leave_one_out"] < 0.5 * spread["naive"]


def _square(mean, std):
    """A model whose log weight is z^2 in value, with q = N(mean, std^2)."""
    q = posteriors.diag_normal(1)
    fixed = jnp.array([mean, np.log(std)])
    generative = Generative(
        init=lambda key: (),
        sample_prior=lambda key, params: jnp.zeros(1),
        log_prior=lambda params, z: (z**2).sum() + q.log_prob((), fixed, z),
        log_likelihood_terms=lambda params, x, z: jnp.zeros_like(x),
        sample_observation=lambda key, params, z: jnp.zeros(1),
        mean_observation=lambda params, z: jnp.zeros(1),
    )
    recognition = vae.recognition(
        lambda params, x: params.recognition, q, init=lambda key: fixed
    )
    return vae.model(generative, recognition), Params((), fixed)


def test_the_score_function_has_the_known_variance_for_a_square(x64):
    # f(z) = z^2 under N(mu, s^2): pathwise 4 s^2, score function as below.
    mu, s, num_draws = 0.7, 1.3, 200_000
    model, params = _square(mu, s)
    objective = score_function.score_function(model, num_samples=1)
    _, grads = testing.draws(objective, params, jnp.zeros(1), num_draws=num_draws)
    got = np.asarray(grads.recognition[:, 0])
    expected = mu**4 / s**2 + 14 * mu**2 + 15 * s**2
    squared = (got - 2 * mu) ** 2
    testing.assert_mean_equals(squared, expected)
    testing.assert_mean_equals(got, 2 * mu)
    pathwise = 2 * (mu + s * jax.random.normal(jax.random.key(0), (num_draws,)))
    testing.assert_mean_equals((pathwise - 2 * mu) ** 2, 4 * s**2)


# Transformation and edge


def test_vimco_is_finite_where_one_weight_dominates():
    # Without the careful difference the signal is the logarithm of a rounded zero.
    log_w = jnp.array([0.0, -300.0, -310.0])
    without = jax.jit(score_function._without_each)(log_w)
    expected = np.array([-300.0 + np.log1p(np.exp(-5.0) + np.exp(-10.0)), 0.0, 0.0])
    expected -= np.log(3.0)
    np.testing.assert_allclose(without, expected, rtol=1e-6)


def test_a_zero_weight_is_replaced_and_zeros_alone_replace_nothing():
    log_w = jnp.array([-jnp.inf, -1.0, -2.0, 0.5])
    rest = np.array([-1.0, -2.0, 0.5])
    without = jax.jit(score_function._without_each)(log_w)
    expected = np.log((np.exp(rest).sum() + np.exp(rest.mean())) / 4.0)
    np.testing.assert_allclose(without[0], expected, rtol=1e-6)
    of_others = [np.log((np.exp(rest).sum() - np.exp(w)) / 4.0) for w in rest]
    np.testing.assert_allclose(without[1:], of_others, rtol=1e-6)
    alone = jnp.array([-jnp.inf, -jnp.inf, -1.0])
    expected = [-1.0 - np.log(3.0), -1.0 - np.log(3.0), 0.0]
    got = jax.jit(score_function._without_each)(alone)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        score_function.vimco,
        ovis.ovis,
        ovis.ovis_monte_carlo,
        wake_sleep.reweighted_wake_sleep,
    ],
)
def test_weights_of_zero_leave_finite_gradients(build):
    """Of a model that rules out one of the two values of its first latent."""
    problem, x = problems.binary_model(), jnp.asarray(X)
    terms = problem.generative.log_likelihood_terms

    def ruled_out(params, x, z):
        return jnp.where(z[0] > 0.5, -jnp.inf, terms(params, x, z))

    generative = problem.generative._replace(log_likelihood_terms=ruled_out)
    objective = build(vae.model(generative, problem.recognition), num_samples=3)
    both = jax.vmap(jax.value_and_grad(objective, argnums=1), (0, None, None))
    keys = jax.random.split(jax.random.key(0), 200)
    values, grads = jax.jit(both)(keys, problem.params, x)
    is_finite = np.isfinite(values)
    assert 20 < is_finite.sum() < 200
    chex.assert_tree_all_finite(jax.tree.map(lambda leaf: leaf[is_finite], grads))


@pytest.mark.slow
def test_holes_reach_no_baseline():
    problem, x = problems.binary_model(), jnp.asarray(X).at[1].set(jnp.nan)
    masked = vae.masked(problem.model)
    problem = problem._replace(
        generative=masked.generative, recognition=masked.recognition
    )
    objective, params, _ = _nvil(problem, num_samples=2)
    both = jax.jit(jax.value_and_grad(objective, argnums=1))
    chex.assert_tree_all_finite(both(jax.random.key(0), params, x))
