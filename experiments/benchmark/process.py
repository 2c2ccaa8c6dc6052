r"""One contender as a whole process: loads the data, trains, writes what it reached.

    python -m experiments.benchmark.process --contenders=torch --num_epochs=10

What `start`, `whole` and the tables' memory are measured on. Prints a line after the
first pass, and last the peak resident memory: with `--num_steps=1` a pass is one step.
"""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmark import contenders
from experiments.benchmark.contenders import Layer, Weights
from experiments.command import cli

FIRST = "first pass"


@dataclasses.dataclass(frozen=True)
class Config(contenders.Flags):
    """One process; every field is a flag."""

    num_epochs: int = cli.flag(1, "Passes over the rows.", least=1)
    contenders: tuple[str, ...] = contenders.flag("ours")
    output: str = cli.flag("", "NumPy archive of the weights to write; none if empty.")

    def refuse(self) -> None:
        """Refuses more than one contender."""
        if len(self.contenders) > 1:
            raise ValueError(f"--contenders={','.join(self.contenders)}: one a process")


class Process(NamedTuple):
    """What was seen of a process from outside."""

    first: float  # seconds from its command to the end of its first pass
    seconds: float  # from its command to its exit
    printed: str  # its last line


class Trained(NamedTuple):
    """What a contender has reached in a process of its own."""

    process: Process
    peak_mib: float
    weights: Weights


def main(config: Config) -> int:
    """Trains and writes."""
    (name,) = config.contenders
    contender = contenders.module(name).contender(name, contenders.problem(config))
    for i in range(config.num_epochs):
        contender.epoch()
        if i == 0:
            print(FIRST, flush=True)
    if config.output:
        _save(config.output, contender.weights())
    print(json.dumps({"peak_mib": peak_mib()}), flush=True)
    return 0


def trained(name: str, flags: Any, *, cache: str | None = None) -> Trained:
    """Runs `main` of a contender in a process of its own, with the flags' problem.

    Compiled programs are kept in the folder `cache`, in an empty one if it is "", and
    as the environment has it if it is None.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/weights.npz"
        config = contenders.shared(flags, Config, contenders=(name,), output=output)
        more = {} if cache is None else _caches(pathlib.Path(cache or folder))
        ended = run(__name__, config, more)
        peak = json.loads(ended.printed)["peak_mib"]
        return Trained(ended, peak, load(output))


def run(module: str, config: Any, environment: Mapping[str, str]) -> Process:
    """Runs a command in a process of its own, with more in its environment.

    Raises:
        RuntimeError: if it fails, with the end of what it said.
    """
    command = [sys.executable, "-m", module, *cli.write_flagfile(config).splitlines()]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    started, first, line = time.perf_counter(), float("nan"), ""
    with tempfile.TemporaryFile("w+") as errors:
        more = os.environ | environment
        with subprocess.Popen(command, env=more, stderr=errors, **pipes) as child:
            for line in child.stdout or ():
                if line.strip() == FIRST:
                    first = time.perf_counter() - started
        seconds = time.perf_counter() - started
        if child.returncode:
            errors.seek(0)
            end = f"exit {child.returncode}\n{errors.read()[-1000:]}"
            raise RuntimeError(f"{' '.join(command)}: {end}")
    return Process(first, seconds, line)


def peak_mib() -> float:
    """Peak resident set of this program, in MiB.

    Linux hands ru_maxrss on from the process that started this one; VmHWM is its own.
    """
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load(path: str) -> Weights:
    """The weights in an archive that `main` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        values = list(arrays.values())
    layers = [Layer(*pair) for pair in zip(values[::2], values[1::2], strict=True)]
    half = len(layers) // 2
    return Weights(layers[:half], layers[half:])


def _save(path: str, weights: Weights) -> None:
    arrays = {
        f"{part}_{i}_{name}": array
        for part, layers in weights._asdict().items()
        for i, layer in enumerate(layers)
        for name, array in layer._asdict().items()
    }
    np.savez(path, allow_pickle=False, **arrays)


def _caches(folder: pathlib.Path) -> dict[str, str]:
    """An environment in which compiled programs, small ones too, are kept there."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


if __name__ == "__main__":
    cli.run(Config, main)
