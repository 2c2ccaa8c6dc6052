r"""A sigmoid belief network trained by every estimator for binary latents.

    python -m experiments.discrete
    python -m experiments.discrete --dataset=binarized_mnist --data_dir=DIR \
        --layers=200 --num_epochs=20

Every estimator starts from the same weights and takes as many samples per image as
`--num_samples` decoder evaluations allow: a relaxed sample costs two (one decides the
value and theta's gradient, one phi's), of REBAR and RELAX three. The curve is the
100-sample bound of the test split against training time, compilation and evaluation not
counted; at the end log p(x) by importance sampling is given as well. Estimators that
need a factorial q are left out where there is more than one layer.
Writes discrete.json and discrete.png.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choices import estimators
from experiments.choices.config import Config as TrainConfig
from experiments.choices.densities import POSTERIORS
from experiments.command import cli, report
from experiments.command.report import Column, field
from experiments.measures import measure
from experiments.runs import protocol
from vae_jax import vae
from vae_jax.data import batches
from vae_jax.estimators import importance
from vae_jax.latent_models import sigmoid_belief
from vae_jax.plots import curves
from vae_jax.training import gradient, journal, loop, timed
from vae_jax.types import Params

BOUND_SAMPLES = 100
COLUMNS = [
    field("", "name", width=24),
    Column("test bound", lambda row: row.bound[-1], ".2f", 11),
    field("log p(x)", "log_p", ".2f", 9),
    field("s.e.", "log_p_standard_error", ".2f", 7),
    Column("seconds", lambda row: row.seconds[-1], ".1f", 8),
]


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/discrete", "Where the results are written.")
    dataset: str = cli.flag("digits", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    binarization: str = cli.flag(
        "auto",
        "Pixels, as in experiments.train.",
        choices=("auto", "threshold", "static", "dynamic"),
    )
    layers: tuple[int, ...] = cli.flag(
        (32,), "Bits of each layer, x's first.", least=1, empty=False
    )
    hidden: tuple[int, ...] = cli.flag((), "Hidden units of each layer of q.", least=1)
    estimators: tuple[str, ...] = cli.flag((), "Their names; all that fit if empty.")
    num_samples: int = cli.flag(
        8, "Decoder evaluations per image.", least=2, multiple=2
    )
    batch_size: int = cli.flag(100, "Images per step.", least=1)
    learning_rate: float = cli.flag(3e-3, "Of Adam.", above=0)
    num_epochs: int = cli.flag(300, "Passes over the training split.", least=1)
    eval_every: int = cli.flag(20, "Epochs between two points of the curve.", least=1)
    importance_samples: int = cli.flag(1000, "Samples per image of log p(x).", least=1)
    seed: int = cli.flag(0, "Seed of the weights, the order and the noise.", least=0)

    def refuse(self) -> None:
        """Refuses numbers that cannot be trained."""
        if self.num_epochs > self.eval_every and self.num_epochs % self.eval_every:
            raise ValueError(
                f"--num_epochs={self.num_epochs} is no multiple of --eval_every="
                f"{self.eval_every}"
            )
        measure.check_importance_samples(self.importance_samples)
        unknown = [name for name in self.names if name not in fitting(self.layers)]
        if unknown:
            raise ValueError(
                f"--estimators: {', '.join(unknown)} unknown or not for "
                f"{len(self.layers)} layers; what fits: "
                f"{', '.join(fitting(self.layers))}"
            )

    @property
    def names(self) -> Sequence[str]:
        """The estimators that are compared."""
        return self.estimators or fitting(self.layers)


def fitting(layers: tuple[int, ...]) -> list[str]:
    """The estimators of binary latents; where q has several layers, of any q."""
    bits = POSTERIORS["bernoulli"].traits
    return estimators.fitting(bits._replace(layered=len(layers) > 1))


class Curve(NamedTuple):
    """The curve of one estimator, and log p(x) of the test split at its end."""

    name: str
    epoch: list[float]
    seconds: list[float]
    bound: list[float]  # nats per example, of the test split
    log_p: float
    log_p_standard_error: float


def train(config: Config, name: str, data: protocol.Dataset) -> Curve:
    """The curve of one estimator, and log p(x) of the test split at its end."""
    row = estimators.ESTIMATORS[name]
    with cli.user_errors():
        model = vae.model(
            sigmoid_belief.generative(config.layers, data.x_shape),
            sigmoid_belief.recognition(
                config.layers, data.x_shape, hidden=config.hidden
            ),
        )
        num_samples = config.num_samples // row.decodings
        flags = TrainConfig(
            posterior="bernoulli", estimator=name, num_samples=num_samples
        )
        started, learned = estimators.with_learned(
            flags, model, num_entries=math.prod(data.x_shape)
        )
        objective = estimators.objective(flags, model, learned=learned, num_data=1)
    algorithm = gradient.ascent(objective, gradient.adam(config.learning_rate))
    key_theta, key_phi, key_run, key_order, key_eval = jax.random.split(
        jax.random.key(config.seed), 5
    )
    start = Params(model.generative.init(key_theta), started.recognition.init(key_phi))
    prepared, test = data.prepared, jnp.asarray(data.prepared.test)
    bound = measure.over_rows(
        importance.iwae(model, num_samples=BOUND_SAMPLES),
        prepared.value,
        num_decoded=BOUND_SAMPLES,
    )
    num_samples = config.importance_samples
    evidence = measure.over_rows(
        measure.log_evidence(model, num_samples=num_samples),
        prepared.value,
        num_decoded=min(num_samples, measure.IMPORTANCE_CHUNK),
    )
    every = min(config.eval_every, config.num_epochs)
    points = range(every, config.num_epochs + 1, every)
    ahead, progress = iter(points), journal.progress(config.num_epochs)

    def test_bound(inner: Any) -> dict[str, float]:
        values = bound(jax.random.clone(key_eval), inner.params, test)
        mean = float(np.asarray(values, np.float64).mean())
        progress.update(next(ahead), bound=mean)
        return {"bound": mean}

    state, curve = timed.curve(
        loop.start(key_run, algorithm, start),
        algorithm,
        jnp.asarray(prepared.train),
        take=prepared.take,
        order=lambda scan: batches.epochs(
            jax.random.fold_in(key_order, scan),
            len(prepared.train),
            batch_size=config.batch_size,
            num_epochs=every,
        ),
        epochs_per_scan=every,
        points=points,
        measure=test_bound,
    )
    progress.close()
    sampled = evidence(jax.random.clone(key_eval), state.inner.params, test)
    log_p = np.asarray(sampled.log_p, np.float64)
    error = measure.standard_error(log_p)
    return Curve(name, **curve, log_p=float(log_p.mean()), log_p_standard_error=error)


def main(config: Config) -> int:
    """Trains, prints, writes and draws."""
    folder = report.claim(config.workdir)
    with cli.user_errors():
        flags = TrainConfig(
            dataset=config.dataset,
            data_dir=config.data_dir,
            binarization=config.binarization,
        )
        data = protocol.load(flags)
        protocol.check_rows(data)
        protocol.check_rows(
            data, config.batch_size, flag="batch_size", splits=("train",)
        )
    print(protocol.opening(flags, data), flush=True)
    rows = report.printed(COLUMNS, (train(config, name, data) for name in config.names))
    panel = {row.name: (row.seconds, row.bound) for row in rows}
    figure = curves.series(
        {f"{config.dataset}, {', '.join(map(str, config.layers))} bits": panel},
        x_label="seconds of training",
        y_label=f"test bound, {BOUND_SAMPLES} samples, nats",
    )
    result = {"estimators": {row.name: row for row in rows}}
    report.write(folder / "discrete.json", config, result, {"discrete": figure})
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
