"""Assertions shared by the tests."""

import jax
import numpy as np


def assert_mean_equals(samples, expected, *, max_z=5.0):
    """Fails if the mean of [N, ...] samples is more than max_z standard errors off.

    At max_z=5 a correct estimator fails about once in 1.7 million comparisons, and
    the seed is fixed, so a failure is a bug and never a flake.
    """
    leaves = jax.tree.leaves(samples), jax.tree.leaves(expected)
    for drawn, exact in zip(*leaves, strict=True):
        got, want = np.asarray(drawn, np.float64), np.asarray(exact, np.float64)
        error = got.std(0, ddof=1) / np.sqrt(got.shape[0])
        z = np.abs(got.mean(0) - want) / np.maximum(error, 1e-12 + 1e-9 * np.abs(want))
        assert z.max() < max_z, f"mean off by {z.max():.1f} standard errors"
