"""Stochastic gradient ascent on an objective, as an `Algorithm`."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from vae_jax.types import (
    Algorithm,
    Batch,
    Objective,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    clear_weightless,
    each_example,
)

Settings: TypeAlias = dict[str, Scalar]
Monitor: TypeAlias = Callable[[PRNGKey, Params, Array], dict[str, Scalar]]


class Skips(NamedTuple):
    """Steps that an ascent did not take, as their gradients were out of bounds.

    Attributes:
        total: of them, from the start on.
        in_a_row: of them, since the last step that was taken.
    """

    total: Int[Array, ""]
    in_a_row: Int[Array, ""]


class AscentState(NamedTuple):
    """Where an ascent stands.

    Attributes:
        params: theta and phi.
        opt_state: the optimizer's memory of them.
        step: steps made, those that were skipped among them.
        memory: the objective's own.
        average: of the parameters over the steps, where one is kept.
        skips: `Skips`, where steps may be skipped.
    """

    params: Params
    opt_state: Any
    step: Int[Array, ""]
    memory: PyTree = ()
    average: PyTree = ()
    skips: PyTree = ()


class AscentInfo(NamedTuple):
    """What one step reports, all before the update.

    Attributes:
        bound: the objective's value, nats per example.
        spread: its standard deviation over the batch.
        gradient_norm: before any clipping; -1 at the steps that skip it, as a NaN would
            stop a run that looks for them (`jax_debug_nans`).
        monitored: means over the batch, and what the objective logs.
        skips: the state's after the step, which was skipped where in_a_row is not 0.
    """

    bound: Scalar
    spread: Scalar
    gradient_norm: Scalar
    monitored: dict[str, Scalar]
    skips: PyTree = ()


def ascent(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    monitor: Monitor = lambda key, params, x: {},
    norm_every: int = 1,
    average_decay: float = 0.0,
    skip_norm: float = 0.0,
) -> Algorithm:
    r"""Maximizes the weighted mean $\sum_b w_b f_b / \sum_b w_b$ of each batch's nats.

    A row of weight 2 counts as two, and one of weight 0 as none, also where it holds
    NaN; a batch of no weight has no gradient.

    Args:
        objective: its gradient fits the model; `types.per_example` makes one of an
            estimator's function of one example.
        optimizer: any optax transformation, also one that needs `value`, `grad` and
            `value_fn`, which are of this batch and its noise; it is handed the
            gradient of minus the objective, as optax minimizes.
        monitor: (key, params, x) -> a dictionary of scalars to report, of one example.
            It gets the objective's own key, so it sees the same noise. What it computes
            as the objective does is computed once for both, but for the noise itself.
        norm_every: steps between two that report the gradient's norm. Reading every
            gradient once more is a tenth of a small step's time.
        average_decay: r of a moving average of the parameters, r average + (1 - r)
            params after each step, from the first parameters on; 0 keeps none.
        skip_norm: a step whose bound or gradient's norm is not finite, or whose norm is
            above this, leaves parameters, optimizer, memory and average as they are
            and is counted; inf skips for what is not finite alone, 0 skips nothing.
            Every step then reports the norm. (Child 2021, arXiv:2011.10650, skips so.)

    Raises:
        ValueError: if norm_every is below one, average_decay outside [0, 1), or
            skip_norm negative or NaN.

    Examples:
        >>> from vae_jax.types import per_example
        >>> def log_p(key, params, x):
        ...     return -0.5 * (x - params.generative["mean"]) ** 2
        >>> fit = ascent(per_example(log_p), optax.sgd(0.5))
        >>> state = fit.init(jax.random.key(0), Params({"mean": jnp.zeros(())}, ()))
        >>> batch = Batch(jnp.array([1.0, 3.0]), jnp.arange(2), jnp.ones(2))
        >>> for _ in range(20):
        ...     state, info = fit.step(jax.random.key(1), state, batch)
        >>> round(float(state.params.generative["mean"]), 3)
        2.0
    """
    if norm_every < 1:
        raise ValueError(f"norm_every must be positive, got {norm_every}")
    if not 0.0 <= average_decay < 1.0:
        raise ValueError(f"average_decay must lie in [0, 1), got {average_decay}")
    if not skip_norm >= 0.0:
        raise ValueError(f"skip_norm must not be negative, got {skip_norm}")
    optimizer = optax.with_extra_args_support(optimizer)

    def init(key: PRNGKey, start: Params) -> AscentState:
        del key
        zero = jnp.zeros((), jnp.int32)
        average = jax.tree.map(jnp.copy, start) if average_decay else ()
        skips = Skips(zero, zero) if skip_norm else ()
        return AscentState(
            start, optimizer.init(start), zero, objective.init(start), average, skips
        )

    def step(
        key: PRNGKey, state: AscentState, batch: Batch
    ) -> tuple[AscentState, AscentInfo]:
        batch = clear_weightless(batch)

        def negative(params: Params) -> tuple[Scalar, tuple]:
            nats, memory, logged = objective.value(key, params, state.memory, batch)
            mean, spread = weighted_moments(nats, batch.weight)
            return -mean, (spread, memory, logged)

        def loss_alone(params: Params) -> Scalar:
            nats, _, _ = objective.value(
                jax.random.clone(key), params, state.memory, batch
            )
            return -weighted_moments(nats, batch.weight)[0]

        (loss, (spread, memory, logged)), grads = jax.value_and_grad(
            negative, has_aux=True
        )(state.params)
        each = each_example(monitor)(jax.random.clone(key), state.params, batch.x)
        monitored = {
            name: weighted_moments(values, batch.weight)[0]
            for name, values in each.items()
        }
        norm = jax.lax.cond(
            state.step % (1 if skip_norm else norm_every) == 0,
            lambda: optax.tree.norm(grads),
            lambda: -jnp.ones((), loss.dtype),
        )
        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            state.params,
            value=loss,
            grad=grads,
            value_fn=loss_alone,
        )
        params = cast(Params, optax.apply_updates(state.params, updates))
        params = objective.project(params, memory)
        average = jax.tree.map(
            # In this form what does not move is its own average, bit for bit.
            lambda old, new: old + (1.0 - average_decay) * (new - old),
            state.average,
            params if average_decay else (),
        )
        new = AscentState(params, opt_state, state.step + 1, memory, average)
        if skip_norm:
            is_taken = jnp.isfinite(loss) & jnp.isfinite(norm) & (norm <= skip_norm)
            new = _unless_skipped(is_taken, new, state)
        info = AscentInfo(-loss, spread, norm, monitored | logged, new.skips)
        return new, info

    return Algorithm(init, step)


def _unless_skipped(
    is_taken: Bool[Array, ""], new: AscentState, old: AscentState
) -> AscentState:
    """The new state, or the old one with the step counted as skipped."""
    chosen = jax.tree.map(
        lambda after, before: jnp.where(is_taken, after, before),
        new._replace(skips=()),
        old._replace(skips=(), step=new.step),
    )
    total, in_a_row = old.skips
    return chosen._replace(
        skips=Skips(
            jnp.where(is_taken, total, total + 1), jnp.where(is_taken, 0, in_a_row + 1)
        )
    )


def weighted_moments(
    values: Float[Array, " B"], weight: Float[Array, " B"]
) -> tuple[Scalar, Scalar]:
    """The mean and standard deviation of rows that count as often as they weigh.

    Both are zero where no row weighs anything. What a row of weight 0 has is not read.
    """
    weight = weight.astype(values.dtype)
    values = jnp.where(weight == 0.0, 0.0, values)
    total = weight.sum()
    total = jnp.where(total > 0.0, total, 1.0)
    mean = (weight * values).sum() / total
    return mean, jnp.sqrt((weight * (values - mean) ** 2).sum() / total)


def scheduled(
    build: Callable[[Settings], Objective],
    settings: Callable[[Int[Array, ""]], Settings],
) -> Objective:
    """An objective whose numbers change from step to step; it remembers the steps.

    Args:
        build: settings -> objective without a memory, called inside the traced step,
            so that a KL warm-up is `lambda s: per_example(sgvb_b(...,
            beta=s["beta"]))`.
        settings: the number of steps taken -> the step's settings.
    """

    def value(
        key: PRNGKey, params: Params, memory: Int[Array, ""], batch: Batch
    ) -> tuple[Array, Int[Array, ""], dict[str, Scalar]]:
        objective = build(settings(memory))
        nats, _, logged = objective.value(key, params, (), batch)
        return nats, memory + 1, logged

    return Objective(lambda params: jnp.zeros((), jnp.int32), value)


def climb(
    function: Callable[[PyTree], Scalar],
    optimizer: optax.GradientTransformation,
    point: PyTree,
    memory: PyTree,
    *,
    num_updates: int,
) -> tuple[PyTree, PyTree, Float[Array, " K"], Float[Array, " K"]]:
    """Raises a function without noise by an optimizer's updates, one after the other.

    The optimizer gets `value`, `grad` and `value_fn` too, of the negative.

    Args:
        function: a point -> a number, the greater the better.
        optimizer: of the point, any optax transformation.
        point: where to begin.
        memory: the optimizer's state there.
        num_updates: K.

    Returns:
        The point and the optimizer's state behind the last update, and before each the
        function's value and the norm of its gradient.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def negative(point: PyTree) -> Scalar:
        return -function(point)

    def update(
        carry: tuple[PyTree, PyTree], _: None
    ) -> tuple[tuple[PyTree, PyTree], tuple[Scalar, Scalar]]:
        point, memory = carry
        loss, grads = jax.value_and_grad(negative)(point)
        updates, memory = optimizer.update(
            grads, memory, point, value=loss, grad=grads, value_fn=negative
        )
        return (optax.apply_updates(point, updates), memory), (
            -loss,
            optax.tree.norm(grads),
        )

    (point, memory), (values, norms) = jax.lax.scan(
        update, (point, memory), length=num_updates
    )
    return point, memory, values, norms


def of_theta(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `params.generative` alone; phi stays as it is.

    Weight decay in the optimizer, or a prior that is a function of the encoder
    (`vae.with_vamp_prior`), would move phi too. Like `ascent` it hands on `value`,
    `grad` and `value_fn`, as functions of theta.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        return inner.init(params.generative)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        grad: Any = None,
        value_fn: Callable[[Params], Scalar] | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        theta, phi = (None, None) if params is None else params
        if grad is not None:
            extra["grad"] = grad.generative
        if value_fn is not None:
            extra["value_fn"] = lambda theta: value_fn(Params(theta, phi))
        moved, state = inner.update(updates.generative, state, theta, **extra)
        still = jax.tree.map(jnp.zeros_like, updates.recognition)
        return Params(moved, still), state

    return optax.GradientTransformationExtraArgs(init, update)


def of_phi(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer of `params.recognition` alone; theta stays as it is."""
    return optax.partition(
        {"theta": optax.set_to_zero(), "phi": optimizer}, Params("theta", "phi")
    )


def adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    decoupled_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam, or AdamW, with the bias corrections folded into two scalars.

    Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1 in the order of computation that the
    end of its section 2 gives: `optax.adam` to rounding, with one division per weight
    where that has three, which is an eighth of the time of the AEVB step on a CPU.

    Args:
        learning_rate: the step size, or its schedule.
        b1: decay of the gradient's moving average.
        b2: decay of its square's.
        eps: added to the denominator.
        decoupled_decay: times the step size, the share of every parameter, biases
            too, that a step takes away beside Adam's own move (AdamW, Loshchilov &
            Hutter 2019, arXiv:1711.05101).

    Raises:
        ValueError: if decoupled_decay is negative or NaN.
    """
    if not decoupled_decay >= 0.0:
        raise ValueError(f"decoupled_decay must not be negative, got {decoupled_decay}")

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        moments = zeros, jax.tree.map(jnp.copy, zeros)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), *moments)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1.0 - b2) * g**2, state.nu, updates)
        count = state.count + 1
        # 1 - b^t without its cancellation; b itself is rounded as the parameters are.
        steps = count.astype(jnp.result_type(float))
        correction = jnp.sqrt(-jnp.expm1(steps * jnp.log(b2)))
        scale = correction / -jnp.expm1(steps * jnp.log(b1))

        def scaled(m: Array, v: Array) -> Array:
            floor = eps * correction.astype(v.dtype)
            return scale.astype(m.dtype) * m / (jnp.sqrt(v) + floor)

        moved = jax.tree.map(scaled, mu, nu)
        return moved, optax.ScaleByAdamState(count, mu, nu)

    scale_by_adam = optax.GradientTransformation(init, update)
    rate = _promoting(learning_rate) if callable(learning_rate) else learning_rate
    decay = [optax.add_decayed_weights(decoupled_decay)] if decoupled_decay else []
    return optax.chain(scale_by_adam, *decay, optax.scale_by_learning_rate(rate))


def _promoting(schedule: optax.Schedule) -> optax.Schedule:
    """The schedule under JAX's own promotion of types.

    Optax's compare the count with floats, which `strict` refuses.
    """

    def rate(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        with jax.numpy_dtype_promotion("standard"):
            return schedule(count)

    return rate
