import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests import problems
from vae_jax.evaluation import interpolation

TIMES = np.linspace(0.0, 1.0, 7)
A, B = np.array([1.0, 2.0, -0.5]), np.array([-0.3, 0.4, 2.0])


@pytest.mark.parametrize("path", [interpolation.linear, interpolation.spherical])
def test_a_path_starts_and_ends_at_its_ends(x64, path):
    got = path(jnp.asarray(A), jnp.asarray(B), jnp.asarray(TIMES))
    np.testing.assert_allclose(got[0], A, atol=1e-12)
    np.testing.assert_allclose(got[-1], B, atol=1e-12)


def test_the_straight_path_is_even(x64):
    got = interpolation.linear(jnp.asarray(A), jnp.asarray(B), jnp.asarray(TIMES))
    np.testing.assert_allclose(got, A + TIMES[:, None] * (B - A), rtol=1e-12)


def test_the_arc_turns_evenly_and_keeps_the_length_of_codes_of_one_length(x64):
    a, b = A / np.linalg.norm(A), B / np.linalg.norm(B)
    got = np.asarray(
        interpolation.spherical(jnp.asarray(a), jnp.asarray(b), jnp.asarray(TIMES))
    )
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), np.ones(7), rtol=1e-12)
    angle = np.arccos(a @ b)
    np.testing.assert_allclose(np.arccos(got[1:-1] @ a), angle * TIMES[1:-1], rtol=1e-9)
    omega = np.arccos(A @ B / np.linalg.norm(A) / np.linalg.norm(B))
    whole = interpolation.spherical(jnp.asarray(A), jnp.asarray(B), jnp.asarray(TIMES))
    expected = np.outer(np.sin((1 - TIMES) * omega), A) + np.outer(
        np.sin(TIMES * omega), B
    )
    np.testing.assert_allclose(whole, expected / np.sin(omega), rtol=1e-9)


@pytest.mark.parametrize(
    "end", [A, 3.0 * A, -A, np.zeros(3), A + 1e-9], ids=str
)  # no arc, or hardly any
def test_without_an_arc_the_path_is_straight(x64, end):
    ends = jnp.asarray(A), jnp.asarray(end), jnp.asarray(TIMES)
    np.testing.assert_allclose(
        interpolation.spherical(*ends), interpolation.linear(*ends), atol=1e-12
    )


@pytest.mark.slow
def test_the_arc_keeps_its_dtype_compiles_batches_and_differentiates():
    a, b, t = (jnp.asarray(v, jnp.float32) for v in (A, B, TIMES))
    got = jax.jit(jax.vmap(interpolation.spherical, (0, 0, None)))(
        jnp.stack([a, b]), jnp.stack([b, a]), t
    )
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[0], interpolation.spherical(a, b, t), rtol=1e-5)
    np.testing.assert_allclose(got[1], got[0][::-1], rtol=1e-4, atol=1e-5)
    with jax.enable_x64(True):
        arc = jax.jit(lambda a, b: interpolation.spherical(a, b, jnp.array([0.3, 0.8])))
        check_grads(arc, (jnp.asarray(A), jnp.asarray(B)), order=1, modes=("rev",))


def test_one_latent_moves_and_the_others_stay(x64):
    values = jnp.array([[-1.0, 0.0, 5.0], [7.0, 8.0, 9.0]])
    got = interpolation.along_latents(jnp.asarray(A), jnp.array([2, 0]), values)
    assert got.shape == (2, 3, 3)
    np.testing.assert_array_equal(got[0, :, 2], values[0])
    np.testing.assert_array_equal(got[1, :, 0], values[1])
    np.testing.assert_array_equal(got[0, :, :2], np.tile(A[:2], (3, 1)))
    np.testing.assert_array_equal(got[1, :, 1:], np.tile(A[1:], (3, 1)))


def test_values_span_the_width_of_the_prior_evenly(x64):
    problem = problems.linear_gaussian(num_latents=2)
    values = interpolation.prior_values(
        problem.generative, num_values=5, num_draws=40_000
    )
    got = jax.jit(values)(jax.random.key(0), problem.params)
    assert got.shape == (2, 5)
    # A percentile's standard error is sqrt(p (1 - p) / n) / density, 0.019 here.
    np.testing.assert_allclose(got[:, [0, -1]], [[-2.3263, 2.3263]] * 2, atol=0.1)
    np.testing.assert_allclose(np.diff(got, n=2), 0.0, atol=1e-9)
    with pytest.raises(ValueError, match="num_values must be positive, got 0"):
        interpolation.prior_values(problem.generative, num_values=0)


def test_codes_that_are_nearly_opposite_have_no_arc(x64):
    aside = np.cross(A, np.array([1.0, 0.0, 0.0]))
    for tilt in (1e-4, -1e-4):
        end = jnp.asarray(-A + tilt * aside / np.linalg.norm(aside))
        ends = jnp.asarray(A), end, jnp.asarray(TIMES)
        np.testing.assert_allclose(
            interpolation.spherical(*ends), interpolation.linear(*ends), atol=1e-12
        )
