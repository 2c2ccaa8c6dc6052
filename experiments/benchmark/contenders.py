"""One training problem, and the contenders that are timed on it.

All start at the same weights and pass over the same rows in float32 with fresh noise,
and one ruler (`ours.objective`) measures what each has reached. NumPy alone is imported
here: a process that times a peer loads no JAX on its way.
"""

import dataclasses
import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.command import cli
from vae_jax.data import sources

INITIAL_SEED = 0
LEARNING_RATE = 1e-3


class Library(NamedTuple):
    """Who implements a contender, and what it does not."""

    package: str  # that has to be installed
    module: str  # here, that drives it
    one_sample: bool = False  # it has the ELBO with one sample alone
    fixed_pixels: bool = False  # its data sets cannot be drawn afresh


CONTENDERS = {
    "ours": Library("jax", "ours"),
    "torch": Library("torch", "peers.torch_vae"),
    "torch_compile": Library("torch", "peers.torch_vae"),
    "numpyro": Library("numpyro", "peers.numpyro_vae", one_sample=True),
    "pythae": Library("pythae", "peers.pythae_vae", one_sample=True, fixed_pixels=True),
    "flax": Library("flax", "peers.flax_vae", one_sample=True),
    "flax_jit": Library("flax", "peers.flax_vae", one_sample=True),
}


@dataclasses.dataclass(frozen=True)
class Flags(cli.Flags):
    """The flags of a problem; every field is a flag."""

    dataset: str = cli.flag("mnist", "Data set of bytes, as experiments.train has it.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    binarization: str = cli.flag(
        "none",
        "Training pixels: real-valued, or drawn afresh at every step.",
        choices=("none", "dynamic"),
    )
    batch_size: int = cli.flag(100, "Examples per step.", least=1)
    num_latents: int = cli.flag(20, "Latents.", least=1)
    hidden: tuple[int, ...] = cli.flag(
        (500,), "Units of the encoder's hidden layers.", least=1
    )
    estimator: str = cli.flag(
        "sgvb_b", "Objective that is ascended.", choices=("sgvb_b", "iwae")
    )
    num_samples: int = cli.flag(
        1, "Samples of z per example: L of SGVB, K of IWAE.", least=1
    )
    num_steps: int = cli.flag(
        500, "Steps of one pass, at most the data set's; 0 for all of it.", least=0
    )
    contenders: str = cli.flag(
        ",".join(CONTENDERS), f"Comma-separated, of {', '.join(CONTENDERS)}."
    )

    def check(self) -> None:
        """Refuses unknown contenders."""
        unknown = set(self.contenders.split(",")) - set(CONTENDERS)
        if unknown:
            raise ValueError(
                f"--contenders: {', '.join(sorted(unknown))} unknown; known: "
                f"{', '.join(CONTENDERS)}"
            )


class Layer(NamedTuple):
    """An affine map, x @ kernel + bias."""

    kernel: np.ndarray  # [inputs, outputs]
    bias: np.ndarray


class Weights(NamedTuple):
    """Two multilayer perceptrons; the encoder ends in (mean, log std)."""

    encoder: list[Layer]
    decoder: list[Layer]


class Problem(NamedTuple):
    """What every contender solves."""

    flags: Flags
    train: np.ndarray  # uint8 [N, *X], intensities of 0 to divisor
    test: np.ndarray  # float32 [N, *X], in [0, 1]
    divisor: float
    start: Weights

    @property
    def num_steps(self) -> int:
        """Steps of one pass."""
        return len(self.train) // self.flags.batch_size

    @property
    def quantity(self) -> str:
        """What the objective of the test rows is: real-valued pixels have no bound."""
        return "bound" if self.dynamic else "minus cross-entropy and KL"

    @property
    def dynamic(self) -> bool:
        """Whether training pixels are drawn afresh at every step; else as they are."""
        return self.flags.binarization == "dynamic"


class Contender(NamedTuple):
    """One implementation, with its weights as its state."""

    epoch: Callable[[], None]  # one shuffled pass, to its end
    weights: Callable[[], Weights]


def problem(flags: Flags) -> Problem:
    """Loads the data and draws the weights that all start from.

    Raises:
        UsageError: if there are no such data, or they are no bytes.
    """
    with cli.user_errors():
        source = sources.load(flags.dataset, data_dir=flags.data_dir or None)
        if source.train.dtype != np.uint8 or source.offset:
            raise ValueError(f"--dataset={flags.dataset} is not stored as plain bytes")
    num_rows = flags.num_steps * flags.batch_size or len(source.train)
    train = np.ascontiguousarray(source.train[:num_rows])
    test = source.test.astype(np.float32) / np.float32(source.divisor)
    if flags.binarization == "dynamic":
        draws = np.random.default_rng(INITIAL_SEED).random(test.shape, np.float32)
        test = (draws < test).astype(np.float32)
    start = initial(math.prod(train.shape[1:]), flags.hidden, flags.num_latents)
    return Problem(flags, train, test, source.divisor, start)


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


def fitting(names: str, flags: Flags | None = None) -> list[str]:
    """Those of a comma-separated list that can solve the problem; prints the others.

    Raises:
        UsageError: if none can.
    """
    reasons = {name: _unfit(CONTENDERS[name], flags) for name in names.split(",")}
    for name, reason in reasons.items():
        if reason:
            print(f"{name}: left out, {reason}")
    if all(reasons.values()):
        raise cli.UsageError(f"--contenders={names}: none of them can run here")
    return [name for name, reason in reasons.items() if not reason]


def _unfit(library: Library, flags: Flags | None) -> str:
    """Why a contender cannot solve the problem; nothing if it can."""
    if importlib.util.find_spec(library.package) is None:
        return f"{library.package} is not installed"
    if flags and library.fixed_pixels and flags.binarization == "dynamic":
        return "its data sets hold fixed pixels"
    one_sample = flags is None or (flags.estimator, flags.num_samples) == ("sgvb_b", 1)
    if library.one_sample and not one_sample:
        return "it has the ELBO with one sample alone"
    return ""


def module(name: str) -> Any:
    """The module that drives a contender, imported now."""
    return importlib.import_module(f"experiments.benchmark.{CONTENDERS[name].module}")
