import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.estimators import ovis, score_function

X = np.array([1.0, 0.0, 1.0, 1.0, 0.0])


@pytest.mark.slow
def test_many_further_samples_leave_what_is_left_of_the_exact_mean(x64):
    """The signal of each sample against the mean over its own bits, by enumeration."""
    problem, x = problems.binary_model(), jnp.asarray(X)
    key, num_samples = jax.random.key(4), 3
    objective = ovis.ovis_monte_carlo(
        problem.model, num_samples=num_samples, num_auxiliary=200_000
    )
    got = jax.jit(jax.grad(objective, 1))(jax.random.clone(key), problem.params, x)
    h = problem.recognition.encode(problem.params, x)
    keys = jax.random.split(jax.random.split(key)[0], num_samples)
    z = jax.vmap(problem.recognition.sample, (0, None, None))(keys, problem.params, h)
    rows, q, p = problem.table(problem.params, x)
    w = np.asarray(p / q)
    at = [int(np.flatnonzero((rows == one[None]).all(1))[0]) for one in z]
    expected = np.zeros_like(h)
    for k in range(num_samples):
        others = sum(w[at[j]] for j in range(num_samples) if j != k)
        d = np.log((others + w) / num_samples) - w / (others + w)
        score = np.asarray(z[k]) - 1.0 / (1.0 + np.exp(-np.asarray(h)))
        expected += (d[at[k]] - np.asarray(q) @ d) * score
    bias = got.recognition["encoder"]["output"]["bias"]  # whose gradient is h's
    np.testing.assert_allclose(bias, expected, atol=0.01)
    assert np.abs(expected).max() > 0.05


@pytest.mark.slow
def test_the_signal_grows_with_the_samples_and_vimcos_does_not():
    problem, x = problems.binary_model(), jnp.asarray(X)

    def ratio(build, num_samples):
        objective = build(problem.model, num_samples=num_samples)
        _, grads = testing.draws(objective, problem.params, x, num_draws=20_000)
        bias = np.asarray(grads.recognition["encoder"]["output"]["bias"])
        noise = bias.var(0).sum()
        return np.sqrt((bias.mean(0) ** 2).sum() / noise)

    for build, least in ((ovis.ovis, 1.5), (ovis.ovis_monte_carlo, 1.5)):
        assert ratio(build, 64) > least * ratio(build, 8)
    few, many = (ratio(score_function.vimco, n) for n in (8, 64))
    assert many < 1.2 * few
