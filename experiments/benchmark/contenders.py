"""One training problem, and the contenders that are timed on it.

All start at the same weights and pass over the same rows in float32 with fresh noise,
and one ruler (`ours.objective`) measures what each has reached. NumPy alone is imported
here: a process that times a peer loads no JAX on its way.
"""

import dataclasses
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.command import cli
from vae_jax.data import sources

TOLERANCE = 1.0  # nats from our objective, beyond which a peer fits something else
INITIAL_SEED = 0

_PEERS = "experiments.benchmark.peers"
MODULES = {  # name: the package it needs, and the module here that drives it
    "ours": ("jax", "experiments.benchmark.ours"),
    "torch": ("torch", f"{_PEERS}.torch_vae"),
    "torch_compile": ("torch", f"{_PEERS}.torch_vae"),
    "numpyro": ("numpyro", f"{_PEERS}.numpyro_vae"),
    "pythae": ("pythae", f"{_PEERS}.pythae_vae"),
    "flax": ("flax", f"{_PEERS}.flax_vae"),
    "flax_jit": ("flax", f"{_PEERS}.flax_vae"),
}


class Layer(NamedTuple):
    """An affine map, x @ kernel + bias."""

    kernel: np.ndarray  # [inputs, outputs]
    bias: np.ndarray


class Weights(NamedTuple):
    """Two multilayer perceptrons; the encoder ends in (mean, log std)."""

    encoder: list[Layer]
    decoder: list[Layer]


class Problem(NamedTuple):
    """What every contender is given."""

    train: np.ndarray  # uint8 [N, *X], intensities of 0 to divisor
    test: np.ndarray  # float32 [N, *X], in [0, 1]
    divisor: float
    dynamic: bool  # training pixels are drawn afresh at every step; else as they are
    estimator: str
    num_samples: int
    batch_size: int
    learning_rate: float
    start: Weights

    @property
    def num_steps(self) -> int:
        """Steps of one pass."""
        return len(self.train) // self.batch_size

    @property
    def num_latents(self) -> int:
        """Latent dimensions."""
        return len(self.start.decoder[0].kernel)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of the encoder's hidden layers."""
        return tuple(len(layer.bias) for layer in self.start.encoder[:-1])


class Contender(NamedTuple):
    """One implementation, with its weights as its state."""

    epoch: Callable[[], float]  # one shuffled pass -> seconds of one step
    weights: Callable[[], Weights]


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags of a problem; every field is a flag."""

    dataset: str = cli.flag("mnist", "Data set of bytes, as experiments.train has it.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    binarization: str = cli.flag(
        "none",
        "Training pixels: real-valued, or drawn afresh at every step.",
        choices=("none", "dynamic"),
    )
    batch_size: int = cli.flag(100, "Examples per step.")
    num_latents: int = cli.flag(20, "Latents.")
    hidden: tuple[int, ...] = cli.flag((500,), "Units of the encoder's hidden layers.")
    estimator: str = cli.flag(
        "sgvb_b", "Objective that is ascended.", choices=("sgvb_b", "iwae")
    )
    num_samples: int = cli.flag(1, "Samples of z per example: L of SGVB, K of IWAE.")
    num_steps: int = cli.flag(
        500, "Steps of one pass, at most the data set's; 0 for all of it."
    )
    contenders: str = cli.flag(
        ",".join(MODULES), f"Comma-separated, of {', '.join(MODULES)}."
    )

    def __post_init__(self) -> None:
        """Refuses sizes below one and unknown contenders.

        Raises:
            ValueError: naming the flag and its value.
        """
        for name in ("batch_size", "num_latents", "num_samples"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        unknown = set(self.contenders.split(",")) - set(MODULES)
        if unknown:
            raise ValueError(
                f"--contenders: {', '.join(sorted(unknown))} unknown; known: "
                f"{', '.join(MODULES)}"
            )


def problem(flags: Flags) -> Problem:
    """Loads the data and draws the weights that all start from.

    Raises:
        UsageError: if there are no such data, or they are no bytes.
    """
    with cli.user_errors():
        source = sources.load(flags.dataset, data_dir=flags.data_dir or None)
        if source.train.dtype != np.uint8 or source.offset:
            raise ValueError(f"--dataset={flags.dataset} is not stored as plain bytes")
    rows = flags.num_steps * flags.batch_size or len(source.train)
    test = source.test.astype(np.float32) / np.float32(source.divisor)
    if flags.binarization == "dynamic":
        draws = np.random.default_rng(INITIAL_SEED).random(test.shape, np.float32)
        test = (draws < test).astype(np.float32)
    return Problem(
        train=np.ascontiguousarray(source.train[:rows]),
        test=test,
        divisor=source.divisor,
        dynamic=flags.binarization == "dynamic",
        estimator=flags.estimator,
        num_samples=flags.num_samples,
        batch_size=flags.batch_size,
        learning_rate=1e-3,
        start=initial(
            int(np.prod(source.train.shape[1:])), flags.hidden, flags.num_latents
        ),
    )


def initial(num_entries: int, hidden: Sequence[int], num_latents: int) -> Weights:
    """Glorot's uniform weights, biases zero, from a fixed seed."""
    generator = np.random.default_rng(INITIAL_SEED)

    def layers(*sizes: int) -> list[Layer]:
        made = []
        for i, o in itertools.pairwise(sizes):
            limit = (6.0 / (i + o)) ** 0.5
            kernel = generator.uniform(-limit, limit, (i, o)).astype(np.float32)
            made.append(Layer(kernel, np.zeros(o, np.float32)))
        return made

    return Weights(
        layers(num_entries, *hidden, 2 * num_latents),
        layers(num_latents, *hidden[::-1], num_entries),
    )


def installed(names: Sequence[str]) -> list[str]:
    """Those whose package is there; prints the others."""
    found = []
    for name in names:
        package, _ = MODULES[name]
        if importlib.util.find_spec(package) is None:
            print(f"{name}: left out, {package} is not installed")
        else:
            found.append(name)
    return found


def fitting(names: Sequence[str], given: Problem) -> list[str]:
    """Those that are installed and can solve the problem; prints the others."""
    found = []
    for name in installed(names):
        reason = module(name).unfit(given)
        if reason:
            print(f"{name}: left out, {reason}")
        else:
            found.append(name)
    return found


def module(name: str) -> Any:
    """The module that drives a contender, imported now."""
    return importlib.import_module(MODULES[name][1])


def verdict(own: float, other: float) -> str:
    """Whether a peer has reached what ours has, for the table."""
    if abs(own - other) <= TOLERANCE:
        return ""
    return f"no contender: {other - own:+.1f} nats"
