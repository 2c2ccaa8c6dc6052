r"""Log p(x) by importance sampling: peak memory, and speed against its products.

    python -m experiments.benchmark.importance_sampling

The evaluation of `experiments.evaluate` (784-500 tanh-20, k = 5,000) on images of
random bits with fresh weights: the cost depends on neither. Memory is the peak
resident set beyond what the process held once everything was imported. Speed is that of
the decoder's matrix products, timed alone in the same rounds, over the evaluation's.
"""

import dataclasses
import pathlib
import resource
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, measure, models, rundir
from experiments.benchmark import rounds, train_step
from experiments.configuration import Config as TrainConfig

SHAPE = (28, 28)


@dataclasses.dataclass(frozen=True)
class Config:
    """One benchmark; every field is a flag."""

    num_images: int = cli.flag(1000, "Images.")
    num_samples: int = cli.flag(5000, "Samples per image, k.")
    num_latents: int = cli.flag(20, "Latents.")
    hidden: int = cli.flag(500, "Hidden units.")
    num_timed: int = cli.flag(100, "Images of each round of the timing.")
    num_rounds: int = cli.flag(5, "Rounds of the timing.")
    output: str = cli.flag("", "JSON file to write; none if empty.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    imported = _peak_bytes()
    train = TrainConfig(num_latents=config.num_latents, hidden=(config.hidden,))
    model = models.build(train, SHAPE)
    key_params, key_data, key_run = jax.random.split(jax.random.key(0), 3)
    images = jax.random.bernoulli(key_data, 0.13, (config.num_images, *SHAPE))
    evaluate = measure.evidence_over_examples(
        model, num_samples=config.num_samples, value=lambda x: x.astype(jnp.float32)
    )
    params = model.init(key_params)
    started = time.perf_counter()
    jax.block_until_ready(evaluate(key_run, params, images))
    seconds = time.perf_counter() - started
    peak = _peak_bytes() - imported
    result = {
        "first_images_per_second": config.num_images / seconds,
        "imports_mib": imported / 2**20,
        "peak_beyond_imports_mib": peak / 2**20,
    }
    for name, number in result.items():
        print(f"{name:<{rounds.WIDTH}}{number:10.1f}")
    few = images[: config.num_timed]

    def evaluation() -> float:
        started = time.perf_counter()
        jax.block_until_ready(evaluate(key_run, params, few))
        return (time.perf_counter() - started) / len(few)

    timed = rounds.interleaved(
        {"evaluation": evaluation, "products": products(config)},
        num_rounds=config.num_rounds,
    )
    share = np.divide(timed["products"], timed["evaluation"])
    milliseconds = {f"{n} of an image, ms": 1e3 * np.array(s) for n, s in timed.items()}
    rounds.print_table(milliseconds | {"products / evaluation": share})
    if config.output:
        content = dataclasses.asdict(config) | result | {"seconds": timed}
        rundir.write_json(pathlib.Path(config.output), content)
    return 0


def products(config: Config) -> Callable[[], float]:
    """The seconds of one image's decodings as matrix products alone."""
    chunk = min(measure.IMPORTANCE_CHUNK, config.num_samples)
    d, h, x = config.num_latents, config.hidden, SHAPE[0] * SHAPE[1]
    layers = [
        train_step.matrix_product((chunk, d), (d, h), (1, 0)),
        train_step.matrix_product((chunk, h), (h, x), (1, 0)),
    ]
    return lambda: config.num_samples / chunk * sum(layer() for layer in layers)


def _peak_bytes() -> int:
    """Peak resident set of this program, in bytes.

    Linux hands ru_maxrss on from the process that started this one; VmHWM is its own.
    """
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().split("\n") if "VmHWM" in line)
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    cli.run(Config, main)
