r"""The same training step in other layouts: seeds together, streamed rows, devices.

    python -m experiments.benchmark.layouts
    JAX_NUM_CPU_DEVICES=2 python -m experiments.benchmark.layouts --num_devices=2

Seconds per example of `experiments.train` by each of its layouts, in interleaved
rounds, and the ratios to one seed with resident rows on one device: `--num_seeds` of
them in one program, rows that stay on the host (`--stream_steps`), batches that devices
share. The default is the latency-bound protocol of Burda et al. 2016 (batch 20, 200
hidden units), where many small steps wait on each other. Images are random bytes.
"""

import dataclasses

import numpy as np

from experiments.benchmark import ours, rounds
from experiments.choices.config import Config as TrainConfig
from experiments.command import cli
from experiments.runs import protocol, runs
from vae_jax.data import batches, sources

BASE = "one seed, resident"


@dataclasses.dataclass(frozen=True)
class Config(rounds.Flags):
    """One benchmark; every field is a flag."""

    batch_size: int = cli.flag(20, "Examples per step.", least=1)
    hidden: tuple[int, ...] = cli.flag((200, 200), "Hidden units.", least=1)
    num_latents: int = cli.flag(50, "Latents.", least=1)
    num_samples: int = cli.flag(1, "Samples per example, L.", least=1)
    seeds: tuple[int, ...] = cli.flag((2, 4, 8), "Seeds that train together.")
    num_devices: int = cli.flag(1, "Devices that share each batch; 1: not measured.")
    stream_steps: int = cli.flag(
        500, "Steps whose rows the host sends at a time.", least=1
    )
    num_steps: int = cli.flag(1000, "Steps per round.", least=1)

    def check(self) -> None:
        """Refuses a round that is not made of whole pieces."""
        if self.num_steps % self.stream_steps:
            raise ValueError(
                f"--num_steps={self.num_steps} is no multiple of "
                f"--stream_steps={self.stream_steps}"
            )


def main(config: Config) -> int:
    """Measures, prints and writes."""
    with cli.user_errors():
        data = dataset(config)
        built = {name: runs.of_data(f, data) for name, f in layouts(config).items()}
    timed = {}
    for name, run in built.items():
        passes = ours.passes(run, runs.initial(run).run)
        num_examples = len(data.source.train) * len(run.configs)
        timed[name] = rounds.timed(passes.epoch, num_examples)
    race = rounds.Race(rounds.interleaved(timed, num_rounds=config.num_rounds))
    ratios = race.ratios(BASE, timed)
    config.write(rounds.show(race, scale=1e6, unit="us/example", ratios=ratios))
    return 0


def dataset(config: Config) -> protocol.Dataset:
    """As many rows of random bytes as a round has examples."""
    size = config.num_steps * config.batch_size
    rows = np.random.default_rng(0).integers(0, 256, (size, 28, 28), np.uint8)
    none = rows[:0]
    source = sources.Source("bytes", rows, none, none, {}, 0.0, 255.0, "random")
    prepared = batches.prepare(source, binarization="none")
    return protocol.Dataset(source, prepared, "cross-entropy")


def layouts(config: Config) -> dict[str, TrainConfig]:
    """The flags of each layout."""
    base = TrainConfig(
        dataset="mnist",
        binarization="none",
        batch_size=config.batch_size,
        hidden=config.hidden,
        num_latents=config.num_latents,
        num_samples=config.num_samples,
    )
    changes: dict[str, dict[str, int]] = {BASE: {}}
    changes |= {f"{n} seeds": {"num_seeds": n} for n in config.seeds}
    changes["rows from the host"] = {"stream_steps": config.stream_steps}
    if config.num_devices != 1:
        changes[f"{config.num_devices} devices"] = {"num_devices": config.num_devices}
    return {name: dataclasses.replace(base, **of) for name, of in changes.items()}


if __name__ == "__main__":
    cli.run(Config, main)
