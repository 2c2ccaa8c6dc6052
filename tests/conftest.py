"""Strict JAX for every test: no silent promotion, no reused keys, eight devices."""

import os
import shutil
import tempfile

import jax
import pytest
from jax._src.interpreters import mlir

# Most of the suite's time is compilation, and many tests compile the same programs.
# The environment hands the cache on to the workers and to subprocesses.
# LLVM's optimizations are most of compiling and pay off in long runs only; so do XLA's
# fusion emitters and code generation in parallel parts (a later jaxlib may not know the
# flags, and unknown ones abort). XLA's own passes stay as they are.
# `XLA_FLAGS= pytest` runs the machine code of users.
QUICK_CODE = "--xla_backend_optimization_level=0"
if jax.__version__.startswith("0.10."):
    QUICK_CODE += " --xla_cpu_use_fusion_emitters=false"
    QUICK_CODE += " --xla_cpu_parallel_codegen_split_count=1"
    # One context of MLIR for all programs: to make one is a fifth of a small program.
    _CONTEXT = mlir.make_ir_context()
    mlir.make_ir_context = lambda: _CONTEXT
os.environ.setdefault("XLA_FLAGS", QUICK_CODE)
CACHE = "JAX_COMPILATION_CACHE_DIR"
OWNS_CACHE = "PYTEST_XDIST_WORKER" not in os.environ
if OWNS_CACHE:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="vae_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_num_cpu_devices", 8)
# Where in the source each operation stands: 8% of the suite's time, and only profilers
# read it. Tracebacks of Python stay whole.
jax.config.update("jax_traceback_in_locations_limit", 0)


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


def pytest_unconfigure():
    """Removes the compilation cache of this run."""
    if OWNS_CACHE:
        shutil.rmtree(os.environ[CACHE], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Refuses names of tests that differ from process to process: workers share them.

    Raises:
        UsageError: naming the first that holds an address.
    """
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"give ids to the parameters of {item.nodeid}")
