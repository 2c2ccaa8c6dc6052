"""The algorithms, optimizers and schedules that flags can name, and the fit of one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from experiments.choices import estimators, rows
from experiments.choices.rows import NO_FLAGS, Choice, Traits
from vae_jax import conditional, exemplars
from vae_jax.inference import full_vb, mcem, variational_em
from vae_jax.training import gradient
from vae_jax.types import (
    Algorithm,
    Batch,
    Conditional,
    Model,
    Objective,
    Params,
    PRNGKey,
    each_example,
)

STAIRCASE_STAGES = 8
LONG_EPOCH = 100  # steps, from which every tenth reports the gradient's norm


class Parts(NamedTuple):
    """What a fit is made of, and what only some fits need.

    Attributes:
        model: p and q, as they are evaluated.
        at_theta: p and q of a given theta: `model`, but for full_vb's mean theta.
        posterior: q(z | h), where the fit is a search for h.
        learned: keyword arguments of an estimator that learns more than p and q.
        of_exemplars: the forms of `model`, where rows of the data set are its prior.
        at_context: of --condition, c -> the model of x given it; `model` is then of
            rows that hold both (`conditional.of_rows`).
    """

    model: Model
    at_theta: Model
    posterior: Conditional | None
    learned: Mapping[str, Any]
    of_exemplars: exemplars.ExemplarModel | None = None
    at_context: conditional.ConditionalModel | None = None


class Steps(NamedTuple):
    """The rows and the steps of a run.

    Attributes:
        num_data: rows of the training split.
        per_epoch: steps of one pass over them.
        traced: numbers that take the place of flags of the same names.
    """

    num_data: int
    per_epoch: int
    traced: Mapping[str, Any] = NO_FLAGS

    @property
    def norm_every(self) -> int:
        """Steps between two that report the gradient's norm."""
        return 10 if self.per_epoch >= LONG_EPOCH else 1


class Fit(NamedTuple):
    """A way to fit the model.

    Attributes:
        build: flags, parts, steps, own numbers -> the algorithm.
        flags: keyword of `build` -> the flag that fills it.
        reads: further flags that mean something under this choice.
        estimator: what it ascends if not --estimator.
        has_encoder: whether there is a phi; else q is found for each x when wanted.
        fits: which q it is of.
        splits_bound: whether its bound is an objective's, of which the KL is a part.
    """

    build: Callable[..., Algorithm]
    flags: Mapping[str, str] = NO_FLAGS
    reads: tuple[str, ...] = ()
    estimator: str = ""
    has_encoder: bool = True
    fits: Callable[[Traits], bool] = lambda q: True
    splits_bound: bool = True


def _ascent(config: Any, parts: Parts, steps: Steps) -> Algorithm:
    """Ascent of one estimator, with the memory that some of them keep."""
    without = parts.of_exemplars and parts.of_exemplars.without
    over_theta = config.algorithm == "full_vb"  # whose prior is that of the decay
    objective = estimators.objective(
        config,
        parts.at_theta,
        num_data=steps.num_data,
        weight_decay=0.0 if over_theta else config.weight_decay,
        warmup_steps=_warmup(config, steps),
        learned=parts.learned,
        traced=steps.traced,
        without=without,
    )
    monitor: dict[str, gradient.Monitor] = {"monitor": _monitor(config, parts.model)}
    if without is not None:  # whose KL is another for each row, and so its own to log
        objective = _watched(objective, lambda row: _monitor(config, without(row)))
        monitor = {}
    if over_theta:
        objective = full_vb.full_vb(
            objective, num_data=steps.num_data, prior_std=config.weight_decay**-0.5
        )
    return gradient.ascent(
        objective,
        optimizer(config, steps),
        **monitor,
        norm_every=steps.norm_every,
        average_decay=config.average_decay,
        skip_norm=config.skip_norm,
    )


def _vem(
    config: Any, parts: Parts, steps: Steps, *, num_steps: int, learning_rate: float
) -> Algorithm:
    assert parts.posterior is not None
    return variational_em.variational_em(
        parts.model.generative,
        parts.posterior,
        optimizer(config, steps),
        num_data=steps.num_data,
        num_samples=config.num_samples,
        num_steps=num_steps,
        learning_rate=learning_rate,
        weight_decay=config.weight_decay,
        norm_every=steps.norm_every,
    )


def _mcem(config: Any, parts: Parts, steps: Steps, **numbers: Any) -> Algorithm:
    updates = steps._replace(per_epoch=steps.per_epoch * config.num_updates)
    return mcem.mcem(
        parts.model.generative,
        optimizer(config, updates),
        num_data=steps.num_data,
        weight_decay=config.weight_decay,
        **numbers,
    )


_WITH_Q = ("num_samples", "posterior")
_WITH_ENCODER = (
    *(*_WITH_Q, "encoder_hidden", "posterior_std"),
    *("average_decay", "skip_norm"),
)
_OF_A_THETA = (*_WITH_ENCODER, "init_bias")
ALGORITHMS = {
    "aevb": Fit(_ascent, reads=(*_OF_A_THETA, "estimator")),
    "wake_sleep": Fit(
        _ascent,
        reads=_OF_A_THETA,
        estimator="wake_sleep",
        fits=estimators.sampled,
    ),
    "rws": Fit(
        _ascent,
        reads=_OF_A_THETA,
        estimator="reweighted_wake_sleep",
        fits=estimators.sampled,
    ),
    "mcem": Fit(
        _mcem,
        {
            "num_leapfrog": "num_leapfrog",
            "target_acceptance": "target_acceptance",
            "num_updates": "num_updates",
        },
        ("init_bias",),
        has_encoder=False,
        fits=lambda q: q.unconstrained,
        splits_bound=False,
    ),
    "vem": Fit(
        _vem,
        {"num_steps": "e_steps", "learning_rate": "e_rate"},
        (*_WITH_Q, "init_bias"),
        has_encoder=False,
        fits=lambda q: q.continuous and not q.own_parameters,
        splits_bound=False,
    ),
    "full_vb": Fit(
        _ascent,
        reads=(*_WITH_ENCODER, "estimator", "theta_std"),
        fits=lambda q: q.continuous,
        splits_bound=False,
    ),
}


OPTIMIZERS = {
    "sgd": Choice(optax.sgd),
    # The paper's Adagrad starts its sums at zero; optax would start at 0.1.
    "adagrad": Choice(lambda rate: optax.adagrad(rate, initial_accumulator_value=0)),
    "adam": Choice(gradient.adam, {"eps": "adam_epsilon"}),
    "adamax": Choice(optax.adamax),
    "adamw": Choice(
        gradient.adam, {"eps": "adam_epsilon", "decoupled_decay": "decoupled_decay"}
    ),
    "adamaxw": Choice(optax.adamaxw, {"weight_decay": "decoupled_decay"}),
    "rmsprop": Choice(optax.rmsprop),
}


def _staircase(rate: Any, num_steps: int, num_epochs: int) -> optax.Schedule:
    """Burda et al. 2016: 3^i passes at rate 10^(-i/7), i = 0..7, 3,280 in all."""
    per_epoch = num_steps // num_epochs
    ends = [(3**i - 1) // 2 * per_epoch for i in range(1, STAIRCASE_STAGES)]
    return optax.piecewise_constant_schedule(rate, dict.fromkeys(ends, 10 ** (-1 / 7)))


SCHEDULES = {  # rate, steps, epochs, own numbers -> the rate or its schedule
    "constant": Choice(lambda rate, num_steps, num_epochs: rate),
    "cosine": Choice(
        lambda rate, num_steps, num_epochs, *, alpha: optax.cosine_decay_schedule(
            rate, num_steps, alpha
        ),
        {"alpha": "final_rate"},
    ),
    "staircase": Choice(_staircase),
}


def build(config: Any, parts: Parts, steps: Steps) -> Algorithm:
    """The fit that the flags ask for.

    Raises:
        ValueError: where a number does not fit the estimator or the algorithm.
    """
    row = ALGORITHMS[config.algorithm]
    return row.build(config, parts, steps, **rows.numbers(row, config, steps.traced))


def optimizer(config: Any, steps: Steps) -> optax.GradientTransformation:
    """The optax optimizer with its schedule, clipping first."""
    rate = _rate(config, steps)
    row = OPTIMIZERS[config.optimizer]
    made = row.build(rate, **rows.numbers(row, config, steps.traced))
    if not config.clip_norm:
        return made
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), made)


def _rate(config: Any, steps: Steps) -> optax.ScalarOrSchedule:
    """The schedule, behind a linear rise over the first steps."""
    row = SCHEDULES[config.schedule]
    scheduled = row.build(
        steps.traced.get("learning_rate", config.learning_rate),
        config.num_epochs * steps.per_epoch,
        config.num_epochs,
        **rows.numbers(row, config),
    )
    if not config.warmup_steps:
        return scheduled

    def rate(step: Any) -> Any:
        later: Any = scheduled(step) if callable(scheduled) else scheduled
        return jnp.minimum(1.0, (step + 1.0) / config.warmup_steps) * later

    return rate


def _warmup(config: Any, steps: Steps) -> int | Array:
    return steps.traced.get("kl_warmup", config.kl_warmup) * steps.per_epoch


def _watched(
    objective: Objective, monitor_of: Callable[[Array], gradient.Monitor]
) -> Objective:
    """The objective that logs what the monitor of each example's row sees of it."""

    def monitor(
        key: PRNGKey, params: Params, pair: tuple[Array, Array]
    ) -> dict[str, Array]:
        x, row = pair
        return monitor_of(row)(key, params, x)

    def value(
        key: PRNGKey, params: Params, memory: Any, batch: Batch
    ) -> tuple[Array, Any, dict[str, Array]]:
        nats, memory, logged = objective.value(key, params, memory, batch)
        pairs = batch.x, batch.index
        each = each_example(monitor)(jax.random.clone(key), params, pairs)
        means = {
            name: gradient.weighted_moments(values, batch.weight)[0]
            for name, values in each.items()
        }
        return nats, memory, logged | means

    return objective._replace(value=value)


def _monitor(config: Any, model: Model) -> gradient.Monitor:
    """The KL where it has a closed form or the bound is an ELBO, else both terms of it.

    A closed form draws no noise, so the step already holds all it needs. Noise drawn
    twice is computed twice, and a second decoding with it: not for the KL alone. Of a
    ladder, the KL of each layer too.
    """
    closed = model.kl
    if closed is None:
        terms = estimators.elbo_terms(model, num_samples=config.num_samples)
        if not estimators.ESTIMATORS[config.gradient].of_elbo:
            return terms

        def of_kl(key: PRNGKey, params: Params, x: Array) -> dict[str, Array]:
            both = terms(key, params, x)
            del both["reconstruction"]
            return both

        return of_kl

    def kl_alone(key: PRNGKey, params: Params, x: Array) -> dict[str, Array]:
        del key
        return {"kl": closed(params, model.recognition.encode(params, x)).sum()}

    return kl_alone
