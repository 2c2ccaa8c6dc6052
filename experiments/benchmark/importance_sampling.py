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
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from experiments.benchmark import contenders, memory, parts, rounds
from experiments.command import cli, report
from experiments.measures import measure

SHAPE = (28, 28)
PEERS = ("torch", "pythae")


@dataclasses.dataclass(frozen=True)
class Config:
    """One benchmark; every field is a flag."""

    dataset: str = cli.flag("mnist", "Data set whose test images are timed.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    num_images: int = cli.flag(1000, "Images of the memory's measurement.")
    num_samples: int = cli.flag(5000, "Samples per image, k.")
    num_latents: int = cli.flag(20, "Latents.")
    hidden: int = cli.flag(500, "Hidden units.")
    num_timed: int = cli.flag(100, "Images of each round of the timing; 0: none.")
    num_rounds: int = cli.flag(5, "Rounds of the timing.")
    contenders: str = cli.flag(
        ",".join(("ours", *PEERS)), "Comma-separated; memory is of the first."
    )
    output: str = cli.flag("", "JSON file to write; none if empty.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    names = contenders.installed(config.contenders.split(","))
    result = _first(config, names[0])
    for name, number in result.items():
        print(f"{name:<{rounds.WIDTH}}{number:10.1f}")
    content = dataclasses.asdict(config) | result
    if config.num_timed:
        timed, means = _race(config, names)
        rounds.print_table(_rows(timed), _notes(config, means))
        content |= {"seconds": timed, "log_p": means}
    if config.output:
        report.write_json(pathlib.Path(config.output), content)
    return 0


def products(config: Config, num_entries: int) -> Callable[[], float]:
    """The seconds of one image's decodings as matrix products alone."""
    chunk = min(measure.IMPORTANCE_CHUNK, config.num_samples)
    d, h, x = config.num_latents, config.hidden, num_entries
    layers = [
        parts.matrix_product((chunk, d), (d, h), (1, 0)),
        parts.matrix_product((chunk, h), (h, x), (1, 0)),
    ]
    return lambda: config.num_samples / chunk * sum(layer() for layer in layers)


def near_prior(weights: contenders.Weights) -> contenders.Weights:
    """The weights with a q close to the prior: noisy estimates would not compare."""
    *hidden, output = weights.encoder
    return weights._replace(
        encoder=[*hidden, output._replace(kernel=0.1 * output.kernel)]
    )


def _evaluator(
    config: Config, name: str, shape: tuple[int, ...]
) -> Callable[[np.ndarray], np.ndarray]:
    size = int(np.prod(shape))
    weights = near_prior(contenders.initial(size, (config.hidden,), config.num_latents))
    return contenders.module(name).evaluator(weights, shape, config.num_samples)


def _first(config: Config, name: str) -> dict[str, float]:
    """Memory and speed of the first evaluation, compilation included."""
    evaluate = _evaluator(config, name, SHAPE)
    generator = np.random.default_rng(0)
    images = generator.random((config.num_images, *SHAPE), np.float32) < 0.13
    imported = memory.peak_bytes()
    started = time.perf_counter()
    evaluate(images)
    seconds = time.perf_counter() - started
    peak = memory.peak_bytes() - imported
    return {
        "first_images_per_second": config.num_images / seconds,
        "imports_mib": imported / memory.MIB,
        "peak_beyond_imports_mib": peak / memory.MIB,
    }


def _race(
    config: Config, names: list[str]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of an image, and mean log p(x) of the same images."""
    flags = contenders.Flags(
        dataset=config.dataset, data_dir=config.data_dir, binarization="dynamic"
    )
    test = contenders.problem(flags).test
    images = test[np.arange(config.num_timed) * len(test) // config.num_timed]
    means: dict[str, float] = {}

    def run_of(name: str) -> Callable[[], float]:
        evaluate = _evaluator(config, name, images.shape[1:])

        def run() -> float:
            started = time.perf_counter()
            log_p = evaluate(images)
            seconds = (time.perf_counter() - started) / len(images)
            means[name] = float(log_p.mean(dtype=np.float64))
            return seconds

        return run

    runs = {name: run_of(name) for name in names}
    runs["products"] = products(config, images[0].size)
    return rounds.interleaved(runs, num_rounds=config.num_rounds), means


def _rows(timed: dict[str, list[float]]) -> dict[str, np.ndarray]:
    table = {f"{n} of an image, ms": 1e3 * np.array(s) for n, s in timed.items()}
    if "ours" not in timed:
        return table
    table["products / ours"] = np.divide(timed["products"], timed["ours"])
    return table | {
        f"ours / {name}": np.divide(timed["ours"], timed[name])
        for name in PEERS
        if name in timed
    }


def _notes(config: Config, means: dict[str, float]) -> dict[str, str]:
    said = {}
    for name, mean in means.items():
        parts = [f"log p(x) {mean:.2f}"]
        if name != config.contenders.split(",")[0]:
            parts.append(f"{_peak_of_child(config, name):.0f} MiB beyond imports")
        parts.append(contenders.verdict(means.get("ours", mean), mean))
        said[f"{name} of an image, ms"] = ", ".join(filter(None, parts))
    return said


def _peak_of_child(config: Config, name: str) -> float:
    """Memory of another contender, in a process that holds nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/result.json"
        changed = dataclasses.replace(
            config,
            contenders=name,
            num_images=min(config.num_images, max(config.num_timed, 1)),
            num_timed=0,
            output=output,
        )
        flags = cli.write_flagfile(changed).splitlines()
        module = "experiments.benchmark.importance_sampling"
        command = [sys.executable, "-m", module, *flags]
        subprocess.run(command, check=True, capture_output=True)
        result = json.loads(pathlib.Path(output).read_text())
        return result["peak_beyond_imports_mib"]


if __name__ == "__main__":
    cli.run(Config, main)
