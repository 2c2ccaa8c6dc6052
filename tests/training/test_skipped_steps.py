"""Steps that an ascent skips, as their gradients are not finite or too large."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_jax.training import gradient
from vae_jax.types import Batch, Objective, Params

pytestmark = pytest.mark.uses_optax
GOOD, BAD, NORM_2 = 1.0, math.nan, 2.0


def _value(key, params, memory, batch):
    """An objective whose gradient is x, and which counts its batches."""
    del key
    nats = jax.vmap(lambda x: (params.generative["w"] * x).sum())(batch.x)
    return nats, memory + 1, {}


_COUNTING = Objective(lambda params: jnp.zeros((), jnp.int32), _value)
_START = Params({"w": jnp.array([1.0])}, {"v": jnp.array(3.0)})


def _ascent(**arguments):
    return gradient.ascent(
        _COUNTING, optax.adam(0.1), average_decay=0.5, norm_every=3, **arguments
    )


def _steps(fit, gradients):
    state, infos = fit.init(jax.random.key(0), _START), []
    for i, x in enumerate(gradients):
        batch = Batch(jnp.full((2, 1), x), jnp.arange(2), jnp.ones(2))
        state, info = jax.jit(fit.step)(jax.random.key(i), state, batch)
        infos.append(info)
    return state, infos


@pytest.mark.slow
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_skipped_step_is_as_if_it_had_not_been_but_for_its_count(bad):
    fit = _ascent(skip_norm=math.inf)
    after, infos = _steps(fit, [GOOD, bad, bad, GOOD, bad])
    without, _ = _steps(fit, [GOOD, GOOD])
    chex.assert_trees_all_equal(
        after._replace(step=0, skips=()), without._replace(step=0, skips=())
    )
    assert after.memory == 2
    assert (after.step, after.skips.total, after.skips.in_a_row) == (5, 3, 1)
    assert [int(info.skips.total) for info in infos] == [0, 1, 2, 2, 3]
    assert [int(info.skips.in_a_row) for info in infos] == [0, 1, 2, 0, 1]


def test_a_step_is_skipped_above_the_norm_and_taken_at_it():
    _, infos = _steps(_ascent(skip_norm=2.0), [GOOD, NORM_2, 2.0001, GOOD])
    assert [int(info.skips.in_a_row) for info in infos] == [0, 0, 1, 0]
    norms = [float(info.gradient_norm) for info in infos]  # of every step
    np.testing.assert_allclose(norms, [1.0, 2.0, 2.0001, 1.0], rtol=1e-6)


@pytest.mark.slow
def test_a_step_that_is_never_skipped_is_the_step_without_skipping():
    skipping, _ = _steps(_ascent(skip_norm=math.inf), [GOOD, NORM_2, GOOD])
    plain, infos = _steps(_ascent(), [GOOD, NORM_2, GOOD])
    chex.assert_trees_all_equal(skipping._replace(skips=()), plain)
    assert plain.skips == infos[-1].skips == ()


def test_a_program_that_skips_nothing_looks_at_no_gradient():
    batch = Batch(jnp.ones((2, 1)), jnp.arange(2), jnp.ones(2))
    texts = []
    for fit in (_ascent(), _ascent(skip_norm=math.inf)):
        state = fit.init(jax.random.key(0), _START)
        texts.append(str(jax.make_jaxpr(fit.step)(jax.random.key(1), state, batch)))
    assert [text.count("is_finite") for text in texts] == [1, 3]  # one is the batch's


@pytest.mark.slow
def test_runs_side_by_side_each_skip_on_their_own():
    fit = _ascent(skip_norm=math.inf)

    def run(gradients):
        def step(state, x):
            batch = Batch(jnp.full((2, 1), x), jnp.arange(2), jnp.ones(2))
            return fit.step(jax.random.key(1), state, batch)

        state = fit.init(jax.random.key(0), _START)
        return jax.lax.scan(step, state, gradients)[0]

    rows = jnp.array([[GOOD, BAD, GOOD], [GOOD, GOOD, GOOD], [BAD, BAD, BAD]])
    together = jax.jit(jax.vmap(run))(rows)
    np.testing.assert_array_equal(together.skips.total, [1, 0, 3])
    np.testing.assert_array_equal(together.skips.in_a_row, [0, 0, 3])
    for i, row in enumerate(rows):
        alone = run(row)
        np.testing.assert_allclose(
            together.params.generative["w"][i], alone.params.generative["w"], rtol=1e-6
        )
    np.testing.assert_array_equal(
        together.params.generative["w"][2], _START.generative["w"]
    )


@pytest.mark.parametrize("norm", [-1.0, math.nan])
def test_a_norm_that_none_can_be_above_is_refused(norm):
    with pytest.raises(ValueError, match="skip_norm must not be negative"):
        _ascent(skip_norm=norm)
