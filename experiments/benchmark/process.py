r"""One contender as a whole process: loads the data, trains, writes what it reached.

    python -m experiments.benchmark.process --contenders=torch --num_epochs=10

What `start`, `whole` and the tables' memory are measured on. Prints a line after the
first pass, and last the peak resident memory: with `--num_steps=1` a pass is one step.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.benchmark import contenders, memory
from experiments.benchmark.contenders import Layer, Weights
from experiments.command import cli

FIRST = "first pass"
MIN_CACHED = {  # JAX's thresholds keep small programs out of its cache
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@dataclasses.dataclass(frozen=True)
class Config(contenders.Flags):
    """One process; every field is a flag."""

    num_epochs: int = cli.flag(1, "Passes over the rows.")
    contenders: str = cli.flag("ours", "One of them.")
    output: str = cli.flag("", "NumPy archive of the weights to write; none if empty.")

    def __post_init__(self) -> None:
        """Refuses what cannot run.

        Raises:
            ValueError: naming the flag and its value.
        """
        super().__post_init__()
        if self.num_epochs < 1:
            raise ValueError(f"--num_epochs must be positive, got {self.num_epochs}")
        if self.contenders not in contenders.MODULES:
            raise ValueError(f"--contenders must be one name, got {self.contenders}")


class Finished(NamedTuple):
    """What was seen of a process from outside."""

    first: float  # seconds from its command to the end of its first pass
    seconds: float  # from its command to its exit
    peak_mib: float
    weights: Weights


def main(config: Config) -> int:
    """Trains and writes."""
    given = contenders.problem(config)
    name = config.contenders
    contender = contenders.module(name).contender(name, given)
    for i in range(config.num_epochs):
        contender.epoch()
        if i == 0:
            print(FIRST, flush=True)
    if config.output:
        _save(config.output, contender.weights())
    print(json.dumps({"peak_mib": memory.peak_bytes() / memory.MIB}), flush=True)
    return 0


def finished(config: Config, environment: Mapping[str, str]) -> Finished:
    """Runs `main` in a process of its own, with more in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/weights.npz"
        config = dataclasses.replace(config, output=output)
        flags = cli.write_flagfile(config).splitlines()
        started, first, line = time.perf_counter(), float("nan"), ""
        errors = pathlib.Path(folder, "errors")
        with (
            errors.open("w") as stderr,
            subprocess.Popen(
                [sys.executable, "-m", __name__, *flags],
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                if line.strip() == FIRST:
                    first = time.perf_counter() - started
        seconds = time.perf_counter() - started
        if child.returncode:
            said = errors.read_text()[-1000:]
            raise RuntimeError(f"{' '.join(flags)}: exit {child.returncode}\n{said}")
        return Finished(first, seconds, json.loads(line)["peak_mib"], _load(output))


def caches(folder: str) -> dict[str, str]:
    """An environment in which compiled programs are kept in a folder."""
    path = pathlib.Path(folder)
    return MIN_CACHED | {
        "JAX_COMPILATION_CACHE_DIR": str(path / "jax"),
        "TORCHINDUCTOR_CACHE_DIR": str(path / "torch"),
    }


def _save(path: str, weights: Weights) -> None:
    arrays = {
        f"{part}_{i}_{name}": array
        for part, layers in weights._asdict().items()
        for i, layer in enumerate(layers)
        for name, array in layer._asdict().items()
    }
    np.savez(path, allow_pickle=False, **arrays)


def _load(path: str) -> Weights:
    with np.load(path, allow_pickle=False) as arrays:
        parts = {}
        for part in Weights._fields:
            number = sum(name.startswith(part) for name in arrays.files) // 2
            parts[part] = [
                Layer(*(arrays[f"{part}_{i}_{name}"] for name in Layer._fields))
                for i in range(number)
            ]
        return Weights(**parts)


if __name__ == "__main__":
    cli.run(Config, main)
