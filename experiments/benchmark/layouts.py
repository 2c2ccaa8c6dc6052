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
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np

from experiments.benchmark import rounds
from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.runs import protocol, runs
from vae_jax.data import batches, sources

BASE = "one seed, resident"


@dataclasses.dataclass(frozen=True)
class Config:
    """One benchmark; every field is a flag."""

    batch_size: int = cli.flag(20, "Examples per step.")
    hidden: tuple[int, ...] = cli.flag((200, 200), "Hidden units.")
    num_latents: int = cli.flag(50, "Latents.")
    num_samples: int = cli.flag(1, "Samples per example, L.")
    seeds: tuple[int, ...] = cli.flag((2, 4, 8), "Seeds that train together.")
    num_devices: int = cli.flag(1, "Devices that share each batch; 1: not measured.")
    stream_steps: int = cli.flag(500, "Steps whose rows the host sends at a time.")
    num_steps: int = cli.flag(1000, "Steps per round.")
    num_rounds: int = cli.flag(5, "Interleaved rounds.")
    output: str = cli.flag("", "JSON file to write; none if empty.")

    def __post_init__(self) -> None:
        """Refuses a round that is not made of whole pieces.

        Raises:
            ValueError: naming the flags.
        """
        if self.num_steps % self.stream_steps:
            raise ValueError(
                f"--num_steps={self.num_steps} is no multiple of "
                f"--stream_steps={self.stream_steps}"
            )


def dataset(config: Config) -> protocol.Dataset:
    """As many rows of random bytes as a round has examples."""
    size = config.num_steps * config.batch_size
    rows = np.random.default_rng(0).integers(0, 256, (size, 28, 28), np.uint8)
    none = rows[:0]
    source = sources.Source("bytes", rows, none, none, {}, 0.0, 255.0, "random")
    prepared = batches.prepare(source, binarization="none")
    return protocol.Dataset(source, prepared, "cross-entropy")


def epoch(data: protocol.Dataset, flags: TrainConfig) -> Callable[[], float]:
    """A function that trains an epoch and returns its seconds per example."""
    run = runs.of_data(flags, data)
    scan, feed = runs.scan(run), runs.feed(run)
    state = [runs.initial(run).run]
    num_examples = len(data.source.train) * len(run.configs)

    def seconds() -> float:
        step = int(np.max(np.asarray(state[0].step)))
        end = step + run.steps_per_epoch
        feed.at(step)  # the order of the epoch is drawn before the clock starts
        started = time.perf_counter()
        while step < end:
            rows, order = feed.at(step)
            state[0], info = scan(state[0], rows, order)
            step += order.shape[-2]
            jax.block_until_ready(info)
        return (time.perf_counter() - started) / num_examples

    return seconds


def contenders(config: Config) -> dict[str, TrainConfig]:
    """The flags of each layout."""
    base = TrainConfig(
        dataset="mnist",
        binarization="none",
        batch_size=config.batch_size,
        hidden=config.hidden,
        num_latents=config.num_latents,
        num_samples=config.num_samples,
    )
    found = {BASE: base}
    for number in config.seeds:
        found[f"{number} seeds"] = dataclasses.replace(base, num_seeds=number)
    streamed = dataclasses.replace(base, stream_steps=config.stream_steps)
    found["rows from the host"] = streamed
    if config.num_devices != 1:
        name = f"{config.num_devices} devices"
        found[name] = dataclasses.replace(base, num_devices=config.num_devices)
    return found


def main(config: Config) -> int:
    """Measures, prints and writes."""
    with cli.user_errors():
        data = dataset(config)
        layouts = {n: epoch(data, flags) for n, flags in contenders(config).items()}
    seconds = rounds.interleaved(layouts, num_rounds=config.num_rounds)
    micro = {f"{n}, us/example": 1e6 * np.array(s) for n, s in seconds.items()}
    faster = {
        f"{BASE} / {name}": np.divide(seconds[BASE], found)
        for name, found in seconds.items()
        if name != BASE
    }
    rounds.print_table(micro | faster)
    if config.output:
        content = dataclasses.asdict(config) | {"seconds": seconds}
        report.write_json(pathlib.Path(config.output), content)
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
