"""What a row of a table of choices is, and which flags are read under which row.

A flag such as --estimator names a row; a row says what builds the choice, which other
flags feed it, and what it goes with. A new choice is one row beside its builder.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

NO_FLAGS: Mapping[str, str] = MappingProxyType({})


class Choice(NamedTuple):
    """A row of a table that knows no more than how its choice is built.

    Attributes:
        build: what the table's choices are made of, own numbers -> the choice.
        flags: keyword of `build` -> the flag that fills it.
        reads: further flags that mean something under this choice.
    """

    build: Callable[..., Any]
    flags: Mapping[str, str] = NO_FLAGS
    reads: tuple[str, ...] = ()


class Traits(NamedTuple):
    """What a fit or an estimator has to know of a q.

    Attributes:
        continuous: whether z is real and has a gradient.
        spherical: whether it lies on a sphere, which no step may leave.
        own_parameters: whether q has any beside h.
        closed_kl: whether its KL to the prior has a closed form.
        factorizes: whether that is a sum over latents, one number each.
        layered: whether it is of several layers, each given those above.
        rounded: whether it is a point mass at a code, with a gradient all the same.
        codebook: whether those codes are learned, which the bound's gradient does not.
    """

    continuous: bool = True
    spherical: bool = False
    own_parameters: bool = False
    closed_kl: bool = False
    factorizes: bool = False
    layered: bool = False
    rounded: bool = False
    codebook: bool = False

    @property
    def unconstrained(self) -> bool:
        """Whether z is any real vector: chains, normals and lines may go anywhere."""
        return self.continuous and not self.spherical


class Row(Protocol):
    """What a `Choice` has, and every row that says more."""

    @property
    def build(self) -> Callable[..., Any]:
        """Makes the choice."""
        ...

    @property
    def flags(self) -> Mapping[str, str]:
        """Keyword of `build` -> the flag that fills it."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """Further flags that mean something under this choice."""
        ...


def numbers(
    row: Row, config: Any, traced: Mapping[str, Any] = NO_FLAGS
) -> dict[str, Any]:
    """The keyword arguments of a row's builder; traced numbers go before flags."""
    return {
        keyword: traced.get(flag, getattr(config, flag))
        for keyword, flag in row.flags.items()
    }


def read_by(row: Row) -> set[str]:
    """The flags that mean something under this choice, of those that rows read."""
    return {*row.flags.values(), *row.reads}


def readers(table: Mapping[str, Row]) -> dict[str, list[str]]:
    """Every flag that some row of a table reads, with the names of those that do."""
    names: dict[str, list[str]] = {}
    for name, row in table.items():
        for flag in sorted(read_by(row)):
            names.setdefault(flag, []).append(name)
    return names
