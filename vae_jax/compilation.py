"""`jax.jit`, with what XLA's compiler for CPUs has to be asked for."""

import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Sharding

P = ParamSpec("P")
T = TypeVar("T")


def program(
    run: Callable[P, T],
    *,
    donate: int | None = None,
    layout: Sharding | None = None,
) -> Callable[P, T]:
    """`run` as a program of its own, or as a part of the one that is being traced.

    A compiler's options and donation belong to whole programs: `jit` refuses to be
    nested with the first.

    Args:
        run: from arrays to arrays.
        donate: the position of an argument whose memory the result may take.
        layout: of all results.
    """
    part = jax.jit(run, out_shardings=layout)

    @cache  # at the first call: to ask for options is to start the backend
    def alone() -> Callable[P, T]:
        return whole(run, donate=donate, layout=layout)

    @wraps(run)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        # A fresh zero is traced inside `jit` where every argument is a constant.
        values = jax.tree.leaves((args, kwargs, jnp.zeros(())))
        nested = any(isinstance(value, Tracer) for value in values)
        return (part if nested else alone())(*args, **kwargs)

    return call


def whole(
    run: Callable[P, T],
    *,
    donate: int | None = None,
    layout: Sharding | None = None,
) -> jax.stages.Wrapped:
    """What `program` runs outside of others: to be lowered and compiled by hand."""
    return jax.jit(
        run,
        donate_argnums=() if donate is None else donate,
        out_shardings=layout,
        compiler_options=_options(),
    )


@cache
def _options() -> dict[str, Any]:
    """Options of XLA's CPU compiler, those that it knows; of another, none.

    What the environment's XLA_FLAGS set stays as it is there.

    A weight that the backward pass reads, and the update then overwrites in place, is
    copied first at every step unless copies are placed by the order of a whole region.

    YNNPACK computes a convolution on one core. XLA's kernels beside it use all that a
    device has, so where a process has one device, YNNPACK keeps only products. Where
    it has several, those kernels are faulty in programs that run on more than one of
    them: with jaxlib 0.10.2 the first images of a batch come out wrong in long loops.

    LLVM's third level of optimization takes several times as long as its second over
    the rounds of threefry, and what it makes of any program is no faster.
    """
    if jax.default_backend() != "cpu":
        return {}
    wanted = {
        "xla_cpu_copy_insertion_use_region_analysis": True,
        "xla_backend_optimization_level": 2,
    }
    if jax.local_device_count() == 1:
        wanted["xla_cpu_experimental_ynn_fusion_type"] = "LIBRARY_FUSION_TYPE_DOT"
    flags = os.environ.get("XLA_FLAGS", "")
    return {
        name: value
        for name, value in wanted.items()
        if name not in flags and _is_known(name, value)
    }


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
