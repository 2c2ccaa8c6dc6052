import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import problems, testing
from vae_jax.estimators import sgvb
from vae_jax.types import Params, each_example, log_joint

X = np.array([0.4, -1.0])
NUM_DRAWS = 20_000


def _estimators(problem, num_samples):
    return {
        "a": sgvb.sgvb_a(problem.model, num_samples=num_samples),
        "b": sgvb.sgvb_b(problem.model, num_samples=num_samples),
    }


def _draws(function, params, x=X, *, num=NUM_DRAWS, seed=1):
    keys = jax.random.split(jax.random.key(seed), num)
    return jax.jit(jax.vmap(function, in_axes=(0, None, None)))(
        keys, params, jnp.asarray(x)
    )


def _gradients(objective, params):
    return _draws(jax.grad(objective, argnums=1), params)


# The oracle itself


@pytest.mark.parametrize("num_latents", [1, 2])
def test_closed_form_log_p_matches_scipy(x64, num_latents):
    problem = problems.linear_gaussian(num_latents=num_latents, num_features=3)
    layer = jax.tree.map(np.asarray, problem.params.generative["decoder"]["output"])
    x = np.array([0.4, -1.0, 2.0])
    covariance = layer["kernel"].T @ layer["kernel"] + 0.8**2 * np.eye(3)
    expected = stats.multivariate_normal.logpdf(x, layer["bias"], covariance)
    got = problem.log_p(problem.params, jnp.asarray(x))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("num_latents", [1, 2])
def test_closed_form_posterior_is_the_joint_over_the_evidence(x64, num_latents):
    problem = problems.linear_gaussian(num_latents=num_latents)
    params, x = problem.params, jnp.asarray(X)
    mean, covariance = map(np.asarray, problem.posterior(params, x))
    joint = jax.jit(lambda z: log_joint(problem.generative, params, x, z))
    for z in np.random.default_rng(0).normal(size=(3, num_latents)):
        expected = stats.multivariate_normal(mean, covariance).logpdf(z)  # pyright: ignore[reportArgumentType]
        got = joint(jnp.asarray(z)) - problem.log_p(params, x)
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_closed_form_elbo_is_the_evidence_minus_the_divergence_to_the_posterior(x64):
    problem = problems.linear_gaussian(num_latents=2)
    params, x = problem.params, jnp.asarray(X)
    mean_p, cov_p = map(np.asarray, problem.posterior(params, x))
    h = np.asarray(problem.recognition.encode(params, x))
    mean_q, cov_q = h[:2], np.diag(np.exp(2 * h[2:]))
    precision, gap = np.linalg.inv(cov_p), mean_p - mean_q
    log_dets = np.linalg.slogdet(cov_p)[1] - np.linalg.slogdet(cov_q)[1]
    spread = np.trace(precision @ cov_q) + gap @ precision @ gap - 2
    expected = problem.log_p(params, x) - 0.5 * (spread + log_dets)
    np.testing.assert_allclose(problem.elbo(params, x), expected, rtol=1e-9)


def test_closed_form_elbo_matches_quadrature_that_has_converged(x64):
    problem = problems.linear_gaussian()
    params, x = problem.params, jnp.asarray(X)
    h = problem.recognition.encode(params, x)

    @jax.jit
    @jax.vmap
    def log_weight(z):
        log_q = problem.recognition.log_prob(params, h, z)
        return log_joint(problem.generative, params, x, z) - log_q

    def integral(num_nodes):
        nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
        log_w = log_weight(h[0] + jnp.exp(h[1]) * jnp.asarray(nodes)[:, None])
        return weights @ np.asarray(log_w) / weights.sum()

    np.testing.assert_allclose(integral(10), integral(40), rtol=1e-12)
    np.testing.assert_allclose(problem.elbo(params, x), integral(40), rtol=1e-9)


# Statistical: value and gradient


def test_a_and_b_have_the_same_expectation(x64):
    problem = problems.linear_gaussian(num_latents=2)
    pair = _estimators(problem, 2)

    def difference(key, params, x):
        return pair["a"](key, params, x) - pair["b"](jax.random.clone(key), params, x)

    testing.assert_mean_equals(_draws(difference, problem.params), 0.0)


def test_more_samples_divide_the_variance_and_leave_the_mean(x64):
    problem = problems.linear_gaussian()
    one = _draws(_estimators(problem, 1)["b"], problem.params)
    eight = _draws(_estimators(problem, 8)["b"], problem.params, seed=2)
    np.testing.assert_allclose(one.var() / eight.var(), 8.0, rtol=0.1)


def test_terms_of_b_are_the_reconstruction_and_the_exact_kl(x64):
    problem = problems.linear_gaussian(num_latents=2)
    terms = sgvb.elbo_terms(problem.model, num_samples=1)
    samples = _draws(terms, problem.params)
    exact = problem.reconstruction(problem.params, jnp.asarray(X))
    testing.assert_mean_equals(samples.reconstruction, exact)
    expected = problem.kl(problem.params, jnp.asarray(X))
    np.testing.assert_allclose(samples.kl, np.full(NUM_DRAWS, expected), rtol=1e-9)
    assert (samples.kl >= 0.0).all()


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 4.0])
def test_beta_weighs_the_kl_in_the_gradient_and_leaves_the_value(x64, beta):
    problem = problems.linear_gaussian()
    params = problem.params
    plain = sgvb.sgvb_b(problem.model, num_samples=2)
    weighted = sgvb.sgvb_b(problem.model, num_samples=2, beta=beta)
    key, x = jax.random.key(3), jnp.asarray(X)
    value = jax.jit(weighted)(jax.random.clone(key), params, x)
    np.testing.assert_allclose(value, jax.jit(plain)(key, params, x), rtol=1e-14)

    def target(params):
        return problem.reconstruction(params, x) - beta * problem.kl(params, x)

    grads, exact = _gradients(weighted, params), jax.jit(jax.grad(target))(params)
    testing.assert_mean_equals(grads.generative, exact.generative)
    testing.assert_mean_equals(grads.recognition, exact.recognition)


def test_beta_may_be_traced(x64):
    problem = problems.linear_gaussian()
    key, x = jax.random.key(3), jnp.asarray(X)

    def slope(beta):
        objective = sgvb.sgvb_b(problem.model, num_samples=1, beta=beta)
        return jax.grad(objective, 1)(jax.random.clone(key), problem.params, x)

    traced, static = jax.jit(slope)(0.3), jax.jit(lambda: slope(0.3))()
    chex.assert_trees_all_close(traced, static, rtol=1e-9)


# Weight decay and the data set's total


def test_a_normal_prior_on_theta_changes_the_gradient_of_theta_alone(x64):
    problem = problems.linear_gaussian()
    params, x, key = problem.params, jnp.asarray(X), jax.random.key(4)
    plain = _estimators(problem, 1)["b"]
    decayed = sgvb.with_normal_prior_on_theta(plain, num_data=40, weight_decay=3.0)
    value, grads = jax.jit(jax.value_and_grad(decayed, 1))(
        jax.random.clone(key), params, x
    )
    plain_value, plain_grads = jax.jit(jax.value_and_grad(plain, 1))(key, params, x)
    np.testing.assert_allclose(value, plain_value, rtol=1e-14)
    expected = Params(
        jax.tree.map(
            lambda g, theta: g - theta * 3.0 / 40, plain_grads.generative, params[0]
        ),
        plain_grads.recognition,
    )
    chex.assert_trees_all_close(grads, expected, rtol=1e-9)


def test_the_decayed_gradients_of_a_data_set_add_up_to_one_log_prior(x64):
    params = Params({"w": jnp.array([1.5, -2.0])}, ())
    objective = sgvb.with_normal_prior_on_theta(
        lambda key, params, x: jnp.zeros(()), num_data=7
    )
    each = jax.grad(objective, 1)(jax.random.key(0), params, jnp.zeros(2))

    def log_prior(params):
        return jax.scipy.stats.norm.logpdf(params.generative["w"]).sum()

    expected = jax.grad(log_prior)(params)
    total = 7.0 * each.generative["w"]
    np.testing.assert_allclose(total, expected.generative["w"], rtol=1e-9)


def test_no_weight_decay_changes_nothing(x64):
    problem, key = problems.linear_gaussian(), jax.random.key(4)
    plain = _estimators(problem, 1)["a"]
    decayed = sgvb.with_normal_prior_on_theta(plain, num_data=9, weight_decay=0.0)
    arguments = problem.params, jnp.asarray(X)
    got = jax.jit(jax.grad(decayed, 1))(jax.random.clone(key), *arguments)
    expected = jax.jit(jax.grad(plain, 1))(key, *arguments)
    chex.assert_trees_all_close(got, expected, rtol=1e-12)


# Transformation and edge


@pytest.mark.slow
def test_sharding_the_batch_over_four_devices_changes_nothing():
    problem = problems.linear_gaussian()
    each = each_example(_estimators(problem, 2)["b"])

    def total(key, params, xs):
        return each(key, params, xs).sum()

    compiled = jax.jit(jax.value_and_grad(total, argnums=1))
    xs, key = jax.random.normal(jax.random.key(1), (8, 2)), jax.random.key(0)
    expected = compiled(jax.random.clone(key), problem.params, xs)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    whole = jax.sharding.NamedSharding(mesh, spec())
    got = compiled(
        jax.device_put(key, whole),
        jax.device_put(problem.params, whole),
        jax.device_put(xs, jax.sharding.NamedSharding(mesh, spec("data"))),
    )
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-5)


def test_an_empty_data_set_and_a_negative_weight_decay_are_refused():
    objective = _estimators(problems.linear_gaussian(), 1)["a"]
    with pytest.raises(ValueError, match=r"num_data .*0"):
        sgvb.with_normal_prior_on_theta(objective, num_data=0)
    with pytest.raises(ValueError, match=r"weight_decay .*-1\.0"):
        sgvb.with_normal_prior_on_theta(objective, num_data=5, weight_decay=-1.0)
    with pytest.raises(
        ValueError, match=r"weight_decay must lie in \[0, inf\), got nan"
    ):
        sgvb.with_normal_prior_on_theta(objective, num_data=5, weight_decay=np.nan)


def test_the_terms_of_any_q_are_unbiased_without_a_closed_form(x64):
    problem, x = problems.linear_gaussian(num_latents=2), jnp.asarray(X)
    model = problems.without_closed_forms(problem).model
    assert model.kl is None
    terms = sgvb.elbo_terms(model, num_samples=3)
    keys = jax.random.split(jax.random.key(4), 20_000)
    sampled = jax.jit(jax.vmap(terms, in_axes=(0, None, None)))
    samples = sampled(keys, problem.params, x)
    testing.assert_mean_equals(
        samples.reconstruction, problem.reconstruction(problem.params, x)
    )
    testing.assert_mean_equals(samples.kl, problem.kl(problem.params, x))
