r"""The same training step in other layouts: seeds together, streamed rows, devices.

    python -m experiments.benchmark.layouts
    JAX_NUM_CPU_DEVICES=2 python -m experiments.benchmark.layouts --num_devices=2

Seconds per example of `experiments.train` by each of its layouts, in interleaved
rounds, and the ratios to one seed with resident rows on one device: a step a dispatch,
`--seeds` in one program, rows that stay on the host (`--stream_steps`), batches that
devices share. The default is the latency-bound protocol of Burda et al. 2016 (batch
20, 200 hidden units), where many small steps wait on each other. Images are random
bytes.
"""

import dataclasses

import numpy as np

from experiments.benchmark import contenders, ours, rounds
from experiments.command import cli
from experiments.runs import runs

BASE = "one seed, resident"
ONE = "one step a dispatch"


@dataclasses.dataclass(frozen=True)
class Config(rounds.Flags):
    """One benchmark; every field is a flag."""

    batch_size: int = cli.flag(20, "Examples per step.", least=1)
    hidden: tuple[int, ...] = cli.flag((200, 200), "Hidden units.", least=1)
    num_latents: int = cli.flag(50, "Latents.", least=1)
    network: str = cli.flag("mlp", "Networks.", choices=contenders.NETWORKS)
    width: int = cli.flag(32, "Channels (conv, resnet).", least=1)
    num_samples: int = cli.flag(1, "Samples per example, L.", least=1)
    seeds: tuple[int, ...] = cli.flag((2, 4, 8), "Seeds that train together.")
    num_devices: int = cli.flag(1, "Devices that share each batch; 1: not measured.")
    stream_steps: int = cli.flag(500, "Steps whose rows the host sends.", least=1)
    num_steps: int = cli.flag(1000, "Steps per round.", least=1)

    def refuse(self) -> None:
        """Refuses a round that is not made of whole pieces."""
        if self.num_steps % self.stream_steps:
            raise ValueError(
                f"--num_steps={self.num_steps} is no multiple of "
                f"--stream_steps={self.stream_steps}"
            )


def main(config: Config) -> int:
    """Measures, prints and writes."""
    shape, timed = (config.num_steps * config.batch_size, 28, 28), {}
    rows = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with cli.user_errors():
        for name, changes in layouts(config).items():
            alone = {"num_devices": 1, "stream_steps": 0, "binarization": "none"}
            flags = ours.config(config, **alone | changes)
            run = ours.run(flags, rows, 255.0)
            start, of_scan = (
                runs.initial(run).run,
                1 if name == ONE else runs.SCAN_STEPS,
            )
            epoch, _ = ours.passes(run, start, max_steps=of_scan)
            timed[name] = rounds.timed(epoch, len(rows) * len(run.configs))
    race = rounds.Race(rounds.interleaved(timed, num_rounds=config.num_rounds))
    config.write(race.show(race.ratios(BASE, timed), scale=1e6, unit="us/example"))
    return 0


def layouts(config: Config) -> dict[str, dict[str, int]]:
    """The flags of experiments.train that make each layout."""
    listed: dict[str, dict[str, int]] = {BASE: {}, ONE: {}}
    listed |= {f"{n} seeds": {"num_seeds": n} for n in config.seeds}
    listed["rows from the host"] = {"stream_steps": config.stream_steps}
    if config.num_devices != 1:
        listed[f"{config.num_devices} devices"] = {"num_devices": config.num_devices}
    return listed


if __name__ == "__main__":
    cli.run(Config, main)
