"""How a result leaves a command: as a printed table, and as JSON with its origin."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

import vae_jax
from experiments.command import cli
from vae_jax import writing
from vae_jax.plots import files

R = TypeVar("R")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Column(NamedTuple):
    """One column of a printed table.

    Attributes:
        title: its heading.
        value: of a row -> what stands in the cell; None leaves it empty.
        form: how a number is written, such as ".2f" or "+.1%".
        width: of the column, without the blank before it; the first column of a table
            is set to the left, the others to the right.
    """

    title: str
    value: Callable[[Any], Any]
    form: str = ""
    width: int = 10


def field(title: str, name: str, form: str = "", width: int = 10) -> Column:
    """The column of one entry or field of each row; empty where there is none."""

    def value(row: Any) -> Any:
        return row.get(name) if isinstance(row, dict) else getattr(row, name, None)

    return Column(title, value, form, width)


def table(columns: Sequence[Column], rows: Iterable[Any]) -> str:
    """Heading and rows, a line each."""
    return "\n".join([heading(columns), *(line(columns, row) for row in rows)])


def heading(columns: Sequence[Column]) -> str:
    """The titles of the columns, to stand above lines that come one by one."""
    return _aligned(columns, [column.title for column in columns])


def line(columns: Sequence[Column], row: Any) -> str:
    """One row, to be printed as soon as it is known."""
    return _aligned(columns, [_cell(column, row) for column in columns])


def printed(columns: Sequence[Column], rows: Iterable[R]) -> list[R]:
    """The rows, after each was printed as soon as it was known, below its titles."""
    print(heading(columns), flush=True)
    known = []
    for row in rows:
        print(line(columns, row), flush=True)
        known.append(row)
    return known


def by_name(rows: Iterable[Any]) -> dict[str, list[Any]]:
    """Rows of the same fields, one at least, as field -> its value in each row."""
    rows = [_entries(row) for row in rows]
    return {name: [row[name] for row in rows] for name in rows[0]}


def numbers(figures: Mapping[str, float], form: str = ".4f") -> list[str]:
    """A line for each number by its name, two blanks before it."""
    columns = (
        Column("", lambda item: f"  {item[0]}", width=34),
        Column("", lambda item: item[1], form, 13),
    )
    return [line(columns, item) for item in figures.items()]


def mean_and_deviation(values: Sequence[float], *, digits: int = 3) -> str:
    """A value, or the mean of several with their standard deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _cell(column: Column, row: Any) -> str:
    value = column.value(row)
    if value is None:
        return ""
    return value if isinstance(value, str) else format(value, column.form)


def _aligned(columns: Sequence[Column], cells: Sequence[str]) -> str:
    sides = ["<", *">" * (len(columns) - 1)]
    return " ".join(
        f"{cell:{side}{column.width}}"
        for column, cell, side in zip(columns, cells, sides, strict=True)
    ).rstrip()


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a .csv below a line of all names; empty where a row has not the name."""
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def claim(workdir: str | pathlib.Path, *, flag: str = "workdir") -> pathlib.Path:
    """Creates a folder to write in, where there is none, before the work for it.

    Args:
        workdir: the folder, below `~` too.
        flag: that named it, for the errors.

    Raises:
        UsageError: if it is a file or cannot be written.
    """
    folder = pathlib.Path(workdir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise cli.UsageError(
            f"--{flag}={folder} is a file: name a folder, or move the file"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cli.UsageError(
            f"--{flag}={folder} cannot be created: {error.strerror}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cli.UsageError(f"no permission to write in --{flag}={folder}")
    return folder


def write(
    path: pathlib.Path,
    config: Any,
    result: dict[str, Any],
    pictures: Mapping[str, Any] | None = None,
) -> None:
    """Writes a result as JSON, with its flags, the versions and the device.

    Beside it its pictures, as `draw`.

    Raises:
        UsageError: if one cannot be written.
    """
    draw(path.parent, pictures or {})
    with cli.user_errors():
        write_json(path, _with_origin(config, result))
    print(f"written to {path.parent}")


def draw(folder: pathlib.Path, pictures: Mapping[str, Any]) -> None:
    """Saves pictures by their names, as PNG.

    Raises:
        UsageError: if one cannot be written.
    """
    with cli.user_errors():
        for name, figure in pictures.items():
            files.save(figure, folder / f"{name}.png")


def write_both(
    path: pathlib.Path, config: Any, result: dict[str, Any], text: str, *beside: str
) -> None:
    """Writes a result likewise as path.json, and its tables as path.txt.

    Args:
        path: of both, without an ending.
        config: the flags.
        result: as `write`.
        text: the tables.
        beside: names, or endings, of what the command has written before, to be named
            after them.

    Raises:
        UsageError: if one cannot be written.
    """
    first = path.with_suffix(".json")
    with cli.user_errors():
        write_json(first, _with_origin(config, result))
        write_text(path.with_suffix(".txt"), text + "\n")
    print(f"written to {', '.join([str(first), '.txt', *beside])}")


def _with_origin(config: Any, result: dict[str, Any]) -> dict[str, Any]:
    flags = dataclasses.asdict(config)
    return {**result, "config": flags, "environment": environment()}


def cached(path: pathlib.Path, flags: dict[str, Any], make: Callable[[], Any]) -> Any:
    """The result in a file that was made with the same flags, else made and written.

    Either way as it is read back: dictionaries for records, lists for tuples. So a
    comparison that was interrupted continues behind its last finished part.

    Raises:
        UsageError: if the file is damaged or cannot be written.
    """
    flags = plain(flags)
    if path.is_file():
        before = read_json(path)
        if before.get("config") == flags:
            return measured(before["result"])
    result = plain(make())
    with cli.user_errors():
        write_json(path, {"config": flags, "result": result})
    return measured(result)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        UsageError: if it is there no more, or damaged.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise cli.UsageError(f"{path} cannot be read ({error}): remove it") from error
    if not isinstance(content, dict):
        raise cli.UsageError(f"{path} holds no results: remove it")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON whole or not at all; what is not finite as null."""
    write_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(content: Any) -> Any:
    """What `write_json` writes: dictionaries for records, None for what is not finite.

    And lists for tuples.
    """
    text = json.dumps(_entries(content))
    return json.loads(text, parse_constant=lambda name: None)


def _entries(content: Any) -> Any:
    """The same with dictionaries for NamedTuples, at any depth."""
    if hasattr(content, "_asdict"):
        content = content._asdict()
    if isinstance(content, dict):
        return {name: _entries(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_entries(value) for value in content]
    return content


def measured(content: Any) -> Any:
    """Measurements that were read back, NaN where they hold None."""
    if isinstance(content, dict):
        return {name: measured(value) for name, value in content.items()}
    if isinstance(content, list):
        return [measured(value) for value in content]
    return math.nan if content is None else content


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with writing.atomically(path) as file:
        file.write(text.encode())


def environment() -> dict[str, Any]:
    """Versions and device of this process."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "packages": {"vae_jax": vae_jax.__version__}
        | {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.device_count(),
    }
