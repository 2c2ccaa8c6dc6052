r"""Bias, variance, signal and cost of every estimator on one model as it trains.

    python -m experiments.estimator_variance
    python -m experiments.estimator_variance --dataset=mnist --data_dir=DIR \
        --binarization=static --hidden=500 --epochs=1,5

Trains a VAE by SGVB B and stops after each of `--epochs`. At each stop every estimator
that fits draws gradients of one minibatch with `--num_samples` samples of z per image,
so all see as many decoder evaluations. Printed and written for theta and phi apart:

  variance   trace of the covariance of a gradient; for phi also relative to SGVB B's,
             the first line; the second is the naive score function's
  snr        |mean| / sqrt(variance), corrected for the noise of the mean
  bias       |mean - reference| / |reference|, corrected likewise; the reference is the
             estimator's own bound by a long run of an unbiased estimator of it
  ms         milliseconds for each gradient of the minibatch

A second table spends L x M = `--budget` decoder evaluations in each step as L samples
of M images: the variance of the step's gradient, and the bounds after equal time.
Writes variance.json, variance.png and bounds.png.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.command.report import Column, field
from experiments.estimator_variance import equal_budget
from experiments.runs import protocol, runs
from vae_jax import bounds
from vae_jax.data import batches
from vae_jax.estimators import (
    importance,
    multiply_weighted,
    score_function,
    sgvb,
    wake_sleep,
)
from vae_jax.evaluation import gradient_noise
from vae_jax.plots import curves, files
from vae_jax.training import loop
from vae_jax.types import ExampleObjective, Model, Params, PRNGKey, each_example

NAIVE, OURS = "score_function", "sgvb_b"
PARTS = {"theta": "generative", "phi": "recognition"}
OF_TRAIN = (  # flags that train has too
    *("dataset", "data_dir", "binarization", "num_latents", "hidden"),
    *("learning_rate", "batch_size", "seed"),
)
TIMED_DRAWS = 30


def _of(part: str, name: str, form: str, width: int, title: str = "") -> Column:
    return Column(title or name, lambda row: row[part].get(name), form, width)


POINT = [
    field("", "name", width=36),
    _of("phi", "relative_variance", ".4g", 13, "phi: relative"),
    _of("phi", "snr", ".3f", 7),
    _of("phi", "bias", ".3f", 7),
    _of("phi", "noise_of_bias", ".3f", 9, "seen from"),
    _of("theta", "variance", ".4g", 16, "theta: variance"),
    _of("theta", "snr", ".3f", 7),
    _of("theta", "bias", ".3f", 7),
    field("ms", "ms", ".2f", 7),
]
BUDGET = [
    field("L", "num_samples", width=4),
    field("M", "batch_size", width=5),
    field("phi variance", "phi_variance", ".4g", 14),
    field("theta variance", "theta_variance", ".4g", 15),
    field("steps", "steps", width=8),
    field("train ELBO", "train_elbo", ".2f", 11),
    field("test ELBO", "test_elbo", ".2f", 10),
]


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/estimator_variance", "Where the results are written.")
    dataset: str = cli.flag("digits", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    binarization: str = cli.flag(
        "auto",
        "Pixels, as in experiments.train.",
        choices=("auto", "threshold", "static"),
    )
    num_latents: int = cli.flag(16, "Latent dimensions.")
    hidden: tuple[int, ...] = cli.flag((200,), "Units of the hidden layers.")
    learning_rate: float = cli.flag(1e-3, "Of Adam.")
    epochs: tuple[int, ...] = cli.flag(
        (1, 20, 200), "Where training stops to measure.", least=0
    )
    batch_size: int = cli.flag(100, "Images of the minibatch, M.")
    estimators: str = cli.flag(
        "", "Names of the first table, separated by |; all if empty."
    )
    num_samples: int = cli.flag(8, "Samples of z per image; even.", least=4)
    num_draws: int = cli.flag(400, "Gradients of each estimator.", least=2)
    reference_draws: int = cli.flag(4000, "Gradients behind each reference.", least=2)
    budget: int = cli.flag(100, "Decoder evaluations of a step, L x M.", least=1)
    seconds: float = cli.flag(
        5.0, "Training time of each L x M; 0 leaves it out.", least=0
    )
    seed: int = cli.flag(0, "Seed of the weights, the order and the noise.")

    def check(self) -> None:
        """Refuses numbers that cannot be measured."""
        if self.num_samples % 2:
            raise ValueError(f"--num_samples must be even, got {self.num_samples}")
        if not self.epochs or sorted(set(self.epochs)) != list(self.epochs):
            raise ValueError(
                f"--epochs must hold one stop or more and rise, got {self.epochs}"
            )


class Case(NamedTuple):
    """An estimator, and what its gradients are compared with.

    Attributes:
        objective: of one example.
        theta: the bounds whose gradient it should have on average, name -> weight; None
            where no unbiased estimator of it is at hand.
        phi: as theta.
    """

    objective: ExampleObjective
    theta: dict[str, float] | None
    phi: dict[str, float] | None


def cases(model: Model, elbo: float, num_samples: int) -> dict[str, Case]:
    """The estimators for continuous latents, the naive one first."""

    def build(estimator: Callable[..., ExampleObjective], **numbers: Any):
        return estimator(model, **{"num_samples": num_samples} | numbers)

    of_elbo, of_k, of_half = {"elbo": 1.0}, {"l_k": 1.0}, {"l_half": 1.0}
    mixed, score = {"elbo": 0.5, "l_k": 0.5}, score_function.score_function
    path = build(importance.of_bound, bound=bounds.elbo, with_score=False)
    outer = {"num_outer": 2, "num_samples": num_samples // 2}
    miwae = build(multiply_weighted.miwae, **outer)
    piwae = build(multiply_weighted.piwae, **outer)
    return {
        NAIVE: Case(build(score), of_elbo, of_elbo),
        "score_function, constant baseline": Case(
            build(score, baseline=elbo), of_elbo, of_elbo
        ),
        "leave_one_out": Case(build(score_function.leave_one_out), of_elbo, of_elbo),
        "sgvb_a": Case(build(sgvb.sgvb_a), of_elbo, of_elbo),
        OURS: Case(build(sgvb.sgvb_b), of_elbo, of_elbo),
        "sgvb_a, path gradient": Case(path, of_elbo, of_elbo),
        "iwae": Case(build(importance.iwae), of_k, of_k),
        "stick_the_landing": Case(build(importance.stick_the_landing), of_k, of_k),
        "dreg": Case(build(importance.dreg), of_k, of_k),
        "vimco": Case(build(score_function.vimco), of_k, of_k),
        "ciwae, beta = 0.5": Case(build(importance.ciwae, beta=0.5), mixed, mixed),
        "miwae, M = 2": Case(miwae, of_half, of_half),
        "piwae, M = 2": Case(piwae, of_k, of_half),
        "renyi, alpha = 0.5": Case(build(importance.renyi, alpha=0.5), None, None),
        "jackknife, order 1": Case(build(importance.jackknife, order=1), None, None),
        "reweighted_wake_sleep": Case(
            build(wake_sleep.reweighted_wake_sleep), of_k, None
        ),
    }


def references(model: Model, num_samples: int) -> dict[str, ExampleObjective]:
    """An unbiased estimator of each bound that `cases` names."""
    return {
        "elbo": sgvb.sgvb_b(model, num_samples=num_samples),
        "l_k": importance.iwae(model, num_samples=num_samples),
        "l_half": importance.iwae(model, num_samples=num_samples // 2),
    }


def chosen(config: Config, known: dict[str, Case]) -> dict[str, Case]:
    """The cases that --estimators names, and SGVB B's.

    Raises:
        UsageError: for a name that is unknown.
    """
    names = config.estimators.split("|") if config.estimators else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise cli.UsageError(
            f"--estimators: unknown {', '.join(unknown)}; known: {' | '.join(known)}"
        )
    return {name: known[name] for name in known if name in {OURS, *names}}


def at_one_point(
    key: PRNGKey, config: Config, run: runs.Run, params: Params, x: Array
) -> dict[str, Any]:
    """The minibatch's ELBO and every estimator's row, printed when it is known."""
    key_elbo, key_known, key_draws = jax.random.split(key, 3)
    plain = references(run.model, config.num_samples)
    elbo = float(each_example(plain["elbo"])(key_elbo, params, x).mean())
    print(f"ELBO {elbo:.2f}\n{report.heading(POINT)}", flush=True)

    def moments(
        key: PRNGKey, objective: ExampleObjective, num_draws: int
    ) -> gradient_noise.Moments:
        gradient = gradient_noise.of_batch(objective)
        run = gradient_noise.moments(gradient, num_draws=num_draws)
        return jax.jit(run)(key, params, x)

    compared = chosen(config, cases(run.model, elbo, config.num_samples))
    bounds_named = {n for case in compared.values() for m in case[1:] for n in m or ()}
    known = {
        name: moments(
            jax.random.fold_in(key_known, i), objective, config.reference_draws
        )
        for i, (name, objective) in enumerate(plain.items())
        if name in bounds_named
    }
    rows: dict[str, dict[str, Any]] = {}
    order = list(compared)
    for name in sorted(order, key=lambda name: name != OURS):
        key, case = jax.random.fold_in(key_draws, order.index(name)), compared[name]
        sampled = moments(key, case.objective, config.num_draws)
        row = rows[name] = {
            part: noise(sampled, part, getattr(case, part), known) for part in PARTS
        } | {"ms": milliseconds(key_draws, case.objective, params, x)}
        ours = rows[OURS]["phi"]["variance"]
        row["phi"]["relative_variance"] = row["phi"]["variance"] / ours
        print(report.line(POINT, {"name": name} | row), flush=True)
    return {"elbo_of_the_minibatch": elbo, "estimators": rows}


def noise(
    moments: gradient_noise.Moments,
    part: str,
    mixture: dict[str, float] | None,
    known: dict[str, gradient_noise.Moments],
) -> dict[str, float]:
    """Variance, signal-to-noise ratio and bias of one estimator in theta or phi."""
    own = gradient_noise.part(moments, PARTS[part])
    row = {
        "variance": gradient_noise.total_variance(own),
        "snr": gradient_noise.snr(own),
    }
    if mixture is None:
        return row
    bias = gradient_noise.bias(
        own,
        [(w, gradient_noise.part(known[n], PARTS[part])) for n, w in mixture.items()],
    )
    return row | {"bias": bias.value, "noise_of_bias": bias.noise}


def milliseconds(
    key: PRNGKey, objective: ExampleObjective, params: Params, x: Array
) -> float:
    """Of one gradient, inside a compiled scan; the median of five."""
    gradient = gradient_noise.of_batch(objective)

    @jax.jit
    def run(key: PRNGKey) -> Params:
        def step(total: Params, key: PRNGKey) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, total, gradient(key, params, x)), None

        keys = jax.random.split(key, TIMED_DRAWS)
        return jax.lax.scan(step, jax.tree.map(jnp.zeros_like, params), keys)[0]

    times = []
    for _ in range(6):  # the first compiles
        started = time.perf_counter()
        jax.block_until_ready(run(jax.random.clone(key)))
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times[1:])) / TIMED_DRAWS


def run_all(config: Config) -> dict[str, Any]:
    """Trains, stops, measures and prints."""
    with cli.user_errors():
        flags = TrainConfig(**{name: getattr(config, name) for name in OF_TRAIN})
    run = runs.build(flags)
    print(protocol.opening(run.config, run.data), flush=True)
    chosen(config, cases(run.model, 0.0, config.num_samples))
    key_measure, key_rows, key_batch = jax.random.split(run.keys.evaluation, 3)
    prepared = run.data.prepared
    data, scan = jnp.asarray(prepared.train), loop.scan(run.algorithm, prepared.take)
    order = batches.order(key_rows, len(data), batch_size=config.batch_size)
    x = prepared.take(jax.random.clone(key_rows), data, order[0]).x
    state, points = runs.initial(run).run, {}
    for first, last in itertools.pairwise((0, *config.epochs)):
        for epoch in range(first, last):
            key = jax.random.fold_in(run.keys.order, epoch)
            order = batches.order(key, len(data), batch_size=config.batch_size)
            state, _ = scan(state, data, order)
        print(f"\nepoch {last}, ", end="")
        key, params = jax.random.fold_in(key_measure, last), state.inner.params
        points[last] = at_one_point(key, config, run, params, x)
    print(f"\n{report.heading(BUDGET)}", flush=True)
    against_batch = []
    for row in equal_budget.against_batch(
        key_batch,
        run,
        state.inner.params,
        budget=config.budget,
        num_draws=config.num_draws,
        seconds=config.seconds,
    ):
        print(report.line(BUDGET, row), flush=True)
        against_batch.append(row)
    stamp = protocol.stamp(run.config, run.data)
    return {"points": points, "against_batch": against_batch, "protocol": stamp}


def draw(result: dict[str, Any], folder: pathlib.Path) -> None:
    """Variances of phi and theta over training, and the bounds at equal time."""
    points = {e: point["estimators"] for e, point in result["points"].items()}
    names = next(iter(points.values()))
    panels = {
        part: {
            name: (list(points), [p[name][part]["variance"] for p in points.values()])
            for name in names
        }
        for part in ("phi", "theta")
    }
    figure = curves.series(
        panels, x_label="epoch", y_label="variance of a gradient", log="y"
    )
    files.save(figure, folder / "variance.png")
    rows = [row for row in result["against_batch"] if "steps" in row]
    if rows:
        levels = [row["num_samples"] for row in rows]
        bound = {
            split: (levels, [row.get(f"{split}_elbo", np.nan) for row in rows])
            for split in ("train", "test")
        }
        figure = curves.series(
            {"ELBO at equal time and L x M": bound},
            x_label="samples per image, L",
            y_label="nats per image",
            log="x",
        )
        files.save(figure, folder / "bounds.png")


def main(config: Config) -> int:
    """Measures, prints, writes and draws."""
    folder, started = report.claim(config.workdir), time.monotonic()
    result = run_all(config)
    with cli.user_errors():
        draw(result, folder)
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s")
    report.write(folder / "variance.json", config, result | {"seconds": seconds})
    return 0
