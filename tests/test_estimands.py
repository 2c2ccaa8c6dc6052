import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import estimands, problems

BITS = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])


def _gradient(estimand, problem, x):
    return jax.jit(jax.grad(estimand(problem)))(problem.params, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("relaxed", "make"),
    [
        (estimands.binary_concrete, lambda: problems.binary_model(num_latents=2)),
        (estimands.gumbel_softmax, lambda: problems.categorical_model(num_latents=1)),
    ],
)
def test_quadratures_over_relaxed_latents_have_converged(x64, relaxed, make):
    problem, x = make(), BITS.astype(float)
    fine, coarse = (
        jax.jit(jax.value_and_grad(relaxed(0.7, step=step)(problem)))(problem.params, x)
        for step in (0.2, 0.4)
    )
    chex.assert_trees_all_close(fine, coarse, rtol=1e-9, atol=1e-10)
    # A temperature of almost nothing relaxes nothing, and the rest is the ELBO.
    cold = jax.jit(relaxed(1e-3, step=0.2)(problem))(problem.params, x)
    np.testing.assert_allclose(cold, problem.elbo(problem.params, x), rtol=0.05)


@pytest.mark.slow
def test_one_path_gradient_is_that_of_the_elbo_and_three_are_biased_in_phi(x64):
    problem, x = problems.linear_gaussian(), jnp.array([0.4, -1.0])
    one = _gradient(estimands.density_held_fixed(1), problem, x)
    exact = _gradient(estimands.elbo, problem, x)
    chex.assert_trees_all_close(one, exact, rtol=1e-9, atol=1e-10)
    three = _gradient(estimands.density_held_fixed(3), problem, x)
    exact = _gradient(estimands.iwae(3), problem, x)
    chex.assert_trees_all_close(three.generative, exact.generative, rtol=1e-9)
    bias = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), three, exact)
    assert min(jax.tree.leaves(bias.recognition)) > 0.01


@pytest.mark.parametrize(
    ("make", "x"),
    [(problems.binary_model, BITS), (problems.linear_gaussian, [0.4, -1.0])],
)
@pytest.mark.slow
def test_the_score_of_one_wake_sample_has_mean_zero_and_of_three_has_not(x64, make, x):
    problem, x = make(), jnp.asarray(x, float)
    one = _gradient(estimands.wake(1), problem, x).recognition
    chex.assert_trees_all_close(one, jax.tree.map(jnp.zeros_like, one), atol=1e-8)
    three = _gradient(estimands.wake(3), problem, x).recognition
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(three)) > 0.01
