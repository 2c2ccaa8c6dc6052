r"""Log p(x) by importance sampling: peak memory, its products' speed, and the peers.

    python -m experiments.benchmark.importance_sampling --data_dir=DIR

The evaluation of `experiments.evaluate` (784-500 tanh-20, k = 5,000) with fresh
weights: the cost does not depend on them. Memory is the peak resident set beyond what
the process held once everything was imported, on images of random bits, with each peer
in a process of its own. Speed is on the test images of a data set, their pixels drawn
once: the decoder's matrix products, timed alone in the same rounds, over the
evaluation, and the evaluation over PyTorch's (one image with all its samples at once)
and Pythae's `get_nll`, as far as they are installed. A peer whose mean log p(x) lies
more than a nat from ours is no contender.
"""

import dataclasses
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np

from experiments.benchmark import contenders, parts, process, rounds
from experiments.command import cli
from experiments.measures import measure
from vae_jax.data import batches

SHAPE = (28, 28)
EVALUATORS = ("ours", "torch", "pythae")


@dataclasses.dataclass(frozen=True)
class Config(rounds.Flags):
    """One benchmark; every field is a flag."""

    dataset: str = cli.flag("mnist", "Data set whose test images are timed.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    num_images: int = cli.flag(1000, "Images of the memory's measurement.", least=1)
    num_samples: int = cli.flag(5000, "Samples per image, k.", least=1)
    num_latents: int = cli.flag(20, "Latents.", least=1)
    hidden: int = cli.flag(500, "Hidden units.", least=1)
    num_timed: int = cli.flag(100, "Images of a timed round; 0: no rounds.", least=0)
    contenders: tuple[str, ...] = contenders.flag(*EVALUATORS, known=EVALUATORS)


def main(config: Config) -> int:
    """Measures, prints and writes."""
    first, *others = names = contenders.fitting(config.contenders)
    figures = of_first(config, first)
    for name, number in figures.items():
        print(f"{name:<39}{number:10.1f}", flush=True)
    if config.num_timed:
        race = timed(config, names)
        peaks = {name: _peak_of_child(config, name) for name in others}
        ratios = race.ratios("products", ["ours"]) | race.ratios("ours", others)
        race = race._replace(peak_mib=peaks)
        figures |= race.show(ratios, scale=1e3, unit="ms an image")
    config.write(figures)
    return 0


def products(config: Config, num_entries: int) -> Callable[[], float]:
    """The seconds of one image's decodings as matrix products alone."""
    chunk = min(measure.IMPORTANCE_CHUNK, config.num_samples)
    d, h, x = config.num_latents, config.hidden, num_entries
    first = parts.matrix_product((chunk, d), (d, h), (1, 0))
    last = parts.matrix_product((chunk, h), (h, x), (1, 0))
    return lambda: config.num_samples / chunk * (first() + last())


def near_prior(weights: contenders.Weights) -> contenders.Weights:
    """The weights with a q close to the prior: noisy estimates would not compare."""
    *hidden, output = weights.encoder
    near = output._replace(kernel=0.1 * output.kernel)
    return weights._replace(encoder=[*hidden, near])


def of_first(config: Config, name: str) -> dict[str, float]:
    """Memory and speed of the first evaluation, compilation included."""
    evaluate = _evaluator(config, name, math.prod(SHAPE))
    generator = np.random.default_rng(0)
    images = generator.random((config.num_images, *SHAPE), np.float32) < 0.13
    imported, started = process.peak_mib(), time.perf_counter()
    evaluate(images)
    return {
        "first_images_per_second": config.num_images / (time.perf_counter() - started),
        "imports_mib": imported,
        "peak_beyond_imports_mib": process.peak_mib() - imported,
    }


def timed(config: Config, names: list[str]) -> rounds.Race:
    """Seconds of an image, and mean log p(x) of the same images."""
    flags = contenders.Flags(
        dataset=config.dataset, data_dir=config.data_dir, binarization="dynamic"
    )
    test, means = contenders.problem(flags).test, {}
    images = test[batches.at_equal_distances(len(test), config.num_timed)]

    def run_of(name: str) -> Callable[[], float]:
        evaluate = _evaluator(config, name, images[0].size)

        def work() -> None:
            means[name] = float(evaluate(images).mean(dtype=np.float64))

        return rounds.timed(work, len(images))

    runs = {name: run_of(name) for name in names}
    runs["products"] = products(config, images[0].size)
    seconds = rounds.interleaved(runs, num_rounds=config.num_rounds)
    return rounds.Race(seconds, "log p(x)", means)


def _evaluator(config: Config, name: str, num_entries: int) -> contenders.LogP:
    flags = contenders.Flags(hidden=(config.hidden,), num_latents=config.num_latents)
    start = contenders.initial(*contenders.layout(flags, (num_entries,)))
    return contenders.module(name).evaluator(near_prior(start), config.num_samples)


def _peak_of_child(config: Config, name: str) -> float:
    """Memory of another contender beyond imports, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/result.json"
        num_images = min(config.num_images, config.num_timed)
        changes = {"contenders": (name,), "num_images": num_images, "num_timed": 0}
        child = dataclasses.replace(config, **changes, output=output)
        process.run(__spec__.name, child, {})
        return json.loads(pathlib.Path(output).read_text())["peak_beyond_imports_mib"]


if __name__ == "__main__":
    cli.run(Config, main)
