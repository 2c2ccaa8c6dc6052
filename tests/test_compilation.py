"""Programs with what XLA's compiler for CPUs has to be asked for."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import sources
from vae_jax import compilation, convolutional


@pytest.fixture
def asked_anew():
    """() -> what the compiler is asked for, which is otherwise asked once."""
    if jax.default_backend() != "cpu":
        pytest.skip("only the CPU's compiler is asked for anything")

    def options():
        compilation._options.cache_clear()
        return compilation._options()

    yield options
    compilation._options.cache_clear()


def _square(x, *, scale=1.0):
    return scale * x**2


def test_a_program_is_the_function_alone_and_inside_others():
    x = jnp.arange(3.0)
    program = compilation.program(_square)
    np.testing.assert_array_equal(program(x, scale=2.0), [0.0, 2.0, 8.0])
    np.testing.assert_array_equal(jax.jit(program)(x), [0.0, 1.0, 4.0])
    np.testing.assert_array_equal(jax.vmap(program)(x), [0.0, 1.0, 4.0])
    assert jax.grad(program)(2.0) == 4.0
    np.testing.assert_array_equal(jax.jit(lambda: program(np.ones(2)))(), [1.0, 1.0])


def test_a_donated_argument_is_gone_afterwards():
    x = jnp.arange(3.0)
    compilation.program(lambda a, b: a + b, donate=1)(1.0, x)
    assert x.is_deleted()
    x = jnp.arange(3.0)
    compilation.program(lambda a, b: a + b)(1.0, x)
    assert not x.is_deleted()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="asked of CPUs alone")
@pytest.mark.parametrize("num_devices", [1, 2])
def test_convolutions_use_all_cores_of_a_lone_device(
    asked_anew, monkeypatch, num_devices
):
    # As a part of a YNNPACK fusion they would run on one. Beside other devices XLA's
    # kernels give wrong numbers.
    monkeypatch.setattr(jax, "local_device_count", lambda: num_devices)
    asked_anew()
    kernel, x = jnp.ones((3, 3, 32, 32)), jnp.ones((100, 7, 7, 32))

    def convolve(x):
        return jax.vmap(convolutional.convolve, (None, 0))(kernel, x)

    def is_fused(program):
        text = program.lower(x).compile().as_text()
        assert " convolution(" in text
        return "ynn_fusion" in text

    if not is_fused(jax.jit(convolve)):
        pytest.skip("this compiler hands no convolution to YNNPACK")
    assert is_fused(compilation.whole(convolve)) == (num_devices > 1)


def test_an_option_that_the_environment_sets_is_left_to_it(asked_anew, monkeypatch):
    name = "xla_backend_optimization_level"
    monkeypatch.setenv("XLA_FLAGS", "")
    assert name in asked_anew()
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=0")
    assert name not in asked_anew()


def test_an_option_that_the_compiler_does_not_know_is_left_out(asked_anew, monkeypatch):
    assert asked_anew()
    monkeypatch.setattr(compilation, "_is_known", lambda name, value: False)
    assert asked_anew() == {}
    monkeypatch.undo()
    assert not compilation._is_known("xla_cpu_no_such_option", True)


def test_importing_starts_no_backend():
    # The processes of one run have to join before anything else of JAX.
    every = [".".join(sources.parts(p)) for p in (*sources.MODULES, *sources.SCRIPTS)]
    names = [name for name in every if not name.startswith("experiments.benchmark")]
    # JAX refuses the number of devices once it has them.
    update = "import jax\njax.config.update('jax_num_cpu_devices', 3)"
    program = f"import {', '.join(names)}\n{update}\nprint(jax.local_device_count())"
    env = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=sources.ROOT,
        env=env | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["3"]
