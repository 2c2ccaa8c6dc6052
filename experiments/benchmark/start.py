r"""Seconds from the command to the end of the first step, without and with caches.

    python -m experiments.benchmark.start --data_dir=DIR

Each contender is a process of its own that imports what it needs, reads the data,
compiles if it does, and takes one AEVB step (`experiments.benchmark.process`). Cold
starts have no cache of compiled programs; cached ones share a folder that an earlier
process filled, JAX's with its thresholds at nothing
(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0, ..._MIN_ENTRY_SIZE_BYTES=-1).
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

from experiments.benchmark import comparison, contenders, process, rounds
from experiments.command import cli, report

COMPILED = ("ours", "torch_compile", "numpyro", "flax", "flax_jit")


@dataclasses.dataclass(frozen=True)
class Config(contenders.Flags):
    """One benchmark; every field is a flag."""

    num_steps: int = cli.flag(1, "Steps that the first pass has.")
    num_rounds: int = cli.flag(5, "Interleaved rounds.")
    output: str = cli.flag("", "JSON file to write; none if empty.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    given = contenders.problem(config)
    names = contenders.fitting(config.contenders.split(","), given)
    peaks: dict[str, float] = {}

    def run_of(name: str, folder: str | None) -> Callable[[], float]:
        child = comparison.of_process(config, contenders=name)

        def run() -> float:
            with tempfile.TemporaryDirectory() as fresh:
                done = process.finished(child, process.caches(folder or fresh))
            peaks[name] = done.peak_mib
            return done.first

        return run

    with tempfile.TemporaryDirectory() as folder:
        runs = {f"{name}, cold": run_of(name, None) for name in names}
        for name in names:
            if name in COMPILED:
                runs[f"{name}, cached"] = run_of(name, folder)
        seconds = rounds.interleaved(runs, num_rounds=config.num_rounds)
    table = {f"{name}, s": np.array(values) for name, values in seconds.items()}
    if "ours" in names:
        own = np.array(seconds["ours, cold"])
        table |= {
            f"ours, cold / {name}": own / values
            for name, values in seconds.items()
            if name != "ours, cold"
        }
    notes = {f"{name}, cold, s": f"{peak:.0f} MiB" for name, peak in peaks.items()}
    rounds.print_table(table, notes)
    if config.output:
        content = dataclasses.asdict(config) | {"seconds": seconds, "peak_mib": peaks}
        report.write_json(pathlib.Path(config.output), content)
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
