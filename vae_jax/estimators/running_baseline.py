"""Score-function objectives whose baseline and scale are running averages."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Int

from vae_jax import numerics
from vae_jax.types import Batch, Objective, Params, PRNGKey, Scalar


class Averages(NamedTuple):
    """Decayed sums over the batches so far, without those of no weight.

    Attributes:
        mean: of the batches' mean values.
        square: of the values' squares about their decayed mean; those about zero would
            lose the digits of a spread that is small beside it.
        step: batches seen.
    """

    mean: Scalar
    square: Scalar
    step: Int[Array, ""]


def running_baseline(
    build: Callable[[Scalar, Scalar], Objective],
    *,
    decay: float = 0.9,
    normalize: bool = True,
) -> Objective:
    """The objective build(baseline, scale), with both numbers kept from step to step.

    The baseline is the decayed mean of the objective's value over the batches so far,
    and the scale, with `normalize`, the larger of 1 and the values' decayed standard
    deviation over examples: after Mnih & Gregor 2014 (arXiv:1402.0030), sections 2.3.1
    and 2.3.2, who take the deviation of what a learned baseline leaves. Neither sees
    the batch it is used on, so the gradient keeps its expectation, divided by the
    scale.

    Args:
        build: baseline and scale -> objective without a memory, for example `lambda b,
            s: per_example(score_function(model, baseline=b, scale=s, ...))`. Both are
            traced; the value must be the mean log weight.
        decay: share of the past that each step keeps.
        normalize: whether to divide by the standard deviation.

    Raises:
        ValueError: if decay does not lie in [0, 1).
    """
    numerics.check_in("[0, 1)", decay=decay)

    def init(params: Params) -> Averages:
        del params
        zero = jnp.zeros(())
        return Averages(zero, zero, jnp.zeros((), jnp.int32))

    def value(
        key: PRNGKey, params: Params, memory: Averages, batch: Batch
    ) -> tuple[Array, Averages, dict[str, Scalar]]:
        objective = build(*_baseline_and_scale(memory, decay, normalize=normalize))
        nats, _, logged = objective.value(key, params, (), batch)
        seen = stop_gradient(nats)
        weight = batch.weight.astype(seen.dtype)
        total = weight.sum()
        share = weight / jnp.where(total > 0.0, total, 1.0)
        mean = (share * seen).sum()
        # Chan, Golub & LeVeque 1983: of those before and this batch together.
        before, after = (
            _weight(step, decay) for step in (memory.step, memory.step + 1)
        )
        between = decay * before / after * (mean - _mean(memory, decay)) ** 2
        spread = (share * (seen - mean) ** 2).sum() + between
        averages = Averages(
            decay * memory.mean + (1.0 - decay) * mean,
            decay * memory.square + (1.0 - decay) * spread,
            memory.step + 1,
        )
        memory = jax.tree.map(
            lambda new, old: jnp.where(total > 0.0, new, old), averages, memory
        )
        return nats, memory, logged

    return Objective(init, value)


def _baseline_and_scale(
    memory: Averages, decay: float, *, normalize: bool
) -> tuple[Scalar, Scalar]:
    """Of the steps before; 0 and 1 at the first."""
    baseline = _mean(memory, decay)
    if not normalize:
        return baseline, jnp.ones_like(baseline)
    variance = memory.square / _weight(jnp.maximum(memory.step, 1), decay)
    return baseline, jnp.maximum(jnp.sqrt(variance), 1.0)


def _mean(memory: Averages, decay: float) -> Scalar:
    """Of the batches before; 0 without one, where the sum is."""
    return memory.mean / _weight(jnp.maximum(memory.step, 1), decay)


def _weight(step: Int[Array, ""], decay: float) -> Scalar:
    """What all batches before that step weigh in the decayed sums."""
    return 1.0 - decay ** step.astype(jnp.result_type(float))
