r"""Ten epochs of MNIST as whole processes, from the command to the exit.

    python -m experiments.benchmark.whole --data_dir=DIR

Each contender is a process of its own that imports, reads the data, compiles if it
does, trains the AEVB model and writes its weights (`experiments.benchmark.process`), no
cache of compiled programs before it. `experiments.train` is the project's command,
which does more: a validation bound after each epoch, checkpoints, TensorBoard events,
the test bound and pictures. What each has reached is measured on the test rows, all by
one ruler; a peer more than a nat from ours is no contender.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from experiments.benchmark import comparison, contenders, ours, process, rounds
from experiments.command import cli

COMMAND = "experiments.train"

Objectives: TypeAlias = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Config(contenders.Flags):
    """One benchmark; every field is a flag."""

    num_steps: int = cli.flag(0, "Steps of one pass; 0 for the whole data set.")
    num_epochs: int = cli.flag(10, "Passes over the rows.")
    num_rounds: int = cli.flag(5, "Interleaved rounds.")
    contenders: str = cli.flag(
        "ours,torch,torch_compile,numpyro,pythae,flax_jit", "Comma-separated."
    )
    command: bool = cli.flag(
        True, "Run experiments.train too (on all rows, whatever --num_steps is)."
    )
    output: str = cli.flag("", "JSON file to write; none if empty.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    given = contenders.problem(config)
    names = contenders.fitting(config.contenders.split(","), given)
    objectives: Objectives = {}
    peaks: dict[str, float] = {}

    def run_of(name: str) -> Callable[[], float]:
        child = comparison.of_process(
            config, contenders=name, num_epochs=config.num_epochs
        )

        def run() -> float:
            with tempfile.TemporaryDirectory() as fresh:
                done = process.finished(child, process.caches(fresh))
            objectives[name] = ours.objective(given, done.weights)
            peaks[name] = done.peak_mib
            return done.seconds

        return run

    runs = {name: run_of(name) for name in names}
    if config.command:
        runs[COMMAND] = lambda: _command(config, objectives)
    seconds = rounds.interleaved(runs, num_rounds=config.num_rounds)
    race = comparison.Race(seconds, objectives, peaks)
    table = {f"{n}, s": np.array(values) for n, values in seconds.items()}
    if "ours" in seconds:
        table |= {f"ours / {peer}": race.ratio("ours", peer) for peer in race.peers}
    notes = comparison.notes(race, quantity=comparison.quantity(given), unit="s")
    rounds.print_table(table, notes)
    comparison.write(config, race)
    return 0


def _command(config: Config, objectives: Objectives) -> float:
    """Seconds of the project's own command; its test bound is its own measurement."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {
            "workdir": f"{folder}/run",
            "dataset": config.dataset,
            "data_dir": config.data_dir,
            "binarization": config.binarization,
            "num_latents": config.num_latents,
            "hidden": ",".join(map(str, config.hidden)),
            "estimator": config.estimator,
            "num_samples": config.num_samples,
            "batch_size": config.batch_size,
            "num_epochs": config.num_epochs,
            "eval_samples": ours.RULER_SAMPLES,
        }
        flags = [f"--{name}={value}" for name, value in changes.items()]
        started = time.perf_counter()
        command = [sys.executable, "-m", COMMAND, *flags, "--noprogress"]
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        result = json.loads(pathlib.Path(folder, "run", "result.json").read_text())
    # Of real-valued pixels it goes by the name of a cross-entropy.
    names = ("elbo", "cross_entropy_objective")
    objectives[COMMAND] = next(result[name] for name in names if name in result)
    return seconds


if __name__ == "__main__":
    cli.run(Config, main)
