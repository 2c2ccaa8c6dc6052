"""absl flags derived from a frozen dataclass: one declaration per option."""

import dataclasses
import difflib
import math
import os
import re
import signal
import sys
import typing
import warnings
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

from absl import flags

C = TypeVar("C")
N = TypeVar("N", int, float)
DEFINE: dict[Any, Callable[..., Any]] = {  # absl's, by the type of the field
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    tuple[int, ...]: flags.DEFINE_list,
    tuple[float, ...]: flags.DEFINE_list,
    tuple[str, ...]: flags.DEFINE_list,
}


class UsageError(Exception):
    """A mistake of the user's: shown as one line, without a traceback."""


def flag(
    default: Any,
    text: str,
    *,
    choices: Iterable[str] | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    multiple: int = 1,
    empty: bool = True,
    infinite: bool = False,
    display: bool = False,
    section: str = "",
) -> Any:
    """One dataclass field that is also one command-line flag.

    Args:
        default: the flag's default; its field's type is int, float, str, bool,
            tuple[int, ...], tuple[float, ...] or tuple[str, ...] (comma-separated
            lists).
        text: what --help says.
        choices: the only values allowed, if given; of a list, the only items.
        least: the least value allowed, of a list of each item.
        above: what the value must be above.
        below: what the value must be below.
        most: the greatest value allowed.
        multiple: what an integer must be a multiple of.
        empty: whether a list may be so.
        infinite: whether a float may be so, within its bounds; NaN is in none.
        display: whether the flag changes what is shown, or where it is computed, and
            never what (rounding apart).
        section: heading of --help that this flag and those after it stand under.
    """
    metadata = {
        "help": text,
        "choices": None if choices is None else tuple(choices),
        "bounds": (least, above, below, most),
        "multiple": multiple,
        "empty": empty,
        "infinite": infinite,
        "display": display,
        "section": section,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Gone(NamedTuple):
    """A flag that there was.

    Attributes:
        default: its text in a flag file that does not use it.
        instead: what there is in its place, as the end of a sentence.
    """

    default: str
    instead: str


class Flags:
    """What every dataclass of flags is: its values are checked when it is made.

    Attributes:
        GONE: flags that there were, by name.
    """

    GONE: ClassVar[Mapping[str, Gone]] = {}

    def __post_init__(self) -> None:
        """Refuses what `check_values` does, then what `refuse` does.

        Raises:
            ValueError: naming the flag, its value and what is allowed.
        """
        check_values(self, vars(self))
        self.refuse()

    def refuse(self) -> None:
        """Refuses values that do not go together; nothing where all do."""

    def refuse_unread(
        self,
        chooser: str,
        chosen: Collection[str],
        readers: Mapping[str, Collection[str]],
    ) -> None:
        """Refuses a flag that is given, where none of what is chosen reads it.

        Args:
            chooser: the flag that chooses.
            chosen: what it has.
            readers: of each flag, the choices that read it.

        Raises:
            ValueError: naming both flags.
        """
        for flag, choices in readers.items():
            if getattr(self, flag) != self.default(flag) and not {*chosen} & {*choices}:
                raise ValueError(
                    f"--{flag} has no effect with --{chooser}={','.join(chosen)}: it "
                    f"is read by {', '.join(choices)}"
                )

    def refuse_others(self, flag: str, read: Collection[str] = ()) -> None:
        """Refuses flags that are set beside one that leaves them unread.

        Args:
            flag: the one.
            read: those that are read beside it.

        Raises:
            ValueError: naming all of them.
        """
        others = {f.name for f in dataclasses.fields(cast(Any, self))} - {flag, *read}
        unread = sorted(n for n in others if getattr(self, n) != self.default(n))
        if unread:
            raise ValueError(
                f"{', '.join(f'--{name}' for name in unread)}: not read with --{flag}="
                f"{getattr(self, flag)}: leave out one or the other"
            )

    def some(self, names: Iterable[str]) -> dict[str, Any]:
        """The values of some flags by their names."""
        return {name: getattr(self, name) for name in names}

    def but(self, *names: str) -> dict[str, Any]:
        """The values of all flags but some, by their names."""
        flags = dataclasses.asdict(cast(Any, self))
        return {name: value for name, value in flags.items() if name not in names}

    def default(self, name: str) -> Any:
        """The default of a flag."""
        return cast(Any, self).__dataclass_fields__[name].default


def check_values(config_cls: Any, values: Mapping[str, Any]) -> None:
    """Refuses values outside of what their flags allow, each by itself.

    Raises:
        ValueError: naming the flag, its value and what is allowed.
    """
    for field in dataclasses.fields(config_cls):
        value, choices = values[field.name], field.metadata["choices"]
        items = value if isinstance(value, tuple) else (value,)
        if not items and not field.metadata["empty"]:
            raise ValueError(f"--{field.name} must hold at least one item")
        for item in items if choices else ():
            if item not in choices:
                raise ValueError(
                    f"--{field.name}={item} is unknown; known: {_listed(choices)}"
                    f"{_meant(item, choices)}"
                )
        wanted = _out_of_bounds(value, *field.metadata["bounds"])
        multiple = field.metadata["multiple"]
        if not wanted and multiple > 1 and value % multiple:
            wanted = f"be a multiple of {multiple}"
        floats = [item for item in items if isinstance(item, float)]
        may_be_infinite = field.metadata["infinite"] or all(map(math.isfinite, floats))
        if not wanted and not may_be_infinite:
            wanted = "be finite"
        if wanted:
            raise ValueError(f"--{field.name} must {wanted}, got {value}")


def _listed(choices: Iterable[str]) -> str:
    """All but the empty one, which is to leave the flag out."""
    return ", ".join(filter(None, choices))


def _meant(name: str, known: Iterable[str], form: str = "") -> str:
    """A question for the known name that is nearest, if one is near."""
    near = difflib.get_close_matches(name, [*known], n=1)
    return f"; did you mean {form}{near[0]}?" if near else ""


def _out_of_bounds(
    value: Any,
    least: float | None,
    above: float | None,
    below: float | None,
    most: float | None,
) -> str:
    """What a value, or every item of a list, must be and is not; "" if it is."""
    items = value if isinstance(value, tuple) else (value,)
    hold = "hold numbers" if isinstance(value, tuple) else "be"
    if above is not None and below is not None:
        if not all(above < item < below for item in items):
            return f"{hold} between {above:g} and {below:g}"
    elif above is not None and not all(item > above for item in items):
        if above == 0:
            return (
                "hold positive numbers" if isinstance(value, tuple) else "be positive"
            )
        return f"{hold} above {above:g}"
    elif below is not None and not all(item < below for item in items):
        return f"{hold} below {below:g}"
    if least is not None and not all(item >= least for item in items):
        if least == 1 and isinstance(least, int):
            return "hold positive sizes" if isinstance(value, tuple) else "be positive"
        return "not be negative" if least == 0 else f"{hold} {least:g} or more"
    if most is not None and not all(item <= most for item in items):
        return f"{hold} at most {most:g}"
    return ""


def without_gone(config_cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Flags by name but for those that are gone, as workdirs and cards may have them.

    Raises:
        ValueError: for one that was used, naming what there is instead.
    """
    for name, gone in config_cls.GONE.items():
        if name in values and str(values[name]) != gone.default:
            raise ValueError(f"--{name}={values[name]} is gone: {gone.instead}")
    return {name: x for name, x in values.items() if name not in config_cls.GONE}


def display_flags(config_cls: Any) -> set[str]:
    """Names of the flags that change no number of a run."""
    return {f.name for f in dataclasses.fields(config_cls) if f.metadata["display"]}


def differing(
    first: Any, second: Any, *, ignored: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """The flags of two dataclasses that differ, but those ignored, with both values."""
    pairs = {
        f.name: (getattr(first, f.name), getattr(second, f.name))
        for f in dataclasses.fields(first)
        if f.name not in ignored
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def parse(config_cls: type[C], argv: Sequence[str]) -> C:
    """Parses argv (program name first), --flagfile included; the later flag wins.

    A private `FlagValues` is used, because absl's global one raises when two scripts
    that share a flag's name meet in one process.

    Raises:
        UsageError: for an unknown flag, a value that does not fit, an argument that is
            no flag, an unreadable flag file.
    """
    try:
        values = _read(config_cls, argv)
        check_values(config_cls, values)
        return config_cls(**values)
    except (flags.Error, ValueError, OSError) as error:
        path = _faulty_file(config_cls, argv)
        raise UsageError(f"{path}: {error}" if path else str(error)) from error


def write_flagfile(config: Any) -> str:
    """The text of a flag file that parses back to `config`."""
    return "".join(f"{line}\n" for line in _lines(config))


def run(config_cls: type[C], main: Callable[[C], int | None]) -> None:
    """Script entry point: parses sys.argv, calls main and exits with its status.

    A `UsageError` is printed as one line, with exit status 1 (2 for bad flags), and so
    are a file that cannot be read or written and Ctrl-C (130): no bugs of the program.
    A warning is one line as well. Where nobody reads what is printed any more, as after
    `| head`, it ends without a word (141, as a shell has it).
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            _run(config_cls, main)
    except BrokenPipeError:
        # Python flushes what is left at exit, and would complain of it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _run(config_cls: type[C], main: Callable[[C], int | None]) -> typing.NoReturn:
    if {"--help", "-help", "--helpfull", "--helpshort"} & set(sys.argv[1:]):
        print(_help(config_cls, main.__module__), flush=True)
        sys.exit(0)
    try:
        config = parse(config_cls, sys.argv)
    except UsageError as error:
        _fail(error, 2)
    try:
        status = main(config) or 0
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        raise
    except (UsageError, OSError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail(UsageError("interrupted"), 128 + signal.SIGINT)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the library's documented errors into `UsageError`.

    For the stretch of a script that reads what the user gave (data, sizes, paths).
    Inside the computation a ValueError is a bug, and keeps its traceback.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def _faulty_file(config_cls: Any, argv: Sequence[str]) -> str:
    """The first flag file among the arguments that does not parse alone, or nothing.

    One that cannot be opened is named by the error itself.
    """
    for argument in argv[1:]:
        name, _, path = argument.lstrip("-").partition("=")
        if name != "flagfile" or not os.path.isfile(path):
            continue
        try:
            check_values(config_cls, _read(config_cls, [argv[0], argument]))
        except (flags.Error, ValueError):
            return path
    return ""


def _read(config_cls: Any, argv: Sequence[str]) -> dict[str, Any]:
    """The value of every flag, each of its type."""
    types, fields = typing.get_type_hints(config_cls), dataclasses.fields(config_cls)
    values = flags.FlagValues()
    for f in fields:
        default = f.default
        if isinstance(default, tuple):
            default = [str(item) for item in default]
        text, define = f.metadata["help"], DEFINE[types[f.name]]
        define(f.name, default, text, flag_values=values)
    for name, gone in config_cls.GONE.items():
        flags.DEFINE_string(name, gone.default, "", flag_values=values)
    try:
        leftover = values(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        names = [f.name for f in fields]
        names += [f"no{f.name}" for f in fields if types[f.name] is bool]
        meant = _meant(error.flagname, names, "--")
        raise ValueError(f"--{error.flagname} is no flag{meant}") from error
    except flags.IllegalFlagValueError as error:
        said = re.sub(
            r"invalid literal for int.*", "must be a whole number", str(error)
        )
        raise ValueError(said) from error
    if leftover:
        raise ValueError(f"unexpected arguments: {' '.join(leftover)}")
    read = without_gone(config_cls, {name: values[name].value for name in values})
    read = {f.name: read[f.name] for f in fields}
    for name, value in read.items():
        if types[name] == tuple[int, ...]:
            read[name] = _numbers(name, value, int, "integers")
        elif types[name] == tuple[float, ...]:
            read[name] = _numbers(name, value, float, "numbers")
        elif types[name] == tuple[str, ...]:
            read[name] = tuple(value)
        elif types[name] is int and not -(2**31) <= value < 2**31:
            raise ValueError(f"--{name}={value} does not fit into 32 bits")
    return read


def _numbers(
    name: str, value: Sequence[str], kind: Callable[[str], N], what: str
) -> tuple[N, ...]:
    try:
        return tuple(kind(item) for item in value if item.strip())
    except ValueError:
        raise ValueError(
            f"flag --{name}={','.join(value)}: a comma-separated list of {what}"
        ) from None


def _lines(config: Any) -> Iterator[str]:
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, bool):
            yield f"--{f.name}" if value else f"--no{f.name}"
        elif isinstance(value, tuple):
            yield f"--{f.name}={','.join(map(str, value))}"
        else:
            yield f"--{f.name}={value}"


def _help(config_cls: Any, module: str) -> str:
    lines = [(sys.modules[module].__doc__ or "").strip(), "", "Flags:"]
    fields = dataclasses.fields(config_cls)
    for f, line in zip(fields, _lines(config_cls()), strict=True):
        if f.metadata["section"]:
            lines.extend(["", f"{f.metadata['section']}:"])
        choices = f.metadata["choices"]
        some = "Some" if isinstance(f.default, tuple) else "One"
        options = f" {some} of {_listed(choices)}." if choices else ""
        if isinstance(f.default, bool):
            line = f"--[no]{f.name} ({'on' if f.default else 'off'})"
        lines.append(f"  {line}\n      {f.metadata['help']}{options}")
    lines.append("\n  --flagfile=PATH\n      A file of flags; a flag given later wins.")
    return "\n".join(lines)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: typing.TextIO | None = None,
    line: str | None = None,
) -> None:
    """What shows a warning: without the place in the source that Python prints."""
    del category, filename, lineno, line
    print(f"warning: {' '.join(str(message).split())}", file=file or sys.stderr)


def _fail(error: Exception, status: int) -> typing.NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)
