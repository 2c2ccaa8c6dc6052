"""A prior fitted to a trained model's codes, and what that does for its bound."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choices import ladders, rows
from experiments.choices.algorithms import ALGORITHMS
from experiments.choices.config import Config
from experiments.choices.densities import POSTERIORS, PRIORS, traits
from experiments.choices.estimators import ESTIMATORS, fitting
from experiments.command import report
from experiments.command.report import Column
from experiments.measures import measure
from experiments.runs import runs, trained_runs
from experiments.runs.trained_runs import Trained
from vae_jax import compilation, numerics, vector_quantized
from vae_jax.data import sources
from vae_jax.estimators import sgvb
from vae_jax.inference import prior_fit
from vae_jax.training import gradient, loop
from vae_jax.types import ExampleObjective, Params, PRNGKey, Scalar, per_example

FITTED = ("flow", "autoregressive", "normal_mixture")
VALID_SAMPLES = 10  # of each validation row, the same at every epoch


class Fit(NamedTuple):
    """A prior fitted after training.

    Attributes:
        trained: the model with it.
        epoch: of the fit, which is best on the validation split.
        curve: the mean of log p(z) over q on that split before the fit and after each
            epoch, nats; on the training rows where there is no validation split.
        images_per_second: of the fit, the median over its epochs: the first compiles.
    """

    trained: Trained
    epoch: int
    curve: list[float]
    images_per_second: float


class Change(NamedTuple):
    """The mean of a number over images with both priors.

    Attributes:
        old: with the prior of the run, nats.
        new: with the fitted one.
        gain: new less old.
        standard_error: of the gain, over the images, which both share with their noise.
    """

    old: float
    new: float
    gain: float
    standard_error: float


def check(trained: Trained, prior: str) -> None:
    """Refuses a run to which that prior cannot be fitted after training.

    Raises:
        ValueError: naming the flag of the run.
    """
    config = trained.config
    if config.model:
        raise ValueError(
            f"--workdir holds a run of --model={config.model}, whose prior is that of "
            "its function: fit it there (vae_jax.inference.prior_fit)"
        )
    fitting = POSTERIORS[config.posterior].priors or FITTED
    if prior not in fitting:
        raise ValueError(
            f"--prior={prior} is of real latents, and --workdir holds a run of "
            f"--posterior={config.posterior}, with priors of its own: "
            f"{', '.join(fitting)}"
        )
    if not ALGORITHMS[config.algorithm].has_encoder or config.algorithm == "full_vb":
        raise ValueError(
            f"--workdir holds a run of --algorithm={config.algorithm}: a prior is "
            "fitted to the codes of an encoder at one theta (aevb, wake_sleep, rws)"
        )
    if config.ladder:
        raise ValueError(
            f"--workdir holds a run of {ladders.written(config.ladder)}, whose top "
            "alone has a prior of its own, and no codes that are x's alone"
        )


def new_config(config: Config, workdir: str, **prior: Any) -> Config:
    """The flags of the run with another prior, where they are to be read.

    An estimator that needs the closed form of the KL to N(0, I) makes room for sgvb_a.

    Args:
        config: flags of the run.
        workdir: of the new one.
        prior: flags of the prior, by name.

    Raises:
        ValueError: for flags that no run can have.
    """
    estimator, posterior = config.estimator, POSTERIORS[config.posterior]
    place = {"workdir": workdir, "start_from": ""}  # what it started from is in it
    if posterior.traits.rounded:
        return dataclasses.replace(config, **place, **prior)
    of_old = rows.read_by(PRIORS[config.prior])
    if config.algorithm == "aevb" and estimator not in fitting(rows.Traits()):
        of_old |= rows.read_by(ESTIMATORS[estimator]) - rows.read_by(
            ESTIMATORS["sgvb_a"]
        )
        estimator = "sgvb_a"
    defaults = {name: config.default(name) for name in of_old}
    changes = defaults | place | {"estimator": estimator} | prior
    return dataclasses.replace(config, **changes)


def fit(
    trained: Trained,
    config: Config,
    *,
    learning_rate: float,
    num_epochs: int,
    seed: int,
) -> Fit:
    """Fits the prior of other flags to z ~ q(z | x) of the training rows, by Adam.

    Theta's other parts and phi stay as they are. The epoch that is best on the
    validation split counts, and before the first may be it.

    Args:
        trained: the model.
        config: flags of `new_config`.
        learning_rate: of Adam.
        num_epochs: passes over the training rows.
        seed: of the prior's start, order and noise.

    Raises:
        ValueError: as `runs.of_data`.
    """
    alone = {"num_devices": 1, "shard_data": False, "stream_steps": 0}
    run = runs.of_data(dataclasses.replace(config, **alone, seed=seed), trained.data)
    start = compilation.program(run.model.init)(run.keys.init).generative["prior"]
    if traits(trained.model).codebook:  # which q and the decoder read too
        start = start | {"codes": jnp.copy(vector_quantized.read(trained.params))}
    params = prior_fit.with_prior(trained.params, start)
    log_prior = prior_fit.log_prior_of_code(run.model, params)
    algorithm = gradient.ascent(per_example(log_prior), gradient.adam(learning_rate))
    state = loop.start(run.keys.steps, algorithm, Params(start, ()))
    scan, feed = loop.scan(algorithm, run.data.prepared.take), runs.feed(run)
    measured = _mean_over_codes(run, log_prior)
    best, curve, seconds = 0, [measured(state.inner.params)], []
    chosen = start
    for epoch in range(1, num_epochs + 1):
        started = time.monotonic()
        while state.step < epoch * run.steps_per_epoch:
            state, info = scan(state, *feed.at(int(state.step)))
            jax.block_until_ready(info)
        seconds.append(time.monotonic() - started)
        curve.append(measured(state.inner.params))
        if curve[-1] > curve[best]:
            best = epoch  # a copy, as the next scan takes the state's buffers
            chosen = jax.tree.map(jnp.copy, state.inner.params.generative)
    feed.close()
    new = trained._replace(
        config=config,
        model=run.model,
        params=prior_fit.with_prior(params, chosen),
        member=None,
    )
    rate = run.steps_per_epoch * config.batch_size / float(np.median(seconds))
    return Fit(new, best, curve, rate)


def _mean_over_codes(
    run: runs.Run, log_prior: ExampleObjective
) -> Callable[[Params], float]:
    """Its mean over q and the validation rows, with the same noise each time."""
    prepared = run.data.prepared

    def mean(key: PRNGKey, prior: Params, x: jax.Array) -> Scalar:
        return numerics.over_samples(
            key, lambda key: log_prior(key, prior, x), num_samples=VALID_SAMPLES
        ).mean()

    evaluate = measure.over_rows(mean, prepared.value, num_decoded=VALID_SAMPLES)
    stored = jnp.asarray(prepared.valid if len(prepared.valid) else prepared.train)

    def measured(prior: Params) -> float:
        key = jax.random.clone(run.keys.evaluation)
        return float(np.asarray(evaluate(key, prior, stored), np.float64).mean())

    return measured


def compared(
    key: PRNGKey,
    old: Trained,
    new: Trained,
    *,
    num_samples: int,
    importance_samples: int,
    num_images: int,
) -> dict[str, dict[str, Change]]:
    """ELBO and log p(x) with both priors, on the same images with the same noise.

    Args:
        key: of the noise.
        old: the model.
        new: the same with another prior.
        num_samples: of the ELBO, an image.
        importance_samples: of log p(x), an image.
        num_images: of each split at most, at equal distances; 0 for all.

    Returns:
        Split -> "elbo" and "log_p", of a point mass the ELBO alone; splits without rows
        are left out.
    """
    estimates = {"elbo": (_elbo, num_samples)}
    if not old.has_point_mass:
        estimates["log_p"] = _log_p, importance_samples
    changes = {}
    for split in sources.SPLITS:
        size = len(old.stored(split))
        if not size:
            continue
        data = trained_runs.spread_rows(
            old, split=split, num_images=min(num_images, size)
        )
        changes[split] = {
            name: _change(
                *(
                    measure.of_rows(
                        jax.random.clone(key),
                        one,
                        estimate(one, number),
                        data,
                        num_decoded=number,
                    )
                    for one in (old, new)
                )
            )
            for name, (estimate, number) in estimates.items()
        }
    return changes


def _elbo(trained: Trained, num_samples: int) -> Callable[..., Scalar]:
    return sgvb.elbo(trained.model, num_samples=num_samples)


def _log_p(trained: Trained, num_samples: int) -> Callable[..., Scalar]:
    estimate = measure.log_evidence(trained.model, num_samples=num_samples)
    return lambda key, params, x: estimate(key, params, x).log_p


def _change(old: jax.Array, new: jax.Array) -> Change:
    before, after = (np.asarray(nats, np.float64) for nats in (old, new))
    gain = after - before
    return Change(
        float(before.mean()),
        float(after.mean()),
        float(gain.mean()),
        measure.standard_error(gain),
    )


def table(changes: dict[str, dict[str, Change]]) -> str:
    """A line for each split and number."""
    lines = [
        (f"{split} {TITLES[name]}", change)
        for split, numbers in changes.items()
        for name, change in numbers.items()
    ]
    return report.table(COLUMNS, lines)


TITLES = {"elbo": "ELBO", "log_p": "log p(x)"}
COLUMNS = (
    Column("nats per example", lambda line: line[0], width=16),
    Column("old prior", lambda line: line[1].old, ".3f"),
    Column("fitted", lambda line: line[1].new, ".3f"),
    Column("gain", lambda line: line[1].gain, ".3f", 8),
    Column("s.e.", lambda line: line[1].standard_error, ".3f", 7),
)
