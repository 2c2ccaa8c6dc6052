r"""Bias, variance, signal and cost of every estimator on one model as it trains.

    python -m experiments.estimator_variance
    python -m experiments.estimator_variance --dataset=mnist --data_dir=DIR \
        --binarization=static --hidden=500 --epochs=1,5

Trains a VAE by SGVB B and stops after each of `--epochs`. At each stop every estimator
that fits draws gradients of one minibatch with `--num_samples` samples of z per image,
so all see as many decoder evaluations. Printed and written for theta and phi apart:

  variance   trace of the covariance of a gradient; for phi also relative to SGVB B's,
             the first line being the naive score function's: the seed's claim
  snr        |mean| / sqrt(variance), corrected for the noise of the mean
  bias       |mean - reference| / |reference|, corrected likewise; the reference is the
             estimator's own bound by a long run of an unbiased estimator of it
  ms         milliseconds for each gradient of the minibatch

A second table spends L x M = `--budget` decoder evaluations in each step as L samples
of M images: the variance of the step's gradient, and the bounds after equal time.
Writes variance.json, variance.png and bounds.png.
"""

import dataclasses
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import (
    cli,
    equal_budget,
    gradients,
    models,
    protocol,
    reports,
    runs,
)
from experiments.configuration import Config as TrainConfig
from vae_jax import bounds
from vae_jax.data import batches
from vae_jax.estimators import (
    importance,
    multiply_weighted,
    score_function,
    sgvb,
    wake_sleep,
)
from vae_jax.plots import curves, files
from vae_jax.training import gradient, loop
from vae_jax.types import Objective, Params, PRNGKey

NAIVE, OURS = "score_function", "sgvb_b"


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/estimator_variance", "Where the results are written.")
    dataset: str = cli.flag("digits", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    binarization: str = cli.flag(
        "threshold", "Pixels.", choices=("threshold", "static")
    )
    num_latents: int = cli.flag(16, "Latent dimensions.")
    hidden: tuple[int, ...] = cli.flag((200,), "Units of the hidden layers.")
    learning_rate: float = cli.flag(1e-3, "Of Adam.")
    epochs: tuple[int, ...] = cli.flag((1, 20, 200), "Where training stops to measure.")
    batch_size: int = cli.flag(100, "Images of the minibatch, M.")
    estimators: str = cli.flag(
        "", "Names of the first table, separated by |; all if empty."
    )
    num_samples: int = cli.flag(8, "Samples of z per image; even.")
    num_draws: int = cli.flag(400, "Gradients of each estimator.")
    reference_draws: int = cli.flag(4000, "Gradients behind each reference.")
    budget: int = cli.flag(100, "Decoder evaluations of a step, L x M.")
    seconds: float = cli.flag(5.0, "Training time of each L x M; 0 leaves it out.")
    seed: int = cli.flag(0, "Seed of the weights, the order and the noise.")

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be measured.

        Raises:
            ValueError: naming the flag and its value.
        """
        if self.num_samples < 4 or self.num_samples % 2:
            raise ValueError(
                f"--num_samples must be even and four or more, got {self.num_samples}"
            )
        if min(self.num_draws, self.reference_draws) < 2:
            raise ValueError("--num_draws and --reference_draws must be two or more")
        if not self.epochs:
            raise ValueError("--epochs must hold at least one stop")
        if sorted(set(self.epochs)) != list(self.epochs) or min(self.epochs) < 0:
            raise ValueError(f"--epochs must rise from 0 or more, got {self.epochs}")
        if self.budget < 1 or self.seconds < 0.0:
            raise ValueError("--budget must be positive and --seconds not negative")


class Case(NamedTuple):
    """An estimator, and the bounds whose gradients it should have on average."""

    objective: Objective
    theta: gradients.Mixture
    phi: gradients.Mixture


def train_config(config: Config) -> TrainConfig:
    """The training run that the experiment stops."""
    return TrainConfig(
        dataset=config.dataset,
        data_dir=config.data_dir,
        binarization=config.binarization,
        num_latents=config.num_latents,
        hidden=config.hidden,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def cases(model: models.Model, elbo: float, num_samples: int) -> dict[str, Case]:
    """The estimators for continuous latents, the naive one first."""
    pair, k, same = model.pair, num_samples, {}

    def case(
        objective: Objective, theta: gradients.Mixture, phi: gradients.Mixture = same
    ) -> Case:
        return Case(objective, theta, theta if phi is same else phi)

    of_elbo, of_k, of_half = {"elbo": 1.0}, {"l_k": 1.0}, {"l_half": 1.0}
    score = score_function.score_function
    path = {"bound": bounds.elbo, "num_samples": k, "with_score": False}
    outer = {"num_outer": 2, "num_samples": k // 2}
    return {
        NAIVE: case(score(*pair, num_samples=k), of_elbo),
        "score_function, constant baseline": case(
            score(*pair, num_samples=k, baseline=elbo), of_elbo
        ),
        "leave_one_out": case(
            score_function.leave_one_out(*pair, num_samples=k), of_elbo
        ),
        "sgvb_a": case(sgvb.sgvb_a(*pair, num_samples=k), of_elbo),
        OURS: case(sgvb.sgvb_b(*pair, num_samples=k, kl=models.kl), of_elbo),
        "sgvb_a, path gradient": case(importance.of_bound(*pair, **path), of_elbo),
        "iwae": case(importance.iwae(*pair, num_samples=k), of_k),
        "stick_the_landing": case(
            importance.stick_the_landing(*pair, num_samples=k), of_k
        ),
        "dreg": case(importance.dreg(*pair, num_samples=k), of_k),
        "vimco": case(score_function.vimco(*pair, num_samples=k), of_k),
        "ciwae, beta = 0.5": case(
            importance.ciwae(*pair, num_samples=k, beta=0.5),
            {"elbo": 0.5, "l_k": 0.5},
        ),
        "miwae, M = 2": case(multiply_weighted.miwae(*pair, **outer), of_half),
        "piwae, M = 2": case(multiply_weighted.piwae(*pair, **outer), of_k, of_half),
        "renyi, alpha = 0.5": case(
            importance.renyi(*pair, num_samples=k, alpha=0.5), None
        ),
        "jackknife, order 1": case(
            importance.jackknife(*pair, num_samples=k, order=1), None
        ),
        "reweighted_wake_sleep": case(
            wake_sleep.reweighted_wake_sleep(*pair, num_samples=k), of_k, None
        ),
    }


def references(model: models.Model, num_samples: int) -> dict[str, Objective]:
    """An unbiased estimator of each bound that `cases` names."""
    pair = model.pair
    return {
        "elbo": sgvb.sgvb_b(*pair, num_samples=num_samples, kl=models.kl),
        "l_k": importance.iwae(*pair, num_samples=num_samples),
        "l_half": importance.iwae(*pair, num_samples=num_samples // 2),
    }


def at_one_point(
    key: PRNGKey, config: Config, run: runs.Run, params: Params, x: Array
) -> dict[str, Any]:
    """Every estimator's row at one point of training."""
    key_elbo, key_known, key_draws = jax.random.split(key, 3)
    plain = references(run.model, config.num_samples)
    elbo = float(gradient.over_batch(plain["elbo"])(key_elbo, params, x))
    compared = _chosen(config, cases(run.model, elbo, config.num_samples))
    wanted = {
        name
        for case in compared.values()
        for mixture in (case.theta, case.phi)
        for name in mixture or ()
    }
    known = {
        name: gradients.moments(
            jax.random.fold_in(key_known, i),
            gradients.of_batch(objective, x),
            params,
            config.reference_draws,
        )
        for i, (name, objective) in enumerate(plain.items())
        if name in wanted
    }
    rows: dict[str, Any] = {}
    for i, (name, case) in enumerate(compared.items()):
        gradient_of = gradients.of_batch(case.objective, x)
        drawn = gradients.moments(
            jax.random.fold_in(key_draws, i), gradient_of, params, config.num_draws
        )
        rows[name] = {
            "theta": gradients.compare(drawn, "generative", case.theta, known),
            "phi": gradients.compare(drawn, "recognition", case.phi, known),
            "ms": gradients.milliseconds(key_draws, gradient_of, params),
        }
    for row in rows.values():
        ours = rows[OURS]["phi"]["variance"]
        row["phi"]["relative_variance"] = row["phi"]["variance"] / ours
    return {"elbo_of_the_minibatch": elbo, "estimators": rows}


def _chosen(config: Config, known: dict[str, Case]) -> dict[str, Case]:
    names = config.estimators.split("|") if config.estimators else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise cli.UsageError(
            f"--estimators: unknown {', '.join(unknown)}; known: {' | '.join(known)}"
        )
    return {name: known[name] for name in known if name in {OURS, *names}}


def table(result: dict[str, Any]) -> str:
    """The rows of one point as lines of text."""
    lines = [
        f"{'':<36}{'phi: relative':>14}{'snr':>8}{'bias':>8}{'seen from':>10}"
        f"{'theta: variance':>17}{'snr':>8}{'bias':>8}{'ms':>8}"
    ]
    for name, row in result["estimators"].items():
        phi, theta = row["phi"], row["theta"]
        lines.append(
            f"{name:<36}{phi['relative_variance']:>14.4g}{phi['snr']:>8.3f}"
            f"{phi.get('bias', float('nan')):>8.3f}"
            f"{phi.get('noise_of_bias', float('nan')):>10.3f}"
            f"{theta['variance']:>17.4g}{theta['snr']:>8.3f}"
            f"{theta.get('bias', float('nan')):>8.3f}{row['ms']:>8.2f}"
        )
    return "\n".join(lines)


def run_all(config: Config) -> dict[str, Any]:
    """Trains, stops and measures."""
    with cli.user_errors():
        flags = train_config(config)
    run = runs.build(flags)
    _chosen(config, cases(run.model, 0.0, config.num_samples))
    key_measure, key_rows, key_batch = jax.random.split(run.keys.evaluation, 3)
    prepared = run.data.prepared
    data, scan = jnp.asarray(prepared.train), loop.scan(run.algorithm, prepared.take)
    chosen = batches.order(key_rows, len(data), batch_size=config.batch_size)[0]
    x = prepared.take(jax.random.clone(key_rows), data, chosen).x
    state, done, points = runs.initial(run).run, 0, {}
    for epochs in config.epochs:
        for epoch in range(done, epochs):
            key = jax.random.fold_in(run.keys.order, epoch)
            order = batches.order(key, len(data), batch_size=config.batch_size)
            state, _ = scan(state, data, order)
        done = epochs
        key = jax.random.fold_in(key_measure, epochs)
        point = at_one_point(key, config, run, state.inner.params, x)
        print(f"\nepoch {epochs}, ELBO {point['elbo_of_the_minibatch']:.2f}")
        print(table(point), flush=True)
        points[epochs] = point
    return {
        "points": points,
        "against_batch": equal_budget.against_batch(
            key_batch,
            run,
            state.inner.params,
            budget=config.budget,
            num_draws=config.num_draws,
            seconds=config.seconds,
        ),
        "protocol": protocol.stamp(run.config, run.data),
    }


def draw(result: dict[str, Any], folder: pathlib.Path) -> None:
    """Variances of phi and theta over training, and the bounds at equal time."""
    points = result["points"]
    names = next(iter(points.values()))["estimators"]
    panels = {
        part: {
            name: (
                list(points),
                [p["estimators"][name][part]["variance"] for p in points.values()],
            )
            for name in names
        }
        for part in ("phi", "theta")
    }
    figure = curves.series(
        panels, x_label="epoch", y_label="variance of a gradient", log="y"
    )
    files.save(figure, folder / "variance.png")
    rows = result["against_batch"]
    if rows and "steps" in rows[0]:
        levels = [row["num_samples"] for row in rows]
        drawn = {
            split: (levels, [row.get(f"{split}_elbo", np.nan) for row in rows])
            for split in ("train", "test")
        }
        figure = curves.series(
            {"ELBO at equal time and L x M": drawn},
            x_label="samples per image, L",
            y_label="nats per image",
            log="x",
        )
        files.save(figure, folder / "bounds.png")


def main(config: Config) -> int:
    """Measures, prints, writes and draws."""
    folder, started = reports.claim(config.workdir), time.monotonic()
    result = run_all(config)
    print(f"\n{'L':>4}{'M':>6}{'phi variance':>15}{'theta variance':>16}", end="")
    print(f"{'steps':>9}{'train ELBO':>12}{'test ELBO':>11}")
    for row in result["against_batch"]:
        print(f"{row['num_samples']:>4}{row['batch_size']:>6}", end="")
        print(f"{row['phi_variance']:>15.4g}{row['theta_variance']:>16.4g}", end="")
        elbos = [row.get(f"{split}_elbo", np.nan) for split in ("train", "test")]
        print(f"{row.get('steps', 0):>9}{elbos[0]:>12.2f}{elbos[1]:>11.2f}")
    with cli.user_errors():
        draw(result, folder)
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s")
    reports.write(folder / "variance.json", config, result | {"seconds": seconds})
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
