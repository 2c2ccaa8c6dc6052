r"""From EM to the VAE: five ways of fitting one model, on one axis of time.

    python -m experiments.em_to_vae --flagfile=experiments/flags/em_to_vae/quick.flags

The model has two latents and a tanh decoder, so that log p(x) is exact by quadrature
on a grid. Exact EM takes the posterior on that grid; Monte Carlo EM samples it;
variational EM searches a normal for each row; wake-sleep and AEVB learn an encoder.
Each starts from the same theta with the same optimizer. Reported of both splits: log
p(x), the bound of the method's own q (for Monte Carlo EM a normal fitted to HMC draws)
and the gap between them, KL(q || posterior). The clock counts training steps alone. The
grid's own error is reported too, as the largest change on a finer one.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choices import algorithms
from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.measures import measure
from experiments.runs import protocol, runs
from vae_jax.data import batches
from vae_jax.estimators import sgvb
from vae_jax.evaluation import exact, examples
from vae_jax.inference import quadrature_em
from vae_jax.plots import curves
from vae_jax.training import loop, timed
from vae_jax.types import Algorithm, Params

NUM_LATENTS = 2
METHODS = ("em", "mcem", "vem", "wake_sleep", "aevb")
SPLITS = ("train", "test")
QUANTITIES = {"log_p": "log p(x)", "elbo": "bound", "gap": "log p(x) - bound"}
ROWS_AT_ONCE = 10  # of the evaluation's grid
COLUMNS = (
    report.field("", "method", width=12),
    report.field("epochs", "epoch", width=6),
    report.field("seconds", "seconds", ".1f", 8),
    *(
        report.field(f"{split} {name}", f"{split}_{name}", ".3f", 12)
        for split in SPLITS
        for name in QUANTITIES
    ),
    report.field("grid change", "grid_change", ".1e", 12),
)


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/em_to_vae", "Where the results are written.")
    dataset: str = cli.flag("digits", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    methods: tuple[str, ...] = cli.flag(
        METHODS, "What is compared.", choices=METHODS, empty=False
    )
    hidden: tuple[int, ...] = cli.flag((50,), "Units of encoder and decoder.")
    batch_size: int = cli.flag(100, "Images per step.")
    learning_rate: float = cli.flag(3e-3, "Of Adam.")
    num_updates: int = cli.flag(5, "Updates of theta an E-step (em, mcem).", least=1)
    num_epochs: int = cli.flag(500, "Passes over the training split.", least=1)
    num_points: int = cli.flag(12, "Points of a curve, even in log epochs.", least=1)
    num_nodes: int = cli.flag(32, "A side of EM's grid.", least=2)
    check_nodes: int = cli.flag(64, "A side of the evaluation's grid.", least=2)
    eval_samples: int = cli.flag(100, "Samples per row of the bound.", least=1)
    num_images: int = cli.flag(200, "Images of each split to evaluate.", least=1)
    seed: int = cli.flag(0, "Seed of the weights, the order and the noise.", least=0)

    def refuse(self) -> None:
        """Refuses what `experiments.train` would refuse."""
        train_config(self)


def points(config: Config) -> list[int]:
    """Epochs at which the curves are measured: 1 to the last, evenly in logarithm."""
    spaced = np.geomspace(1, config.num_epochs, config.num_points)
    return sorted({round(epoch) for epoch in spaced})


def train_config(config: Config, **changes: Any) -> TrainConfig:
    """The flags of `experiments.train` that all methods share, and those of one."""
    shared = ("dataset", "data_dir", "hidden", "batch_size", "learning_rate", "seed")
    return TrainConfig(**config.some(shared), num_latents=NUM_LATENTS, **changes)


def build(config: Config, method: str) -> tuple[runs.Run, Algorithm]:
    """The model of a method and what fits it."""
    changes: dict[str, Any] = {} if method == "em" else {"algorithm": method}
    if method == "mcem":
        changes["num_updates"] = config.num_updates
    run = runs.build(train_config(config, **changes))
    if method != "em":
        return run, run.algorithm
    steps = algorithms.Steps(len(run.data.source.train), run.steps_per_epoch)
    return run, quadrature_em.quadrature_em(
        run.model.generative,
        algorithms.optimizer(run.config, steps),
        num_latents=NUM_LATENTS,
        num_nodes=config.num_nodes,
        num_updates=config.num_updates,
    )


def train(config: Config, method: str) -> dict[str, Any]:
    """The curve of one method, and its grid's error at the end."""
    size = config.num_images
    with cli.user_errors():
        run, algorithm = build(config, method)
        prepared = run.data.prepared
        protocol.check_rows(run.data, size)
    log_p = _log_p(run, num_nodes=config.check_nodes)
    terms = measure.over_rows(
        sgvb.elbo_terms(run.model, num_samples=config.eval_samples),
        prepared.value,
        num_decoded=config.eval_samples,
    )

    def at(state: Any) -> dict[str, float]:
        """log p(x), bound and gap of both splits, means in nats."""
        result = {}
        for split in SPLITS:
            rows = jnp.asarray(getattr(prepared, split)[:size])
            evidence = elbo = log_p(state.params, rows).mean()
            if method != "em":  # whose q is the posterior on the grid
                key = jax.random.clone(run.keys.evaluation)
                reconstruction, kl = terms(key, state.params, rows)
                elbo = np.asarray(reconstruction - kl, np.float64).mean()
            numbers = (float(evidence), float(elbo), float(evidence - elbo))
            names = (f"{split}_{name}" for name in QUANTITIES)
            result |= dict(zip(names, numbers, strict=True))
        return result

    state, curve = timed.curve(
        loop.start(run.keys.steps, algorithm, run.model.init(run.keys.init)),
        algorithm,
        jnp.asarray(prepared.train),
        take=prepared.take,
        order=lambda epoch: batches.epochs(
            jax.random.fold_in(run.keys.order, epoch),
            len(prepared.train),
            batch_size=config.batch_size,
            num_epochs=1,
        ),
        epochs_per_scan=1,
        points=points(config),
        measure=at,
    )
    finer = _log_p(run, num_nodes=config.check_nodes * 3 // 2)
    params, rows = state.inner.params, jnp.asarray(prepared.test[:size])
    change = np.abs(log_p(params, rows) - finer(params, rows)).max()
    return {**curve, "grid_change": float(change)}


def _log_p(run: runs.Run, *, num_nodes: int) -> Callable[[Params, Any], np.ndarray]:
    """(params, rows [N, *X]) -> log p(x) of each row on a grid."""
    grid = exact.grid_quadrature(
        run.model.generative, num_latents=NUM_LATENTS, num_nodes=num_nodes
    )
    evaluate = examples.over_examples(
        lambda key, params, x: grid(params, x),
        batch_size=ROWS_AT_ONCE,
        value=run.data.prepared.value,
    )
    key = run.keys.evaluation  # a grid draws nothing
    return lambda params, rows: np.asarray(
        evaluate(jax.random.clone(key), params, rows), np.float64
    )


def main(config: Config) -> int:
    """Fits, prints, writes and draws; a method finished with these flags is read."""
    folder, result, shared = report.claim(config.workdir), {}, train_config(config)
    with cli.user_errors():
        data = protocol.load(shared)
    print(protocol.opening(shared, data))
    flags = config.but("workdir", "methods", "data_dir")

    def rows() -> Iterator[dict[str, Any]]:
        for name in config.methods:
            curve = result[name] = report.cached(
                folder / f"{name}.json",
                flags | {"sha256": data.sha256},
                partial(train, config, name),
            )
            last = {k: v[-1] for k, v in curve.items() if isinstance(v, list)}
            yield {**curve, **last, "method": name}

    report.printed(COLUMNS, rows())
    panels = {
        f"{label}, test": {
            name: (curve["seconds"], curve[f"test_{quantity}"])
            for name, curve in result.items()
        }
        for quantity, label in QUANTITIES.items()
    }
    figure = curves.series(
        panels, x_label="seconds of training", y_label="nats per image", log="x"
    )
    report.write(
        folder / "em_to_vae.json", config, {"methods": result}, {"em_to_vae": figure}
    )
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
