r"""Training steps and evidence on a GPU or TPU: one command that can be taken up again.

    python -m experiments.benchmark.accelerator --workdir=DIR

For a machine that is lent for minutes: it needs no data set and no package beyond what
a step needs. The AEVB step (784-500-20, batch 100), Burda et al.'s (arXiv:1509.00519;
784-200-200-50, batch 20, k = 50), a step of residual convolutions (width 32, batch 128)
and log p(x) by 5,000 importance samples, each at every precision of matrix products;
then `--seeds` of each step together, then its `--batch_sizes`. Images are random bytes.

Every result is written before the next measurement begins, and the same command does
those that are left. None begins after `--minutes`.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmark import contenders, importance_sampling, ours
from experiments.choices.config import Config as Flags
from experiments.command import cli, report
from experiments.runs import runs

EVIDENCE = "evidence"
MODELS: dict[str, dict[str, Any]] = {  # flags of experiments.train
    "aevb": {"batch_size": 100, "hidden": (500,), "num_latents": 20},
    "iwae": {
        "batch_size": 20,
        "hidden": (200, 200),
        "num_latents": 50,
        "estimator": "iwae",
        "num_samples": 50,
        "learning_rate": 1e-3,
    },
    "resnet": {
        "batch_size": 128,
        "network": "resnet",
        "activation": "gelu",
        "num_latents": 40,
    },
    EVIDENCE: {"hidden": (500,), "num_latents": 20},
}
PRECISIONS = {  # of float32 products, by JAX's name
    "float32": "float32",
    "tf32": "tensorfloat32",
    "bfloat16": "tensorfloat32",
}
DEFAULT = "tf32"
COLUMNS = (
    report.field("", "name", width=39),
    report.field("ms", "ms", ".4f"),
    report.field("examples/s", "examples_per_second", ".0f", 12),
    report.field("log p(x)", "log_p", ".3f", 10),
    report.Column("", lambda row: f" {row.get('error', '')}", width=0),
)


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One benchmark; every field is a flag."""

    workdir: str = cli.flag("runs/accelerator", "Where the results are written.")
    minutes: float = cli.flag(7.0, "No measurement begins later.", above=0)
    seconds: float = cli.flag(1.0, "Least time of a measurement.", above=0)
    models: tuple[str, ...] = cli.flag(
        tuple(MODELS), "What is measured.", choices=MODELS, empty=False
    )
    precisions: tuple[str, ...] = cli.flag(
        tuple(PRECISIONS), "Of matrix products.", choices=PRECISIONS
    )
    seeds: tuple[int, ...] = cli.flag((2, 8, 32, 64), "Seeds together.", least=1)
    batch_sizes: tuple[int, ...] = cli.flag((1000, 10_000), "Batches.", least=1)
    num_rows: int = cli.flag(50_000, "Images of a pass.", least=1)
    importance_samples: int = cli.flag(5000, "Samples of log p(x).", least=1)
    num_images: int = cli.flag(100, "Images whose log p(x) is timed.", least=1)


class Measurement(NamedTuple):
    """One row of the table."""

    model: str
    precision: str
    changes: dict[str, int]  # of its flags

    @property
    def name(self) -> str:
        """Of its row and its file."""
        changes = [f"{name}_{value}" for name, value in self.changes.items()]
        return "_".join([self.model, self.precision, *changes])


def main(config: Config) -> int:
    """Measures what is left to be measured; prints and writes all."""
    started, folder = time.monotonic(), report.claim(config.workdir)
    device, rows, left = report.environment()["device"], [], 0
    shared = config.some(("seconds", "num_rows", "importance_samples", "num_images"))
    print(device, report.heading(COLUMNS), sep="\n")
    for measurement in measurements(config):
        path = folder / f"{measurement.name}.json"
        late = time.monotonic() - started > 60.0 * config.minutes
        if late and not path.is_file():
            left += 1
            continue
        flags = shared | measurement._asdict() | {"device": device}
        row = report.cached(path, flags, partial(measured, config, measurement))
        rows.append({"name": measurement.name} | row)
        print(report.line(COLUMNS, rows[-1]), flush=True)
    report.write(folder / "result.json", config, {"rows": rows, "left": left})
    if left:
        print(f"{left} measurements are left: the same command does them")
    return 0


def measurements(config: Config) -> list[Measurement]:
    """Those of a configuration, in their order."""
    listed = [
        Measurement(model, precision, {})
        for precision in config.precisions
        for model in config.models
    ]
    axes = {"num_seeds": config.seeds, "batch_size": config.batch_sizes}
    return listed + [
        Measurement(model, DEFAULT, {axis: value})
        for axis, values in axes.items()
        for value in values
        for model in config.models
        if model != EVIDENCE
    ]


def measured(config: Config, measurement: Measurement) -> dict[str, Any]:
    """Its numbers, or the first line of why the device could not."""
    measure = of_evidence if measurement.model == EVIDENCE else of_steps
    try:
        with jax.default_matmul_precision(PRECISIONS[measurement.precision]):
            return measure(config, measurement)
    except jax.errors.JaxRuntimeError as error:  # such as too little memory
        return {"error": str(error).splitlines()[0][:100]}


def of_steps(config: Config, measurement: Measurement) -> dict[str, float]:
    """Passes over the rows as `experiments.train` makes them."""
    changes: dict[str, Any] = MODELS[measurement.model] | measurement.changes
    changes |= {"precision": _of_networks(measurement)}
    flags = Flags(**changes, binarization="dynamic")
    shape = (max(config.num_rows, flags.batch_size), 28, 28)
    rows = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    run = ours.run(flags, rows, 255.0)
    epoch, _ = ours.passes(run, runs.initial(run).run)
    epoch()  # compiles
    seconds = timed(epoch, config.seconds) / run.steps_per_epoch
    together = flags.batch_size * len(run.configs)
    return {"ms": 1e3 * seconds, "examples_per_second": together / seconds}


def of_evidence(config: Config, measurement: Measurement) -> dict[str, float]:
    """Log p(x) of some images, at weights that do not matter, and its mean."""
    changes: dict[str, Any] = MODELS[measurement.model]
    places = contenders.layout(contenders.Flags(**changes), (28 * 28,))
    weights = importance_sampling.near_prior(contenders.initial(*places))
    evaluate = ours.evaluator(
        weights, config.importance_samples, precision=_of_networks(measurement)
    )
    generator = np.random.default_rng(0)
    images = generator.random((config.num_images, 28, 28), np.float32) < 0.13
    mean = float(evaluate(images).mean(dtype=np.float64))  # compiles
    seconds = timed(lambda: evaluate(images), config.seconds) / config.num_images
    return {"ms": 1e3 * seconds, "examples_per_second": 1.0 / seconds, "log_p": mean}


def _of_networks(measurement: Measurement) -> str:
    """What the networks' own products compute in."""
    return "bfloat16" if measurement.precision == "bfloat16" else "float32"


def timed(work: Callable[[], Any], seconds: float) -> float:
    """The mean time of a call, over calls of that long at least."""
    started, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds or not calls:
        work()
        calls += 1
    return elapsed / calls


if __name__ == "__main__":
    cli.run(Config, main)
