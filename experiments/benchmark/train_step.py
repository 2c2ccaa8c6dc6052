r"""The AEVB training step against the machine's matrix products, in one run.

    python -m experiments.benchmark.train_step

The step of Kingma & Welling 2013 on 28x28 images (784-500 tanh-20-500-784, batch 100,
float32, Adam) as `experiments.train` runs it: one compiled scan over device-resident
bytes. Beside it, in interleaved rounds, the step's matrix products alone, each on its
own shapes, and with `--estimators=iwae,dreg` the steps of other estimators. Prints
medians with their spread, and the ratios. Images are random bytes: a step costs the
same on any.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import algorithms, cli, models, rundir
from experiments.benchmark import rounds
from experiments.configuration import Config as TrainConfig
from vae_jax.data import batches
from vae_jax.training import loop

SHAPE = (28, 28)
PRODUCTS_PER_SCAN = 200


@dataclasses.dataclass(frozen=True)
class Config:
    """One benchmark; every field is a flag."""

    batch_size: int = cli.flag(100, "Examples per step.")
    num_latents: int = cli.flag(20, "Latents.")
    hidden: int = cli.flag(500, "Hidden units.")
    optimizer: str = cli.flag("adam", "Optimizer.", choices=("sgd", "adagrad", "adam"))
    estimators: str = cli.flag(
        "", "Comma-separated: their steps with one sample, against that of sgvb_b."
    )
    binarization: str = cli.flag("none", "Pixels.", choices=("none", "dynamic"))
    num_steps: int = cli.flag(500, "Steps per round.")
    num_rounds: int = cli.flag(7, "Interleaved rounds.")
    output: str = cli.flag("", "JSON file to write; none if empty.")


def train_step(config: Config, estimator: str = "sgvb_b") -> Callable[[], float]:
    """A function that runs num_steps and returns the seconds of one."""
    train = TrainConfig(
        dataset="mnist",
        batch_size=config.batch_size,
        num_latents=config.num_latents,
        hidden=(config.hidden,),
        optimizer=config.optimizer,
        estimator=estimator,
    )
    model = models.build(train, SHAPE)
    fit = algorithms.build(train, model, num_data=60_000, steps_per_epoch=600)
    take = batches.take(divisor=255.0, dynamic=config.binarization == "dynamic")
    scan = loop.scan(fit, take)
    key_params, key_run, key_data, key_order = jax.random.split(jax.random.key(0), 4)
    num_rows = config.num_steps * config.batch_size
    data = jax.random.bits(key_data, (num_rows, *SHAPE), jnp.uint8)
    order = batches.order(key_order, num_rows, batch_size=config.batch_size)
    state = [loop.start(key_run, fit, model.init(key_params))]

    def run() -> float:
        started = time.perf_counter()
        state[0], info = scan(state[0], data, order)
        jax.block_until_ready(info)
        return (time.perf_counter() - started) / config.num_steps

    return run


def products(config: Config) -> list[tuple[tuple, tuple, tuple[int, int]]]:
    """Operand shapes and contracted axes of each matrix product of one step."""
    m, x, h, d = config.batch_size, 784, config.hidden, config.num_latents
    forward = [(m, x, h), (m, h, 2 * d), (m, d, h), (m, h, x)]
    listed = [((b, i), (i, o), (1, 0)) for b, i, o in forward]
    listed += [((b, i), (b, o), (0, 0)) for b, i, o in forward]  # for the weights
    # For the inputs; x itself needs none.
    return listed + [((b, o), (i, o), (1, 1)) for b, i, o in forward[1:]]


def matrix_product(
    left: tuple, right: tuple, axes: tuple[int, int]
) -> Callable[[], float]:
    """A function that returns the seconds of one product of that kind."""
    key_left, key_right = jax.random.split(jax.random.key(1))
    a, b = jax.random.normal(key_left, left), jax.random.normal(key_right, right)

    @jax.jit
    def scan(a: jax.Array, b: jax.Array) -> jax.Array:
        def step(a: jax.Array, _: None) -> tuple[jax.Array, None]:
            c = jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())))
            # One entry changes in place, so that no product is hoisted or reused.
            return a.at[0, 0].set(1e-6 * c[0, 0]), None

        return jax.lax.scan(step, a, length=PRODUCTS_PER_SCAN)[0]

    def run() -> float:
        started = time.perf_counter()
        scan(a, b).block_until_ready()
        return (time.perf_counter() - started) / PRODUCTS_PER_SCAN

    return run


def flops(left: tuple, right: tuple, axes: tuple[int, int]) -> int:
    """Floating-point operations of one product."""
    return 2 * left[0] * left[1] * right[1 - axes[1]]


def measure(config: Config) -> dict[str, list[float]]:
    """Seconds per step, and of its matrix products in sum, for each round."""
    steps = {"step": train_step(config)}
    for name in filter(None, config.estimators.split(",")):
        steps[name] = train_step(config, name)
    singles = [matrix_product(*shape) for shape in products(config)]
    runs = steps | {"products": lambda: sum(single() for single in singles)}
    return rounds.interleaved(runs, num_rounds=config.num_rounds)


def main(config: Config) -> int:
    """Measures, prints and writes."""
    seconds = measure(config)
    work = sum(flops(*shape) for shape in products(config))
    ratios = {"products / step": np.divide(seconds["products"], seconds["step"])} | {
        f"{name} / step": np.divide(seconds[name], seconds["step"])
        for name in filter(None, config.estimators.split(","))
    }
    milliseconds = {f"{n}, ms": 1e3 * np.array(s) for n, s in seconds.items()}
    rounds.print_table(milliseconds | ratios)
    step, alone = np.median(seconds["step"]), np.median(seconds["products"])
    print(
        f"{config.batch_size / step:.0f} examples/s; products alone "
        f"{work / alone / 1e9:.0f} GFLOP/s, in the step {work / step / 1e9:.0f} GFLOP/s"
    )
    if config.output:
        content = dataclasses.asdict(config) | {"seconds": seconds, "flops": work}
        rundir.write_json(pathlib.Path(config.output), content)
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
