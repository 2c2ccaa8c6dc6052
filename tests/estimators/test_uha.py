import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import estimands, problems, testing
from tests.estimators import cases
from vae_jax.estimators import uha
from vae_jax.types import log_joint

X = np.array([0.4, -1.0])


def _at(problem, **path):
    """The parameters with other numbers in the path."""
    phi = problem.params.recognition
    return problem.params._replace(recognition={**phi, "path": phi["path"] | path})


def _along(problem, num_temperatures, step_size):
    """The exact bound of as many equal steps."""
    model = uha.with_path(
        problem.model, num_temperatures=num_temperatures, step_size=step_size, eta=0.8
    )
    path = model.recognition.init(jax.random.key(0))["path"]
    params = _at(problem, **path)
    return float(estimands.uha(problem)(params, jnp.asarray(X)))


def test_a_step_leads_back_and_keeps_volumes(x64):
    def slope(z):
        return jnp.sin(3.0 * z) - z**3

    def step(both):
        z, momentum = jnp.split(both, 2)
        return jnp.concatenate(uha.leapfrog(slope, z, momentum, jnp.asarray(0.7)))

    flip = jnp.array([1.0, 1.0, -1.0, -1.0])
    start = jax.random.normal(jax.random.key(0), (4,))
    end = step(start)
    np.testing.assert_allclose(flip * step(flip * end), start, rtol=1e-9)
    np.testing.assert_allclose(jnp.linalg.det(jax.jacobian(step)(start)), 1.0)
    assert float(jnp.abs(end - start).min()) > 0.01


def test_steps_of_no_length_leave_the_elbo(x64):
    problem, x = cases.WITH_PATH.make(), jnp.asarray(X)
    params = _at(problem, log_step_size=jnp.full(3, -jnp.inf))
    key = jax.random.key(5)
    objective = uha.uha(problem.model, num_samples=1)
    value = jax.jit(objective)(jax.random.clone(key), params, x)
    h = problem.recognition.encode(params, x)
    z = problem.recognition.sample(jax.random.split(key, 3)[0], params, h)
    log_q = problem.recognition.log_prob(params, h, z)
    np.testing.assert_allclose(
        value, log_joint(problem.generative, params, x, z) - log_q, rtol=1e-12
    )


@pytest.mark.parametrize("logit_eta", [17.0, 40.0])
def test_a_momentum_that_hardly_fades_has_a_finite_slope(logit_eta):
    """In float32 eta^2 is 1 here, where sqrt(1 - eta^2) has none."""
    problem, x = cases.WITH_PATH.make(), jnp.asarray(X, jnp.float32)
    params = jax.tree.map(jnp.float32, _at(problem, logit_eta=jnp.asarray(logit_eta)))
    objective = uha.uha(problem.model, num_samples=1)
    slope = jax.jit(jax.grad(objective, 1))(jax.random.key(5), params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.slow
def test_the_weights_mean_is_p_of_x_at_steps_of_any_length(x64):
    problem, x = cases.WITH_PATH.make(), jnp.asarray(X)
    params = _at(problem, log_step_size=jnp.log(jnp.array([0.9, 0.1, 0.4])))
    objective = uha.uha(problem.model, num_samples=1)
    values, _ = testing.draws(objective, params, x)
    log_p = problem.log_p(params, x)
    testing.assert_mean_equals(np.exp(values - log_p), 1.0)
    assert values.mean() < log_p - 0.02


@pytest.mark.slow
def test_the_bound_is_below_log_p_and_rises_to_it_with_the_steps(x64):
    """By the exact bound that the table of estimators holds the draws against."""
    problem = cases.WITH_PATH.make()
    log_p = float(problem.log_p(problem.params, jnp.asarray(X)))
    elbo = float(problem.elbo(problem.params, jnp.asarray(X)))
    for size in (0.01, 0.5, 1.0, 1.5):
        assert all(_along(problem, t, size) < log_p for t in (1, 5))
    values = [elbo, *(_along(problem, t, 0.5) for t in (4, 16, 64))]
    assert np.all(np.diff(values) > 0.0)
    assert log_p - values[-1] < 0.1 * (log_p - elbo)


@pytest.mark.slow
def test_a_fixed_path_has_no_gradient(x64):
    problem, x = cases.WITH_PATH.make(), jnp.asarray(X)
    for learns in (True, False):
        objective = uha.uha(problem.model, num_samples=2, learns_path=learns)
        slope = jax.jit(jax.grad(objective, 1))(jax.random.key(0), problem.params, x)
        path = jnp.concatenate(
            [jnp.ravel(leaf) for leaf in jax.tree.leaves(slope.recognition["path"])]
        )
        assert bool(jnp.any(path != 0.0)) == learns
        assert float(jnp.abs(slope.recognition["encoder"]["output"]["bias"]).min()) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_temperatures": 0}, "num_temperatures .*0"),
        ({"step_size": 0.0}, r"step_size .*0\.0"),
        ({"eta": 1.0}, r"eta .*1\.0"),
        ({"eta": float("nan")}, r"eta .*nan"),
    ],
)
def test_numbers_that_make_no_path_are_refused(settings, message):
    model = problems.linear_gaussian().model
    with pytest.raises(ValueError, match=message):
        uha.with_path(model, **{"num_temperatures": 3} | settings)
