r"""Seconds from the command to the end of the first step, without and with caches.

    python -m experiments.benchmark.start --data_dir=DIR

Each contender is a process of its own that imports what it needs, reads the data,
compiles if it does, and takes one AEVB step (`experiments.benchmark.process`). Cold
starts have no cache of compiled programs; cached ones share a folder that an earlier
process filled, JAX's with its thresholds at nothing
(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0, ..._MIN_ENTRY_SIZE_BYTES=-1).
"""

import dataclasses
import tempfile
from functools import partial

from experiments.benchmark import contenders, process, rounds
from experiments.command import cli

COMPILED = ("ours", "torch_compile", "numpyro", "flax", "flax_jit")


@dataclasses.dataclass(frozen=True)
class Config(contenders.Flags, rounds.Flags):
    """One benchmark; every field is a flag."""

    num_steps: int = cli.flag(1, "Steps that the first pass has.", least=1)


def main(config: Config) -> int:
    """Measures, prints and writes."""
    names, peaks = contenders.fitting(config.contenders, config), {}

    def seconds(name: str, cache: str) -> float:
        trained = process.trained(name, config, cache=cache)
        peaks[f"{name}, cold"] = trained.peak_mib
        return trained.process.first

    with tempfile.TemporaryDirectory() as folder:
        runs = {f"{name}, cold": partial(seconds, name, "") for name in names}
        for name in names:
            if name in COMPILED:
                runs[f"{name}, cached"] = partial(seconds, name, folder)
        timed = rounds.interleaved(runs, num_rounds=config.num_rounds)
    race = rounds.Race(timed, peak_mib=peaks)
    ratios = race.ratios("ours, cold", timed)
    config.write(rounds.show(race, scale=1.0, unit="s", ratios=ratios))
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
