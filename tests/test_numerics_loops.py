"""Loops of `numerics` inside `jax.shard_map`, where constants do not vary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import numerics


def _over_two_devices(function, *arrays):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.P("rows")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split))(
        *arrays
    )


@pytest.mark.parametrize("num_steps", [0, 3])
def test_a_scan_over_devices_starts_from_constants(num_steps):
    """What varies reaches the sum in the first step, and the sum before it next."""

    def function(x):
        def step(carry, t):
            _, total, count = carry
            return (total, total + x * t, count + 1), total

        start = jnp.zeros(1), jnp.full(1, -2.0), jnp.zeros((), jnp.int32)
        steps = jnp.arange(num_steps, dtype=float)
        carry, totals = numerics.scan(step, start, steps)
        assert not jnp.shape(carry[2])
        return carry[0], carry[1], totals.sum(0), carry[2] + jnp.zeros(1, jnp.int32)

    got = _over_two_devices(function, jnp.array([1.0, 10.0]))
    wanted = {
        0: ([0.0, 0.0], [-2.0, -2.0], [0.0, 0.0], [0, 0]),
        3: ([-1.0, 8.0], [1.0, 28.0], [-5.0, 4.0], [3, 3]),
    }[num_steps]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_scan_takes_its_number_of_steps_and_its_direction():
    steps = jnp.array([1.0, 2.0, 3.0])

    def step(carry, x):
        return 10.0 * carry + x, None

    assert numerics.scan(step, jnp.zeros(()), steps, reverse=True)[0] == 321.0
    double = numerics.scan(lambda c, _: (2.0 * c, None), jnp.ones(()), None, length=4)
    assert double[0] == 16.0


def test_a_while_loop_over_devices_starts_from_constants():
    def function(x):
        def step(at):
            return at[0] + x, at[1] + 1, at[0] + x > 5.0

        start = jnp.zeros(1), jnp.zeros((), jnp.int32), jnp.zeros(1, bool)
        end = numerics.while_loop(lambda at: ~at[2].any(), step, start)
        return end[0], end[1][None] + 0 * x.astype(jnp.int32)

    total, count = _over_two_devices(function, jnp.array([1.0, 4.0]))
    np.testing.assert_array_equal(total, [6.0, 8.0])
    np.testing.assert_array_equal(count, [6, 2])


@pytest.mark.parametrize(
    "reduce", [numerics.sum_over_binary, numerics.log_sum_exp_over_binary]
)
def test_sums_over_bits_are_the_same_over_devices(reduce):
    def function(x):
        return jax.vmap(
            lambda x: reduce(lambda z: x * z.sum(), num_bits=3, chunk_size=2)
        )(x)

    x = jnp.array([1.0, 2.0])
    got = _over_two_devices(function, x)
    np.testing.assert_allclose(got, function(x), rtol=1e-6)
