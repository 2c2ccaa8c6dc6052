"""Runs of a tiny configuration, and what they leave, for the tests of scripts."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
from tensorboard.backend.event_processing import event_accumulator

from experiments.choices.config import Config
from experiments.command import cli
from experiments.runs import fit, rundir, runs
from vae_jax.training import checkpoints, journal

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = ROOT / "experiments" / "flags"
TINY = Config(
    hidden=(8,),
    num_latents=2,
    num_epochs=2,
    eval_samples=2,
    valid_samples=1,
    progress=False,
)
TIMES = ("seconds", "elapsed", "examples_per_second")


def tiny(path: pathlib.Path, **changes) -> Config:
    return dataclasses.replace(TINY, workdir=str(path), **changes)


def saved(config: Config) -> pathlib.Path:
    """The workdir of a run that is saved before its first step."""
    run = fit.claim(config)
    checkpoints.save(run.workdir / rundir.CHECKPOINTS, 0, runs.initial(run))
    return run.workdir


def saved_arrays(config: Config) -> list[np.ndarray]:
    """Every array of a run's newest checkpoint."""
    trained = fit.restore(runs.build(config))
    keys = jax.random.key_data(trained.run.key)
    trained = trained._replace(run=trained.run._replace(key=keys))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trained)]


def metrics(workdir: str) -> list[dict]:
    """The rows of a run without its times."""
    rows = journal.read(workdir)
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def events(directory):
    """{name: [(step, value)]}, as TensorBoard shows them."""
    reader = event_accumulator.EventAccumulator(str(directory))
    reader.Reload()
    return {
        name: [(event.step, event.value) for event in reader.Scalars(name)]
        for name in reader.Tags()["scalars"]
    }


def command(config) -> list[str]:
    lines = cli.write_flagfile(config).split("\n")
    return [sys.executable, "-m", "experiments.train", *filter(None, lines)]
