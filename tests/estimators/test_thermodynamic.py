import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from vae_jax.estimators import score_function, thermodynamic

X = np.array([1.0, 0.0, 1.0, 1.0, 0.0])


def test_the_integral_over_beta_is_log_p(x64):
    """Of the means that the objective's terms estimate, by enumeration."""
    problem, x = problems.binary_model(), jnp.asarray(X)
    _, q, p = problem.table(problem.params, x)
    log_w = jnp.log(p) - jnp.log(q)
    nodes, weights = np.polynomial.legendre.leggauss(20)

    def mean(beta):
        pi = jax.nn.softmax(jnp.log(q) + beta * log_w)
        return pi @ log_w

    means = jax.vmap(mean)(jnp.asarray(0.5 * (nodes + 1.0)))
    integral = 0.5 * weights @ means
    np.testing.assert_allclose(integral, problem.log_p(problem.params, x), rtol=1e-9)


@pytest.mark.slow
def test_more_terms_rise_from_the_elbo_to_log_p(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    values = []
    for num_terms in (1, 2, 10, 100):
        objective = thermodynamic.thermodynamic(
            problem.model, num_samples=100_000, num_terms=num_terms
        )
        values.append(float(jax.jit(objective)(jax.random.key(0), problem.params, x)))
    assert np.all(np.diff(values) > 0.01)
    np.testing.assert_allclose(values[0], problem.elbo(problem.params, x), atol=0.03)
    log_p = float(problem.log_p(problem.params, x))
    np.testing.assert_allclose(values[-1], log_p, atol=0.1)
    assert values[-1] < log_p


@pytest.mark.slow
def test_the_gradient_of_many_samples_is_that_of_the_sum_of_exact_means(x64):
    problem, x = problems.binary_model(num_latents=2), jnp.asarray(X)
    betas = (0.0, 0.04, 0.2)

    def exact(params):
        _, q, p = problem.table(params, x)
        log_w = jnp.log(p) - jnp.log(q)
        total = 0.0
        for beta, end in zip(betas, (*betas[1:], 1.0), strict=True):
            total += (end - beta) * jax.nn.softmax(jnp.log(q) + beta * log_w) @ log_w
        return total

    objective = thermodynamic.thermodynamic(
        problem.model, num_samples=400_000, num_terms=3, first_beta=0.04
    )
    got = jax.jit(jax.grad(objective, 1))(jax.random.key(1), problem.params, x)
    expected = jax.grad(exact)(problem.params)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=0.01)


@pytest.mark.slow
def test_one_term_is_leave_one_out(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    both = [
        jax.value_and_grad(objective, 1)(jax.random.key(2), problem.params, x)
        for objective in (
            thermodynamic.thermodynamic(problem.model, num_samples=5, num_terms=1),
            score_function.leave_one_out(problem.model, num_samples=5),
        )
    ]
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
