"""From the name of an estimator, and the flags that it reads, to an objective."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from experiments.choices.config import Config
from vae_jax import divergences, networks
from vae_jax.estimators import (
    disarm,
    importance,
    multiply_weighted,
    regularized,
    relaxed,
    score_function,
    sgvb,
    wake_sleep,
)
from vae_jax.inference import running_baseline
from vae_jax.training import gradient
from vae_jax.types import (
    Algorithm,
    Generative,
    Network,
    Objective,
    Params,
    Recognition,
    Scalar,
)

Pair: TypeAlias = tuple[Generative, Recognition]
KL: TypeAlias = Callable[[Params, Array], Scalar]  # params, h -> nats
Build: TypeAlias = Callable[[gradient.Settings], Objective]

WITH_RUNNING_BASELINE = ("running_baseline", "nvil")
BASELINE_UNITS = 100
BUILDERS: dict[str, Callable[..., Objective]] = {
    "sgvb_a": sgvb.sgvb_a,
    "sgvb_b": sgvb.sgvb_b,
    "free_bits": regularized.free_bits,
    "capacity": regularized.capacity,
    "iwae": importance.iwae,
    "stick_the_landing": importance.stick_the_landing,
    "dreg": importance.dreg,
    "ciwae": importance.ciwae,
    "renyi": importance.renyi,
    "jackknife": importance.jackknife,
    "miwae": multiply_weighted.miwae,
    "piwae": multiply_weighted.piwae,
    "score_function": score_function.score_function,
    "running_baseline": score_function.score_function,
    "leave_one_out": score_function.leave_one_out,
    "nvil": score_function.nvil,
    "vimco": score_function.vimco,
    "wake_sleep": wake_sleep.wake_sleep,
    "reweighted_wake_sleep": wake_sleep.reweighted_wake_sleep,
    "straight_through": relaxed.straight_through,
    "binary_concrete": relaxed.binary_concrete,
    "disarm": disarm.disarm,
}


def builder(
    config: Config,
    pair: Pair,
    *,
    kl: KL | None,
    network: Network | None,
    num_data: int,
    weight_decay: float = 0.0,
) -> Build:
    """settings of a step -> the objective that the flags ask for.

    Args:
        config: the flags.
        pair: the joint and q.
        kl: KL(q || prior) in closed form, which relaxed estimators need.
        network: the baseline that nvil learns.
        num_data: rows of the training split, for the prior on theta.
        weight_decay: the precision of that prior; none at 0.

    Raises:
        ValueError: where a number does not fit the estimator.
    """

    def build(settings: gradient.Settings) -> Objective:
        own = _arguments(config, settings, kl, network)
        objective = BUILDERS[config.gradient](
            *pair, num_samples=config.num_samples, **own
        )
        if not weight_decay:
            return objective
        return sgvb.with_normal_prior_on_theta(
            objective, num_data=num_data, weight_decay=weight_decay
        )

    # Once here, so that what does not fit is said before anything runs.
    build({"baseline": jnp.zeros(()), "scale": jnp.ones(()), "warmup": jnp.ones(())})
    return build


def algorithm(
    estimator: str,
    build: Build,
    optimizer: optax.GradientTransformation,
    *,
    settings: Callable[[Array], gradient.Settings] = lambda step: {},
    monitor: gradient.Monitor = lambda key, params, x: {},
    norm_every: int = 1,
) -> Algorithm:
    """The ascent of an estimator, with the memory that some of them keep."""
    if estimator in WITH_RUNNING_BASELINE:
        return running_baseline.running_baseline(
            lambda baseline, scale: build({"baseline": baseline, "scale": scale}),
            optimizer,
            monitor=monitor,
            norm_every=norm_every,
        )
    return gradient.scheduled_ascent(
        build, optimizer, settings=settings, monitor=monitor, norm_every=norm_every
    )


def bernoulli_kl_per_latent(params: Params, h: Array) -> Array:
    """KL of each bit of a factorial q with logits h to the learned prior, nats [D]."""
    logits = params.generative["prior"]["logits"]
    return jax.vmap(divergences.bernoulli_to_bernoulli)(h[:, None], logits[:, None])


def baseline(num_entries: int) -> Network:
    """The network of a baseline that is learned from x."""
    return networks.mlp(num_entries, (BASELINE_UNITS,), 1)


def _arguments(
    config: Config, settings: gradient.Settings, kl: KL | None, network: Network | None
) -> dict[str, Any]:
    """What a builder takes beside the records and num_samples."""
    of_normal = {"kl": divergences.diag_normal_to_standard_normal}
    running = {k: v for k, v in settings.items() if k in ("baseline", "scale")}
    table: dict[str, Callable[[], dict[str, Any]]] = {
        "sgvb_b": lambda: (
            of_normal | {"beta": config.beta * settings.get("warmup", 1.0)}
        ),
        "free_bits": lambda: of_normal | {"min_nats": config.free_nats},
        "capacity": lambda: (
            of_normal | {"nats": config.capacity, "strength": config.capacity_strength}
        ),
        "ciwae": lambda: {"beta": config.beta},
        "renyi": lambda: {"alpha": config.alpha},
        "jackknife": lambda: {"order": config.jackknife_order},
        "miwae": lambda: {"num_outer": config.num_outer},
        "piwae": lambda: {"num_outer": config.num_outer},
        "running_baseline": lambda: running,
        "nvil": lambda: running | {"network": network},
        "reweighted_wake_sleep": lambda: {"sleep_share": config.sleep_share},
        "straight_through": lambda: {"kl": kl},
        "binary_concrete": lambda: {"kl": kl, "temperature": config.temperature},
    }
    return table.get(config.gradient, dict)()
