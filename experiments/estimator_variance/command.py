r"""Bias, variance, signal and cost of every estimator on one model as it trains.

    python -m experiments.estimator_variance
    python -m experiments.estimator_variance --dataset=mnist --data_dir=DIR \
        --binarization=static --hidden=500 --epochs=1,5
    python -m experiments.estimator_variance --posterior=bernoulli
    python -m experiments.estimator_variance --prior=flow

Trains a VAE by SGVB B (A where the prior is learned, RELAX where latents are binary)
and stops after each of `--epochs`. At each stop every estimator that fits draws
gradients of one minibatch with as many samples of z per row as make `--num_samples`
decoder evaluations. Printed and written for theta and phi apart:

  variance   trace of the covariance of a gradient, without what one estimator alone
             learns; for phi also relative to the first line's
  snr        |mean| / sqrt(variance), corrected for the noise of the mean
  bias       |mean - reference| / |reference|, corrected likewise; the reference is the
             estimator's own bound by a long run of an unbiased estimator of it
  ms         milliseconds for each gradient of the minibatch

Where SGVB B is the first line, a second table spends L x M = `--budget` decoder
evaluations in each step as L samples of M images: the variance of the step's gradient,
and the bounds after equal time.
Writes variance.json, variance.png and bounds.png.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.choices.algorithms import Parts
from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.command.report import Column, field
from experiments.estimator_variance import cases, equal_budget
from experiments.runs import protocol, runs
from vae_jax import compilation
from vae_jax.data import batches
from vae_jax.evaluation import gradient_noise
from vae_jax.plots import curves
from vae_jax.training import loop
from vae_jax.types import ExampleObjective, Params, PRNGKey, each_example

PARTS = {"theta": "generative", "phi": "recognition"}
OF_TRAIN = (  # flags that train has too
    *("dataset", "data_dir", "binarization", "posterior", "prior"),
    *("num_latents", "hidden"),
    *("learning_rate", "batch_size", "seed"),
)
TIMED_DRAWS = 30


def _of(part: str, name: str, form: str, width: int, title: str = "") -> Column:
    return Column(
        title or name, lambda row: getattr(getattr(row, part), name), form, width
    )


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


class Measured(NamedTuple):
    """One estimator at one stop."""

    name: str
    ms: float
    theta: gradient_noise.Noise
    phi: gradient_noise.Noise


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
    posterior: str = cli.flag(
        "diag_normal",
        "Of q; bernoulli has binary latents.",
        choices=("diag_normal", "bernoulli"),
    )
    prior: str = cli.flag(
        "standard_normal",
        "Of real latents; flow is learned.",
        choices=("standard_normal", "flow"),
    )
    num_latents: int = cli.flag(16, "Latent dimensions.")
    hidden: tuple[int, ...] = cli.flag((200,), "Units of the hidden layers.")
    learning_rate: float = cli.flag(1e-3, "Of Adam.")
    epochs: tuple[int, ...] = cli.flag(
        (1, 20, 200), "Where training stops to measure; rising.", least=0, empty=False
    )
    batch_size: int = cli.flag(100, "Images of the minibatch, M.")
    estimators: str = cli.flag("", "Those of the first table, by |; empty: all.")
    num_samples: int = cli.flag(8, "Samples of z per row.", least=4, multiple=2)
    num_draws: int = cli.flag(400, "Gradients of each estimator.", least=2)
    reference_draws: int = cli.flag(4000, "Gradients behind each reference.", least=2)
    budget: int = cli.flag(100, "Decoder evaluations of a step, L x M.", least=1)
    seconds: float = cli.flag(5.0, "Training of each L x M; 0: none.", least=0)
    seed: int = cli.flag(0, "Seed of the weights, the order and the noise.", least=0)

    def refuse(self) -> None:
        """Refuses stops that do not rise, and unknown estimators."""
        if sorted(set(self.epochs)) != list(self.epochs):
            raise ValueError(f"--epochs must rise, got {self.epochs}")
        known = self.table.cases
        unknown = [name for name in self.names if name not in known]
        if unknown:
            raise ValueError(
                f"--estimators: unknown {', '.join(unknown)}; known: "
                f"{' | '.join(known)}"
            )

    @property
    def table(self) -> cases.Table:
        """What fits the posterior and the prior."""
        return cases.table(self.posterior, self.prior)

    @property
    def names(self) -> list[str]:
        """The estimators of the first table, that of its unit among them."""
        known = self.table.cases
        if not self.estimators:
            return list(known)
        chosen = {self.table.unit, *self.estimators.split("|")}
        return [n for n in known if n in chosen] + sorted(chosen - known.keys())


class Stop(NamedTuple):
    """What is measured where training stops, by the name of the estimator."""

    elbo_of_the_minibatch: float
    estimators: dict[str, Measured]


def at_one_point(
    key: PRNGKey, config: Config, parts: Parts, params: Params, x: Array
) -> Stop:
    """The minibatch's ELBO and every estimator's row, printed when it is known."""
    model, learned = parts.model, parts.learned
    key_elbo, key_references, key_draws = jax.random.split(key, 3)
    table = config.table
    references = {
        name: build(model, num_samples=config.num_samples // divisor)
        for name, (build, divisor) in table.references.items()
    }
    elbo = float(each_example(references["elbo"])(key_elbo, params, x).mean())
    print(f"ELBO {elbo:.2f}")

    def moments(
        key: PRNGKey, objective: ExampleObjective, params: Params, num_draws: int
    ) -> dict[str, gradient_noise.Moments]:
        gradient = gradient_noise.of_batch(objective)

        def of_the_model(key: PRNGKey, params: Params, x: Array) -> Params:
            theta, phi = gradient(key, params, x)
            return Params(theta, {n: phi[n] for n in phi if n not in cases.LEARNED})

        run = gradient_noise.moments(of_the_model, num_draws=num_draws)
        sampled = compilation.program(run)(key, params, x)
        return {p: gradient_noise.part(sampled, name) for p, name in PARTS.items()}

    mixtures = [
        mixture or {}
        for name in config.names
        for mixture in (table.cases[name].theta, table.cases[name].phi)
    ]
    expected = {
        name: moments(
            jax.random.fold_in(key_references, i),
            objective,
            params,
            config.reference_draws,
        )
        for i, (name, objective) in enumerate(references.items())
        if any(name in mixture for mixture in mixtures)
    }

    def rows() -> Iterator[Measured]:
        ours: dict[str, gradient_noise.Moments] = {}
        for name in sorted(config.names, key=lambda name: name != table.unit):
            case = table.cases[name]
            num_samples = config.num_samples // case.decodings
            of_case, at = model, params
            if case.extend is not None:
                of_case = case.extend(model, num_samples)
                start = of_case.init(jax.random.clone(key_draws)).recognition
                at = params._replace(recognition=start | params.recognition)
            objective = case.build(
                of_case,
                num_samples=num_samples,
                **case.numbers,
                **(learned if case.takes_learned else {}),
                **({"baseline": elbo} if case.has_baseline else {}),
            )
            key = jax.random.fold_in(key_draws, config.names.index(name))
            sampled = moments(key, objective, at, config.num_draws)
            ours = ours or sampled
            noise = {
                part: gradient_noise.noise(
                    sampled[part],
                    relative_to=ours[part],
                    expected=None
                    if mixture is None
                    else [(w, expected[name][part]) for name, w in mixture.items()],
                )
                for part, mixture in zip(PARTS, (case.theta, case.phi), strict=True)
            }
            timed = gradient_noise.seconds_per_draw(
                gradient_noise.of_batch(objective), num_draws=TIMED_DRAWS
            )
            seconds = timed(jax.random.clone(key_draws), at, x)
            yield Measured(name, 1e3 * seconds, **noise)

    return Stop(elbo, {row.name: row for row in report.printed(POINT, rows())})


def run_all(config: Config) -> dict[str, Any]:
    """Trains, stops, measures and prints."""
    with cli.user_errors():
        flags = TrainConfig(
            estimator=config.table.trained_by,
            **config.some(OF_TRAIN),
        )
    run = runs.build(flags)
    print(protocol.opening(run.config, run.data), flush=True)
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
        points[last] = at_one_point(key, config, run.parts, params, x)
    print()
    against_batch = (
        []
        if config.table.unit != "sgvb_b"
        else report.printed(
            BUDGET,
            equal_budget.against_batch(
                key_batch,
                run,
                state.inner.params,
                budget=config.budget,
                num_draws=config.num_draws,
                seconds=config.seconds,
            ),
        )
    )
    stamp = protocol.stamp(run.config, run.data)
    return {"points": points, "against_batch": against_batch, "protocol": stamp}


def pictures(result: dict[str, Any]) -> dict[str, Any]:
    """Variances of phi and theta over training, and the bounds at equal time."""
    points = {epoch: stop.estimators for epoch, stop in result["points"].items()}
    panels = {
        part: {
            name: (
                [*points],
                [getattr(p[name], part).variance for p in points.values()],
            )
            for name in next(iter(points.values()))
        }
        for part in ("phi", "theta")
    }
    figures = {
        "variance": curves.series(
            panels, x_label="epoch", y_label="variance of a gradient", log="y"
        )
    }
    rows = [row for row in result["against_batch"] if row.steps is not None]
    if rows:
        levels = [row.num_samples for row in rows]
        bound = {
            "train": (levels, [row.train_elbo for row in rows]),
            "test": (levels, [row.test_elbo for row in rows]),
        }
        figures["bounds"] = curves.series(
            {"ELBO at equal time and L x M": bound},
            x_label="samples per row, L",
            y_label="nats per row",
            log="x",
        )
    return figures


def main(config: Config) -> int:
    """Measures, prints, writes and draws."""
    folder, started = report.claim(config.workdir), time.monotonic()
    result = run_all(config)
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s")
    result["seconds"] = seconds
    report.write(folder / "variance.json", config, result, pictures(result))
    return 0
