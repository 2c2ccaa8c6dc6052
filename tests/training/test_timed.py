import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.training import loop, timed
from vae_jax.types import Algorithm, Batch

DATA = jnp.arange(6.0)


def take(key, data, index):
    del key
    return Batch(data[index], index, jnp.ones(index.shape))


def order(scan):
    """Two epochs of two steps of three rows; the number of the scan comes first."""
    rows = (jnp.arange(6) + scan) % 6
    return jnp.concatenate([rows.reshape(2, 3), rows.reshape(2, 3)])


TOTAL = Algorithm(
    init=lambda key, start: start,
    step=lambda key, state, batch: (state + batch.x.sum(), {"x": batch.x}),
)


def curve(points, measure=lambda total: {"total": float(total)}):
    start = loop.start(jax.random.key(0), TOTAL, jnp.zeros(()))
    return timed.curve(
        start,
        TOTAL,
        DATA,
        take=take,
        order=order,
        epochs_per_scan=2,
        points=points,
        measure=measure,
    )


def test_a_curve_is_measured_at_its_points_of_a_single_training():
    state, results = curve((2, 6))
    assert results["epoch"] == [2, 6]
    np.testing.assert_allclose(results["total"], [30.0, 90.0])
    assert int(state.step) == 12
    np.testing.assert_allclose(state.inner, 90.0)


@pytest.mark.slow
def test_the_clock_leaves_out_what_measures():
    def slow(total):
        time.sleep(0.5)
        return {"total": float(total)}

    _, results = curve((2, 4, 6), slow)
    assert results["seconds"] == sorted(results["seconds"])
    assert 0.0 < results["seconds"][-1] < 0.5


@pytest.mark.parametrize("points", [(), (3,), (2, 5), (0, 2), (-2,)])
def test_points_between_two_scans_are_refused(points):
    with pytest.raises(ValueError, match="points must be multiples of epochs_per_scan"):
        curve(points)
