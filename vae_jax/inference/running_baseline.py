"""Score-function ascent whose baseline and scale are running averages."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax.numpy as jnp
import optax

from vae_jax.training import gradient
from vae_jax.types import (
    Algorithm,
    Batch,
    Objective,
    Params,
    PRNGKey,
    Scalar,
)


class BaselineState(NamedTuple):
    """The ascent's state, and decayed sums of the objective's values and squares."""

    ascent: gradient.AscentState
    mean: Scalar
    square: Scalar

    @property
    def params(self) -> Params:
        """The parameters, where an ascent's state has them."""
        return self.ascent.params


def running_baseline(
    build: Callable[[Scalar, Scalar], Objective],
    optimizer: optax.GradientTransformation,
    *,
    decay: float = 0.9,
    normalize: bool = True,
    monitor: gradient.Monitor = lambda key, params, x: {},
    norm_every: int = 1,
) -> Algorithm:
    """Ascent on build(baseline, scale), with both numbers kept from step to step.

    The baseline is the decayed mean of the objective's value over the batches so far,
    and the scale, with `normalize`, the larger of 1 and the values' decayed standard
    deviation over examples: after Mnih & Gregor 2014 (arXiv:1402.0030), sections 2.3.1
    and 2.3.2, who take the deviation of what a learned baseline leaves. Neither sees
    the batch it is used on, so the gradient keeps its expectation, divided by the
    scale.

    Args:
        build: baseline and scale -> objective, for example `lambda b, s:
            score_function(generative, recognition, baseline=b, scale=s, ...)`. Both
            are traced; the value must be the mean log weight.
        optimizer: any optax transformation.
        decay: share of the past that each step keeps.
        normalize: whether to divide by the standard deviation.
        monitor: as in `gradient.ascent`.
        norm_every: as in `gradient.ascent`.

    Raises:
        ValueError: if decay does not lie in [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must lie in [0, 1), got {decay}.")

    def ascent(objective: Objective) -> Algorithm:
        return gradient.ascent(
            objective, optimizer, monitor=monitor, norm_every=norm_every
        )

    def init(key: PRNGKey, start: Params) -> BaselineState:
        zero = jnp.zeros(())
        inner = ascent(build(zero, jnp.ones(()))).init(key, start)
        return BaselineState(inner, zero, zero)

    def step(
        key: PRNGKey, state: BaselineState, batch: Batch
    ) -> tuple[BaselineState, gradient.AscentInfo]:
        objective = build(*_baseline_and_scale(state, decay, normalize=normalize))
        inner, info = ascent(objective).step(key, state.ascent, batch)
        mean = decay * state.mean + (1.0 - decay) * info.bound
        values = info.bound**2 + info.spread**2  # their mean square
        square = decay * state.square + (1.0 - decay) * values
        return BaselineState(cast(gradient.AscentState, inner), mean, square), info

    return Algorithm(init, step)


def _baseline_and_scale(
    state: BaselineState, decay: float, *, normalize: bool
) -> tuple[Scalar, Scalar]:
    """Of the steps before; 0 and 1 at the first."""
    weight = 1.0 - decay ** state.ascent.step.astype(state.mean.dtype)
    weight = jnp.maximum(weight, 1.0 - decay)  # at the first step the sums are zero
    baseline = state.mean / weight
    if not normalize:
        return baseline, jnp.ones_like(baseline)
    variance = jnp.maximum(state.square / weight - baseline**2, 0.0)
    return baseline, jnp.maximum(jnp.sqrt(variance), 1.0)
