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
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np

from experiments.command import cli
from vae_jax.data import sources

F = TypeVar("F")
INITIAL_SEED = 0
LEARNING_RATE = 1e-3


class Library(NamedTuple):
    """Who implements a contender, and what it does not."""

    package: str  # that has to be installed
    module: str  # here, that drives it
    one_sample: bool = False  # it has the ELBO with one sample alone
    fixed_pixels: bool = False  # its data sets cannot be drawn afresh
    compiles: bool = True  # into programs that are kept for the next start
    perceptrons: bool = False  # it has no other networks


DEFAULT = "ours", "torch", "torch_compile", "numpyro", "pythae", "flax", "flax_jit"
SMALLEST_SIDE = 5  # of maps
NETWORKS = "mlp", "conv", "resnet"
CONTENDERS = {
    "ours": Library("jax", "ours"),
    "torch": Library("torch", "peers.torch_vae", compiles=False),
    "torch_compile": Library("torch", "peers.torch_vae"),
    "torch_bfloat16": Library("torch", "peers.torch_vae", compiles=False),
    "torch_compile_bfloat16": Library("torch", "peers.torch_vae"),
    "numpyro": Library(
        "numpyro", "peers.numpyro_vae", one_sample=True, perceptrons=True
    ),
    "pythae": Library("pythae", "peers.pythae_vae", True, True, False, True),
    "flax": Library("flax", "peers.flax_vae", one_sample=True),
    "flax_jit": Library("flax", "peers.flax_vae", one_sample=True),
}


def flag(*default: str, known: Sequence[str] = tuple(CONTENDERS)) -> Any:
    """The flag that says which of the known are timed."""
    return cli.flag(default, "Which are timed.", choices=known, empty=False)


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
    network: str = cli.flag(
        "mlp",
        "Perceptrons, or convolutions: plain, or in residual blocks.",
        choices=NETWORKS,
    )
    hidden: tuple[int, ...] = cli.flag(
        (500,), "Units of the encoder's hidden layers (mlp).", least=1
    )
    width: int = cli.flag(
        32, "Channels at half the resolution (conv, resnet).", least=1
    )
    num_blocks: int = cli.flag(1, "Blocks at each resolution (conv, resnet).", least=1)
    activation: str = cli.flag(
        "tanh", "Hidden units; perceptrons have tanh.", choices=("tanh", "gelu")
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
    contenders: tuple[str, ...] = flag(*DEFAULT)

    def refuse(self) -> None:
        """Refuses perceptrons that not all contenders have."""
        if self.network == "mlp" and self.activation != "tanh":
            raise ValueError(
                f"--activation={self.activation} is of --network=conv and resnet: "
                "perceptrons have tanh here"
            )


def shared(flags: Any, config_cls: Callable[..., F], **changes: Any) -> F:
    """Another command's flags, as they are here where both have them, some changed."""
    both = {f.name: getattr(flags, f.name) for f in dataclasses.fields(flags)}
    known = {f.name for f in dataclasses.fields(cast(Any, config_cls))}
    return config_cls(**{n: v for n, v in both.items() if n in known} | changes)


class Layer(NamedTuple):
    """An affine map, x @ kernel + bias, or a convolution."""

    kernel: np.ndarray  # [inputs, outputs] or [3, 3, inputs, outputs]
    bias: np.ndarray


class Weights(NamedTuple):
    """Two networks, in the order of `layout`; the encoder ends in (mean, log std)."""

    encoder: list[Layer]
    decoder: list[Layer]


class Place(NamedTuple):
    """Where a layer stands."""

    name: str  # in the parameters of ours, parts of it after a slash
    shape: tuple[int, ...]  # of its kernel
    sides: tuple[int, int] = (1, 1)  # of the maps it is applied to


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
    def layout(self) -> "Places":
        """The layers of both networks."""
        return layout(self.flags, self.train.shape[1:])

    @property
    def quantity(self) -> str:
        """What the objective of the test rows is: real-valued pixels have no bound."""
        return "bound" if self.dynamic else "minus cross-entropy and KL"

    @property
    def dynamic(self) -> bool:
        """Whether training pixels are drawn afresh at every step; else as they are."""
        return self.flags.binarization == "dynamic"


Places: TypeAlias = tuple[list[Place], list[Place]]
"""The layers of encoder and decoder, from the input to the output of each."""

LogP: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Images of zeros and ones [N, *X] -> log p(x) [N]."""


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
    start = initial(*layout(flags, train.shape[1:]))
    return Problem(flags, train, test, source.divisor, start)


def layout(flags: Flags, x_shape: tuple[int, ...]) -> Places:
    """The layers of a problem's networks for one x of that shape."""
    if flags.network == "mlp":
        num_entries = math.prod(x_shape)
        return (
            _perceptron(num_entries, *flags.hidden, 2 * flags.num_latents),
            _perceptron(flags.num_latents, *flags.hidden[::-1], num_entries),
        )
    channels = (x_shape[2:] or (1,))[0]
    steps, sizes = resolutions(flags, x_shape), [channels]
    up, down = [], []
    for i, (height, breadth, size) in enumerate(steps):
        sides = height, breadth
        down.append(Place(f"down_{i}", (3, 3, 4 * sizes[-1], size), sides))
        down += _blocks(flags, i, size, sides)
        # The decoder counts from the smallest maps.
        j = len(steps) - 1 - i
        up.append(Place(f"up_{j}", (3, 3, size, 4 * sizes[-1]), sides))
        up += _blocks(flags, j, size, sides)[::-1]
        sizes.append(size)
    height, breadth, size = steps[-1]
    last = height * breadth * size
    down.append(Place("output", (last, 2 * flags.num_latents)))
    return down, [Place("input", (flags.num_latents, last)), *up[::-1]]


def resolutions(flags: Flags, x_shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(rows, columns, channels) of each resolution below that of the images."""
    height, breadth = -(-x_shape[0] // 2), -(-x_shape[1] // 2)
    steps = [(height, breadth, flags.width)]
    while min(height, breadth) >= 2 * SMALLEST_SIDE - 1:
        height, breadth = -(-height // 2), -(-breadth // 2)
        steps.append((height, breadth, 2 * steps[-1][2]))
    return steps


def _perceptron(*sizes: int) -> list[Place]:
    names = [*(f"hidden_{i}" for i in range(len(sizes) - 2)), "output"]
    return [
        Place(name, shape)
        for name, shape in zip(names, itertools.pairwise(sizes), strict=True)
    ]


def _blocks(flags: Flags, i: int, size: int, sides: tuple[int, int]) -> list[Place]:
    inner = max(1, size // 2 if size <= 64 else size // 4)
    shapes = {
        "/in": (size, inner),
        "/first": (3, 3, inner, inner),
        "/second": (3, 3, inner, inner),
        "/out": (inner, size),
    }
    if flags.network == "conv":
        shapes = {"": (3, 3, size, size)}
    return [
        Place(f"block_{i}_{j}{name}", shape, sides)
        for j in range(flags.num_blocks)
        for name, shape in shapes.items()
    ]


def initial(*networks: Sequence[Place]) -> Weights:
    """Glorot's uniform weights, biases zero, from a fixed seed."""
    generator = np.random.default_rng(INITIAL_SEED)

    def layer(place: Place) -> Layer:
        *of_inputs, outputs = place.shape
        taps = math.prod(of_inputs[:-1])
        limit = (6.0 / (taps * (of_inputs[-1] + outputs))) ** 0.5
        kernel = generator.uniform(-limit, limit, place.shape).astype(np.float32)
        return Layer(kernel, np.zeros(outputs, np.float32))

    return Weights(*([layer(place) for place in places] for places in networks))


def fitting(names: Sequence[str], flags: Flags | None = None) -> list[str]:
    """Those that are installed and can solve the problem; prints the others.

    Raises:
        UsageError: if none can.
    """
    reasons = {name: _unfit(CONTENDERS[name], flags) for name in names}
    for name, reason in reasons.items():
        if reason:
            print(f"{name}: left out, {reason}")
    if all(reasons.values()):
        raise cli.UsageError(
            f"--contenders={','.join(names)}: none of them can run here"
        )
    return [name for name, reason in reasons.items() if not reason]


def _unfit(library: Library, flags: Flags | None) -> str:
    """Why a contender cannot solve the problem; nothing if it can."""
    if importlib.util.find_spec(library.package) is None:
        return f"{library.package} is not installed"
    if flags and library.perceptrons and flags.network != "mlp":
        return "it has perceptrons alone"
    if flags and library.fixed_pixels and flags.binarization == "dynamic":
        return "its data sets hold fixed pixels"
    one_sample = flags is None or (flags.estimator, flags.num_samples) == ("sgvb_b", 1)
    if library.one_sample and not one_sample:
        return "it has the ELBO with one sample alone"
    return ""


def module(name: str) -> Any:
    """The module that drives a contender, imported now."""
    return importlib.import_module(f"experiments.benchmark.{CONTENDERS[name].module}")
