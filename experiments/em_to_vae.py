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
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import algorithms, cli, measure, reports, runs, timed
from experiments.configuration import Config as TrainConfig
from vae_jax.evaluation import exact, examples
from vae_jax.inference import quadrature_em
from vae_jax.plots import curves, files
from vae_jax.training import loop
from vae_jax.types import Algorithm

NUM_LATENTS = 2
METHODS = ("em", "mcem", "vem", "wake_sleep", "aevb")
SPLITS = ("train", "test")
QUANTITIES = {"log_p": "log p(x)", "elbo": "bound", "gap": "log p(x) - bound"}
ROWS_AT_ONCE = 10  # of the evaluation's grid


@dataclasses.dataclass(frozen=True)
class Config:
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/em_to_vae", "Where the results are written.")
    dataset: str = cli.flag("digits", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    methods: str = cli.flag(",".join(METHODS), "Comma-separated names.")
    hidden: tuple[int, ...] = cli.flag((50,), "Units of encoder and decoder.")
    batch_size: int = cli.flag(100, "Images per step.")
    learning_rate: float = cli.flag(3e-3, "Of Adam.")
    num_updates: int = cli.flag(5, "Updates of theta per E-step (em, mcem).")
    num_epochs: int = cli.flag(500, "Passes over the training split.")
    num_points: int = cli.flag(12, "Points of each curve, evenly in log epochs.")
    num_nodes: int = cli.flag(32, "A side of EM's grid.")
    check_nodes: int = cli.flag(64, "A side of the evaluation's grid.")
    eval_samples: int = cli.flag(100, "Samples per image of the bound.")
    num_images: int = cli.flag(200, "Images of each split that are evaluated.")
    seed: int = cli.flag(0, "Seed of the weights, the order and the noise.")

    def __post_init__(self) -> None:
        """Refuses what cannot be compared.

        Raises:
            ValueError: naming the flag and its value.
        """
        for name in ("num_epochs", "num_points", "num_images", "eval_samples"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        if self.num_updates < 1:
            raise ValueError(f"--num_updates must be positive, got {self.num_updates}")
        for name in ("num_nodes", "check_nodes"):
            if getattr(self, name) < 2:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be at least 2, got {value}")
        unknown = [m for m in self.methods.split(",") if m not in METHODS]
        if unknown:
            raise ValueError(
                f"--methods: {', '.join(unknown)} unknown; known: {', '.join(METHODS)}"
            )


def points(config: Config) -> list[int]:
    """Epochs at which the curves are measured: 1 to the last, evenly in logarithm."""
    spaced = np.geomspace(1, config.num_epochs, config.num_points)
    return sorted({round(epoch) for epoch in spaced})


def build(config: Config, method: str) -> tuple[runs.Run, Algorithm]:
    """The model of a method and what fits it."""
    own: dict[str, Any] = {} if method == "em" else {"algorithm": method}
    if method == "mcem":
        own["num_updates"] = config.num_updates
    flags = TrainConfig(
        dataset=config.dataset,
        data_dir=config.data_dir,
        num_latents=NUM_LATENTS,
        hidden=config.hidden,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        seed=config.seed,
        **own,
    )
    run = runs.build(flags)
    if method != "em":
        return run, run.algorithm
    optimizer = algorithms.optimizer(flags, steps_per_epoch=run.steps_per_epoch)
    return run, quadrature_em.quadrature_em(
        run.model.joint,
        optimizer,
        num_latents=NUM_LATENTS,
        num_nodes=config.num_nodes,
        num_updates=config.num_updates,
    )


def train(config: Config, method: str) -> dict[str, Any]:
    """The curve of one method."""
    with cli.user_errors():
        run, algorithm = build(config, method)
        for split in SPLITS:
            rows = len(getattr(run.data.prepared, split))
            if rows < config.num_images:
                raise ValueError(
                    f"--num_images={config.num_images}, but the {split} split has "
                    f"{rows} rows"
                )
    start = loop.start(run.keys.steps, algorithm, run.model.init(run.keys.init))
    state, found = timed.curve(
        start,
        algorithm,
        run.data.prepared,
        key_order=run.keys.order,
        batch_size=config.batch_size,
        epochs_per_scan=1,
        points=points(config),
        measure=_measurement(config, run, with_q=method != "em"),
    )
    return {**found, "grid_change": _grid_change(config, run, state.inner)}


def _evidence(run: runs.Run, *, num_nodes: int) -> Callable[..., Any]:
    """Compiles (key, params, rows [N, *X]) -> log p(x) of each row on a grid."""
    grid = exact.grid_quadrature(
        run.model.joint, num_latents=NUM_LATENTS, num_nodes=num_nodes
    )
    return examples.over_examples(
        lambda key, params, x: grid(params, x),
        batch_size=ROWS_AT_ONCE,
        value=run.data.prepared.value,
    )


def _grid_change(config: Config, run: runs.Run, state: Any) -> float:
    """The largest change of a test image's log p(x) on a grid half as fine again."""
    rows = jnp.asarray(run.data.prepared.test[: config.num_images])
    found = [
        np.asarray(
            _evidence(run, num_nodes=num_nodes)(
                jax.random.clone(run.keys.evaluation), state.params, rows
            ),
            np.float64,
        )
        for num_nodes in (config.check_nodes, config.check_nodes * 3 // 2)
    ]
    return float(np.abs(found[0] - found[1]).max())


def _measurement(
    config: Config, run: runs.Run, *, with_q: bool
) -> Callable[[Any], dict[str, float]]:
    """state -> log p(x), bound and gap of both splits, means in nats."""
    prepared, size = run.data.prepared, config.num_images
    evidence = _evidence(run, num_nodes=config.check_nodes)
    terms = measure.elbo_over_examples(
        run.model, prepared, num_samples=config.eval_samples
    )

    def measured(state: Any) -> dict[str, float]:
        found = {}
        for split in SPLITS:
            rows = jnp.asarray(getattr(prepared, split)[:size])
            key = jax.random.clone(run.keys.evaluation)
            log_p = np.asarray(evidence(key, state.params, rows), np.float64).mean()
            elbo = log_p  # exact EM's q is the posterior on the grid
            if with_q:
                key = jax.random.clone(run.keys.evaluation)
                reconstruction, kl = terms(key, state.params, rows)
                elbo = np.asarray(reconstruction - kl, np.float64).mean()
            found |= {
                f"{split}_log_p": float(log_p),
                f"{split}_elbo": float(elbo),
                f"{split}_gap": float(log_p - elbo),
            }
        return found

    return measured


def run(config: Config, folder: pathlib.Path) -> dict[str, Any]:
    """Every method in turn; one that was finished with these flags is read back."""
    result = {}
    print(f"{'':<12}{'epochs':>7}{'seconds':>9}", end="")
    print("".join(f"{f'{s} {q}':>13}" for s in SPLITS for q in QUANTITIES), end="")
    print(f"{'grid change':>13}")
    for name in config.methods.split(","):
        curve = result[name] = reports.kept(
            folder / f"{name}.json", _of_method(config), partial(train, config, name)
        )
        numbers = [curve[f"{s}_{q}"][-1] for s in SPLITS for q in QUANTITIES]
        print(
            f"{name:<12}{curve['epoch'][-1]:7d}{curve['seconds'][-1]:9.1f}"
            + "".join(f"{number:13.3f}" for number in numbers)
            + f"{curve['grid_change']:13.1e}",
            flush=True,
        )
    return result


def _of_method(config: Config) -> dict[str, Any]:
    """The flags that a method's curve depends on."""
    ignored = ("workdir", "methods", "data_dir")
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in ignored}


def main(config: Config) -> int:
    """Fits, prints, writes and draws."""
    folder = reports.claim(config.workdir)
    result = run(config, folder)
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
    with cli.user_errors():
        files.save(figure, folder / "em_to_vae.png")
    reports.write(folder / "em_to_vae.json", config, {"methods": result})
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
