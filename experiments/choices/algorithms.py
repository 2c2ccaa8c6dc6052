"""From flags to the algorithm that fits the model, and its optimizer."""

import copy
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from experiments.choices import estimators as objectives
from experiments.choices import models
from experiments.choices.config import Config
from vae_jax.inference import full_vb, mcem, variational_em
from vae_jax.training import gradient
from vae_jax.types import Algorithm, Params, PRNGKey

STAIRCASE_STAGES = 8
LONG_EPOCH = 100  # steps, from which every tenth reports the gradient's norm


def build(
    config: Config,
    model: models.Model,
    *,
    num_data: int,
    steps_per_epoch: int,
    numbers: Mapping[str, jax.Array] | None = None,
) -> Algorithm:
    """The fit that the flags ask for.

    numbers take the place of flags of the same names, and may be traced.

    Raises:
        ValueError: where a number does not fit the estimator or the algorithm.
    """
    if numbers:
        config = _with_numbers(config, numbers)
    make = {"mcem": _mcem, "vem": _vem, "full_vb": _full_vb}
    return make.get(config.algorithm, _ascent)(config, model, num_data, steps_per_epoch)


def optimizer(config: Config, *, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optax optimizer with its schedule, clipping first."""
    rate = _schedule(config, steps_per_epoch)
    make = {
        "sgd": optax.sgd,
        "adam": lambda rate: gradient.adam(rate, eps=config.adam_epsilon),
        "adamax": optax.adamax,
        "rmsprop": optax.rmsprop,
        # The paper's Adagrad starts its sums at zero; optax would start at 0.1.
        "adagrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0),
    }[config.optimizer]
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), make(rate))
    return make(rate)


def _ascent(
    config: Config, model: models.Model, num_data: int, steps_per_epoch: int
) -> Algorithm:
    """Ascent of one estimator, with the memory that some of them keep."""
    warmup_steps = config.kl_warmup * steps_per_epoch

    def settings(step: jax.Array) -> gradient.Settings:
        if isinstance(warmup_steps, int) and not warmup_steps:
            return {}
        # A traced warm-up of no steps is over at the first.
        return {"warmup": jnp.minimum(1.0, (step + 1.0) / jnp.maximum(warmup_steps, 1))}

    return objectives.algorithm(
        config.gradient,
        _objective(config, model, num_data, weight_decay=config.weight_decay),
        optimizer(config, steps_per_epoch=steps_per_epoch),
        settings=settings,
        monitor=_monitor(config, model),
        norm_every=_norm_every(steps_per_epoch),
    )


def _with_numbers(config: Config, numbers: Mapping[str, jax.Array]) -> Config:
    """The flags with traced numbers, whose values were checked before they were."""
    traced = copy.copy(config)
    vars(traced).update(numbers)
    return traced


def _full_vb(
    config: Config, model: models.Model, num_data: int, steps_per_epoch: int
) -> Algorithm:
    prior_std = config.weight_decay**-0.5
    monitor = _monitor(config, model)

    def with_theta(key: PRNGKey, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        kl_theta = full_vb.kl_to_prior(params.generative, prior_std=prior_std)
        return {**monitor(key, params, x), "kl_theta": kl_theta}

    return full_vb.full_vb(
        _objective(config, model, num_data, weight_decay=0.0)({}),
        optimizer(config, steps_per_epoch=steps_per_epoch),
        num_data=num_data,
        prior_std=prior_std,
        monitor=with_theta,
        norm_every=_norm_every(steps_per_epoch),
    )


def _vem(
    config: Config, model: models.Model, num_data: int, steps_per_epoch: int
) -> Algorithm:
    return variational_em.variational_em(
        model.joint,
        models.posterior(config),
        optimizer(config, steps_per_epoch=steps_per_epoch),
        num_data=num_data,
        num_samples=config.num_samples,
        num_steps=config.e_steps,
        learning_rate=config.e_rate,
        weight_decay=config.weight_decay,
        norm_every=_norm_every(steps_per_epoch),
    )


def _mcem(
    config: Config, model: models.Model, num_data: int, steps_per_epoch: int
) -> Algorithm:
    return mcem.mcem(
        model.joint,
        optimizer(config, steps_per_epoch=steps_per_epoch * config.num_updates),
        num_data=num_data,
        num_leapfrog=config.num_leapfrog,
        target_acceptance=config.target_acceptance,
        num_updates=config.num_updates,
        weight_decay=config.weight_decay,
    )


def _objective(
    config: Config, model: models.Model, num_data: int, *, weight_decay: float
) -> objectives.Build:
    closed = model.closed_form
    return objectives.builder(
        config,
        (model.joint, model.recognition),
        kl=closed and closed.kl,
        network=model.baseline,
        num_data=num_data,
        weight_decay=weight_decay,
    )


def _norm_every(steps_per_epoch: int) -> int:
    return 10 if steps_per_epoch >= LONG_EPOCH else 1


def _schedule(config: Config, steps_per_epoch: int) -> optax.ScalarOrSchedule:
    rate = config.learning_rate
    if config.schedule == "constant":
        return rate
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(rate, config.num_epochs * steps_per_epoch)
    # Burda et al. 2016: 3^i passes at rate 10^(-i/7), i = 0..7, 3,280 in all.
    ends = [(3**i - 1) // 2 * steps_per_epoch for i in range(1, STAIRCASE_STAGES)]
    return optax.piecewise_constant_schedule(rate, dict.fromkeys(ends, 10 ** (-1 / 7)))


def _monitor(config: Config, model: models.Model) -> gradient.Monitor:
    """The KL where it has a closed form, else both terms of the ELBO.

    A closed form draws no noise, so the step already holds all it needs. Noise drawn
    twice is computed twice, and a second decoding with it.
    """
    closed = model.closed_form
    if closed is None:
        terms = models.elbo_terms(model, num_samples=config.num_samples)
        return lambda key, params, x: terms(key, params, x)._asdict()

    def kl_alone(key: PRNGKey, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        del key
        return {"kl": closed.kl(params, model.recognition.encode(params, x))}

    return kl_alone
