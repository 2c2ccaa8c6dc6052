"""Strict JAX for every test: no silent promotion, no reused keys, four devices."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(autouse=True)
def _dtype_promotion(request):
    """Strict, except where optax runs: its Adam raises a float to an int32 power."""
    relaxed = request.node.get_closest_marker("uses_optax")
    with jax.numpy_dtype_promotion("standard" if relaxed else "strict"):
        yield


@pytest.fixture
def x64():
    """Runs a test in double precision, for comparisons with exact oracles."""
    with jax.enable_x64(True):
        yield


def pytest_addoption(parser):
    parser.addoption(
        "--data_dir",
        default=None,
        help="folder with the original data files; tests on real data skip without it",
    )


@pytest.fixture
def data_dir(request):
    """The folder of original data files, or a skip that says what is missing."""
    path = request.config.getoption("--data_dir")
    if path is None:
        pytest.skip("no --data_dir: tests on the original data files do not run")
    return path
