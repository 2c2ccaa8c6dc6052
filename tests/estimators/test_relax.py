import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems, testing
from tests.estimators import cases
from vae_jax.estimators import rebar, relax
from vae_jax.types import Network

X = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
SILENT = Network(lambda key: (), lambda params, y: jnp.zeros(1, y.dtype))


def _silent(temperature):
    """Four bits with a control variate that is REBAR's."""
    problem = problems.binary_model()
    model = relax.with_control(problem.model, SILENT, temperature=temperature)
    control = model.recognition.init(jax.random.key(0))["control"]
    phi = problem.params.recognition | {"control": control}
    return problem, problem.params._replace(recognition=phi)


@pytest.mark.slow
def test_it_starts_as_rebar_of_the_same_noise(x64):
    problem, params = _silent(0.7)
    both = [
        jax.jit(jax.value_and_grad(objective, 1))(
            jax.random.key(3), params, jnp.asarray(X)
        )
        for objective in (
            relax.relax(problem.model, network=SILENT, num_samples=3),
            rebar.rebar(problem.model, num_samples=3, temperature=0.7),
        )
    ]
    for _, grads in both:
        del grads.recognition["control"]
    chex.assert_trees_all_close(*both, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.uses_optax
def test_what_it_learns_takes_noise_away(x64):
    problem, x = cases.WITH_CONTROL.make(), jnp.asarray(X)
    objective = relax.relax(problem.model, network=cases.CONTROL, num_samples=1)

    def spread(params):
        _, grads = testing.draws(objective, params, x, num_draws=5_000)
        return float(grads.recognition["encoder"]["output"]["bias"].var())

    optimizer = optax.adam(0.03)

    @jax.jit
    def step(carry, key):
        control, state = carry

        def mean(control):
            phi = problem.params.recognition | {"control": control}
            params = problem.params._replace(recognition=phi)
            keys = jax.random.split(key, 50)
            return jax.vmap(objective, (0, None, None))(keys, params, x).mean()

        slope = jax.tree.map(jnp.negative, jax.grad(mean)(control))
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(control, updates), state), None

    control = problem.params.recognition["control"]
    keys = jax.random.split(jax.random.key(0), 400)
    (learned, _), _ = jax.lax.scan(step, (control, optimizer.init(control)), keys)
    phi = problem.params.recognition | {"control": learned}
    after = problem.params._replace(recognition=phi)
    assert spread(after) < 0.3 * spread(problem.params)


def test_a_q_of_another_family_and_a_temperature_that_is_none_are_refused():
    model = problems.linear_gaussian().model
    with pytest.raises(ValueError, match="must be a factorial bernoulli"):
        relax.relax(model, network=SILENT, num_samples=2)
    with pytest.raises(ValueError, match=r"temperature .*0\.0"):
        relax.with_control(problems.binary_model().model, SILENT, temperature=0.0)
