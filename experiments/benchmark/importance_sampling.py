r"""Log p(x) by importance sampling: images per second, and peak memory.

    python -m experiments.benchmark.importance_sampling

The evaluation of `experiments.evaluate` (784-500 tanh-20, k = 5,000) on images of
random bits with fresh weights: the cost depends on neither. Memory is the peak
resident set beyond what the process held once everything was imported.
"""

import dataclasses
import pathlib
import resource
import time

import jax
import jax.numpy as jnp

from experiments import cli, measure, models, rundir
from experiments.configuration import Config as TrainConfig

SHAPE = (28, 28)


@dataclasses.dataclass(frozen=True)
class Config:
    """One benchmark; every field is a flag."""

    num_images: int = cli.flag(1000, "Images.")
    num_samples: int = cli.flag(5000, "Samples per image, k.")
    num_latents: int = cli.flag(20, "Latents.")
    hidden: int = cli.flag(500, "Hidden units.")
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
    result = {
        "images_per_second": config.num_images / seconds,
        "seconds": seconds,
        "imports_mib": imported / 2**20,
        "peak_beyond_imports_mib": (_peak_bytes() - imported) / 2**20,
    }
    for name, number in result.items():
        print(f"{name:<26}{number:10.1f}")
    if config.output:
        content = dataclasses.asdict(config) | result
        rundir.write_json(pathlib.Path(config.output), content)
    return 0


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    cli.run(Config, main)
