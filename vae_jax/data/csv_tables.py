"""Tables, in .csv files or arrays: one row an example, columns of several kinds.

A cell becomes a float32: a number as it is, one of K levels as k / (K - 1) in their
order, an empty one (or NA, NaN, null, none, ?) NaN. Levels that are all numbers are
told apart as numbers: 1 and 1.0 are one. An empty line is no row: the empty cell of a
table of one column is written "".
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vae_jax import writing
from vae_jax.data import csv_cells

KINDS: Mapping[str, str] = {  # family -> what its cells are
    **dict.fromkeys(("normal", "student_t"), "real"),
    "log_normal": "positive",
    **dict.fromkeys(("poisson", "negative_binomial"), "count"),
    "zero_inflated_negative_binomial": "count",
    **dict.fromkeys(("bernoulli", "categorical", "ordinal"), "level"),
    "label": "level",
    "context": "real",
    "skip": "nothing",
}
"""Families of columns: three more than of likelihoods, a label, what x may be given (of
numbers or of levels), and what is left out."""

_NOUNS = {"real": "finite number", "positive": "positive number", "count": "count"}
MOST_LEVELS = 50  # of a column of text that nobody has named
_MOST_COUNT = 1 << 24  # float32 has every count up to here
_DIGITS = 1e5  # a mean may be so many times its column's spread in float32


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: in the header.
        family: one of `KINDS`.
        levels: texts of its cells in order, where it has any.
    """

    name: str
    family: str
    levels: tuple[str, ...] = ()


class Table(NamedTuple):
    """What files of one header hold.

    Attributes:
        columns: all of them, in order.
        arrays: by split, the cells [N, D] of those that x is made of.
        labels: by split, of the column that is one, if any: int32 [N].
        contexts: by split, of those that are, if any: [N, C], a number as it is, one of
            K levels one-hot.
        context_names: of the C entries.
    """

    columns: tuple[Column, ...]
    arrays: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    contexts: dict[str, np.ndarray]
    context_names: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Levels of the label."""
        return next((c.levels for c in self.columns if c.family == "label"), ())


def listed(levels: Sequence[str]) -> str:
    """Levels side by side, in quotes where one holds a comma."""
    return ", ".join(f'"{level}"' if "," in level else level for level in levels)


def observed(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Those that x is made of."""
    return tuple(c for c in columns if c.family not in ("label", "context", "skip"))


def read(path: Path, families: Mapping[str, str]) -> Table:
    """A .csv file, as the split train, or a folder of train.csv, valid.csv, test.csv.

    Families that are not said are guessed from the cells of all files: bernoulli for
    two levels, categorical for texts, negative_binomial for whole numbers from 0 on
    that vary at least half as much as a Poisson's, else normal.

    Args:
        path: of the file or the folder.
        families: by name of column, those that are said.

    Raises:
        ValueError: with the file, and of a bad cell its line and column: no header, a
            row of another length, a number among texts or a text among numbers, cells
            that a family is not of, a name or a family that is unknown.
        FileNotFoundError: if there is no such file.
    """
    files = {"train": path}
    if path.is_dir():
        names = {split: path / f"{split}.csv" for split in ("train", "valid", "test")}
        files = {split: file for split, file in names.items() if file.is_file()}
        files = files if "train" in files else {"train": path / "train.csv"}
    texts = {split: csv_cells.read(file) for split, file in files.items()}
    header = texts["train"].header
    for split, text in texts.items():
        if text.header != header:
            raise ValueError(f"{files[split]}: its header is not that of train.csv")
    places = [place for text in texts.values() for place in text.places]
    together = itertools.chain(*(text.rows for text in texts.values()))
    columns = dict(zip(header, map(list, zip(*together, strict=True)), strict=True))
    sizes = {split: len(text.rows) for split, text in texts.items()}
    return _guessing(str(path), columns, families, places, sizes)


def of_arrays(
    name: str, arrays: Mapping[str, np.ndarray], families: Mapping[str, str]
) -> Table:
    """Arrays of numbers [N, D] by split, whose columns x0, x1, ... are a file's.

    Raises:
        ValueError: as `read`, with the name; for arrays of other shapes, or of texts.
    """
    shapes = {split: array.shape for split, array in arrays.items()}
    num_columns = {shape[1] if len(shape) == 2 else 0 for shape in shapes.values()}
    if min(num_columns) < 1 or len(num_columns) > 1:
        raise ValueError(
            f"{name}: a table's columns are those of [N, D], got arrays {shapes}"
        )
    places = [
        (f"{name}: {s} row", i)
        for s, array in arrays.items()
        for i in range(len(array))
    ]
    whole = np.concatenate([*arrays.values()])
    columns = {f"x{at}": _texts(name, whole[:, at]) for at in range(whole.shape[1])}
    sizes = {split: len(array) for split, array in arrays.items()}
    return _guessing(name, columns, families, places, sizes)


def read_rows(path: Path, columns: Sequence[Column]) -> Table:
    """Further rows of the columns of a table, as its split test.

    Columns are found by their names: others are not read, and a label may be missing.

    Raises:
        ValueError: as `read`; for a level that the column has not.
        FileNotFoundError: as `read`.
    """
    header, rows, places = csv_cells.read(path)
    texts = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return _further(str(path), columns, texts, places)


def further_rows(name: str, array: np.ndarray, columns: Sequence[Column]) -> Table:
    """As `read_rows`, of an array [N, D] as `of_arrays` takes them.

    Raises:
        ValueError: as `of_arrays` and `read_rows`.
    """
    if array.ndim != 2:
        raise ValueError(f"{name}: rows of a table are [N, D], got {array.shape}")
    places = [(f"{name} row", i) for i in range(len(array))]
    texts = {f"x{at}": _texts(name, array[:, at]) for at in range(array.shape[1])}
    return _further(name, columns, texts, places)


def _guessing(
    name: str,
    texts: Mapping[str, list[str]],
    families: Mapping[str, str],
    places: list[tuple[str, int]],
    sizes: Mapping[str, int],
) -> Table:
    unknown = [column for column in families if column not in texts]
    if unknown:
        raise ValueError(
            f"{name}: no column is named {unknown[0]!r}: choose of {', '.join(texts)}"
        )
    pairs = [
        _column(column, cells, families.get(column, ""), places)
        for column, cells in texts.items()
    ]
    if not observed([column for column, _ in pairs]):
        raise ValueError(f"{name}: no column is left to be modeled")
    return _table(pairs, places, sizes)


def _further(
    name: str,
    columns: Sequence[Column],
    texts: Mapping[str, list[str]],
    places: list[tuple[str, int]],
) -> Table:
    pairs = []
    for column in columns:
        if column.name in texts and column.family != "skip":
            values = _known(column, texts[column.name], places)
            pairs.append((column, values))
        elif column.family not in ("label", "skip"):
            raise ValueError(
                f"{name}: no column is named {column.name!r}: it has {', '.join(texts)}"
            )
    return _table(pairs, places, {"test": len(places)})


def _texts(name: str, values: np.ndarray) -> list[str]:
    """Numbers as a file has them."""
    if values.dtype.kind not in "buif":
        raise ValueError(f"{name}: a table's array holds numbers, got {values.dtype}")
    numbers = values.astype(np.uint8) if values.dtype.kind == "b" else values
    return [
        "" if number != number else csv_cells.shortest(number) for number in numbers
    ]


def _table(
    pairs: Sequence[tuple[Column, np.ndarray]],
    places: list[tuple[str, int]],
    sizes: Mapping[str, int],
) -> Table:
    """The table of columns and their values, the splits one behind the other."""
    cells, label, contexts = [], None, {}
    for column, values in pairs:
        if column.family == "label":
            label = _labels(column, values, places)
        elif column.family == "context":
            contexts |= _entries(column, values, places)
        elif column.family != "skip":
            cells.append(values)
    ends = np.cumsum([*sizes.values()])[:-1]

    def by_split(rows: np.ndarray | None) -> dict[str, np.ndarray]:
        if rows is None:
            return {}
        return dict(zip(sizes, np.split(rows, ends), strict=True))

    whole = np.stack(cells, axis=1).astype(np.float32)
    beside = np.stack([*contexts.values()], axis=1) if contexts else None
    columns = tuple(column for column, _ in pairs)
    return Table(
        columns, by_split(whole), by_split(label), by_split(beside), (*contexts,)
    )


def write(
    path: Path, columns: Sequence[Column], rows: Mapping[str, np.ndarray] | np.ndarray
) -> None:
    """Rows [N, D] as a .csv of the columns' own types, NaN as an empty cell.

    Args:
        path: of the file, written whole or not at all.
        columns: those that x is made of.
        rows: [N, D], or more of the same shape by the ending of their columns' names.
    """
    blocks = rows if isinstance(rows, Mapping) else {"": rows}
    header = [c.name + ending for c in columns for ending in blocks]
    with writing.atomically(path) as file:
        lines = [_line(header)]
        for row in range(len(next(iter(blocks.values())))):
            cells = (
                _text(column, block[row, at])
                for at, column in enumerate(columns)
                for block in blocks.values()
            )
            lines.append(_line(cells))
        file.write("".join(lines).encode())


def _line(cells: Any) -> str:
    quoted = (
        '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\n\r') else cell
        for cell in cells
    )
    return (",".join(quoted) or '""') + "\n"


def _text(column: Column, value: float) -> str:
    if np.isnan(value):
        return ""
    if column.levels:
        return column.levels[round(float(value) * (len(column.levels) - 1))]
    is_count = KINDS[column.family] == "count"
    return f"{value:.0f}" if is_count else csv_cells.shortest(np.float32(value))


def _column(
    name: str, texts: list[str], family: str, places: list[tuple[str, int]]
) -> tuple[Column, np.ndarray]:
    """The column and its values, of a family that is said or guessed."""
    if family and family not in KINDS:
        raise ValueError(
            f"column {name} cannot be {family!r}: choose of {', '.join(KINDS)}"
        )
    if family == "skip":
        return Column(name, family), np.zeros(0)
    is_there = csv_cells.are_there(texts)
    are_numbers = np.array([csv_cells.number(text) is not None for text in texts])
    kind = KINDS.get(family, "")
    is_open = family in ("", "context")
    if kind == "level" or (is_open and not (are_numbers & is_there).any()):
        column = _of_levels(name, texts, is_there, family, places)
        return column, _of(column, texts, is_there)
    instead = f", or say {name}:categorical (--columns)"
    values = _numbers(name, texts, places, instead=instead)
    family = family or _guessed(values)
    if family == "bernoulli":
        column = _of_levels(name, texts, is_there, family, places)
        return column, _of(column, texts, is_there)
    instead = f", or say that {name} is of another family (--columns)"
    _check(name, values, family, places, instead=instead)
    there = values[~np.isnan(values)]
    if (
        there.size
        and KINDS[family] == "real"
        and 0 < _DIGITS * there.std() < abs(there.mean())
    ):
        raise ValueError(
            f"column {name} lies around {there.mean():g} and varies by "
            f"{there.std():g}, which float32 does not resolve: subtract a constant"
        )
    return Column(name, family), values


def _known(
    column: Column, texts: list[str], places: list[tuple[str, int]]
) -> np.ndarray:
    """Values of a column whose family and levels are known."""
    if not column.levels:
        values = _numbers(column.name, texts, places)
        _check(column.name, values, column.family, places)
        return values
    is_there = csv_cells.are_there(texts)
    is_new = is_there & np.array(
        [at is None for at in csv_cells.among(column.levels, texts)]
    )
    if is_new.any():
        place = _first(places, is_new)
        raise ValueError(
            f"{place}, column {column.name}: {texts[int(is_new.argmax())]!r} "
            f"is none of its levels: {listed(column.levels)}"
        )
    return _of(column, texts, is_there)


def _numbers(
    name: str, texts: list[str], places: list[tuple[str, int]], *, instead: str = ""
) -> np.ndarray:
    """What the cells hold; instead: what else a user can do where they do not."""
    is_there, numbers = (
        csv_cells.are_there(texts),
        [csv_cells.number(text) for text in texts],
    )
    bad = is_there & np.array([number is None for number in numbers])
    if bad.any():
        place = _first(places, bad)
        raise ValueError(
            f"{place}, column {name}: {texts[int(bad.argmax())]!r} is no "
            f"number: mend it or leave it empty{instead}"
        )
    values = np.array(
        [x if ok else np.nan for x, ok in zip(numbers, is_there, strict=True)], float
    )
    huge = np.isfinite(values) & (np.abs(values) > np.finfo(np.float32).max)
    if huge.any():
        place = _first(places, huge)
        raise ValueError(
            f"{place}, column {name}: {values[int(huge.argmax())]:g} is more "
            "than float32 holds: scale the column"
        )
    return values


def _guessed(values: np.ndarray) -> str:
    there = values[~np.isnan(values)]
    if len(np.unique(there)) == 2:
        return "bernoulli"
    counts = there.size and np.all((there >= 0) & (there == np.floor(there)))
    if counts and there.var() >= 0.5 * there.mean():
        return "negative_binomial"
    return "normal"


def _of_levels(
    name: str,
    texts: list[str],
    is_there: np.ndarray,
    family: str,
    places: list[tuple[str, int]],
) -> Column:
    """A column of levels, in the order of their numbers or else of their texts."""
    levels = {text for text, ok in zip(texts, is_there, strict=True) if ok}
    exact = {level: csv_cells.exact(level) for level in sorted(levels)}
    others = [level for level, number in exact.items() if number is None]
    if not others:
        longest_first = sorted(exact.items(), key=lambda pair: -len(pair[0]))
        texts_of = {
            number: level for level, number in longest_first if number is not None
        }
        ordered = [texts_of[number] for number in sorted(texts_of)]  # one for a number
    elif family == "ordinal":
        first = others[0]
        place = _first(places, [text == first for text in texts])
        raise ValueError(
            f"{place}, column {name}: {first!r} has no place in an order: "
            f"write its levels as numbers, or say {name}:categorical"
        )
    else:
        ordered = sorted(levels)
    is_said = bool(family)
    family = family or ("bernoulli" if len(ordered) == 2 else "categorical")
    least = 1 if family == "label" else 2
    if len(ordered) < least or (family == "bernoulli" and len(ordered) > 2):
        needed = "two levels" if family == "bernoulli" else f"{least} levels or more"
        raise ValueError(
            f"column {name} as {family} needs {needed}, and has {len(ordered)}: say "
            f"{name}:skip (--columns) or another family"
        )
    if len(ordered) > MOST_LEVELS and not is_said:
        raise ValueError(
            f"column {name} has {len(ordered)} levels, more than {MOST_LEVELS}: say "
            f"{name}:skip (--columns), or {name}:categorical if it has so many"
        )
    return Column(name, family, tuple(ordered))


def _of(column: Column, texts: list[str], is_there: np.ndarray) -> np.ndarray:
    """k / (K - 1) of each cell; of a label, whose K may be one, k."""
    top = 1 if column.family == "label" else len(column.levels) - 1
    pairs = zip(csv_cells.among(column.levels, texts), is_there, strict=True)
    return np.array([k / top if k is not None and ok else np.nan for k, ok in pairs])


def _first(places: list[tuple[str, int]], are_bad: ArrayLike) -> str:
    """Where the first bad cell stands: the file, and the line or the row."""
    place, number = places[int(np.argmax(are_bad))]
    return f"{place} {number}"


def _labels(
    column: Column, values: np.ndarray, places: list[tuple[str, int]]
) -> np.ndarray:
    if np.isnan(values).any():
        place = _first(places, np.isnan(values))
        raise ValueError(f"{place}, column {column.name}: no label is there")
    return values.astype(np.int32)


def _entries(
    column: Column, values: np.ndarray, places: list[tuple[str, int]]
) -> dict[str, np.ndarray]:
    """The entries of a context that a column makes, by name."""
    if np.isnan(values).any():
        place = _first(places, np.isnan(values))
        raise ValueError(
            f"{place}, column {column.name}: nothing is there, and a context "
            "has no holes: fill it, or leave the row out"
        )
    if not column.levels:
        return {column.name: values.astype(np.float32)}
    each = np.rint(values * (len(column.levels) - 1))
    return {
        f"{column.name}={level}": (each == k).astype(np.float32)
        for k, level in enumerate(column.levels)
    }


def of_entries(
    columns: Sequence[Column], entries: np.ndarray, names: Sequence[str]
) -> list[tuple[Column, np.ndarray]]:
    """The columns that contexts [N, C] were made of, and their cells [N].

    Args:
        columns: of the table; where none is a context each entry is a column.
        entries: as `Table.contexts`.
        names: of the entries.
    """
    are_contexts = [column for column in columns if column.family == "context"]
    if not are_contexts:
        are_contexts = [Column(f"context_{name}", "context") for name in names]
    pairs, at = [], 0
    for column in are_contexts:
        part = entries[:, at : at + max(1, len(column.levels))]
        at += part.shape[1]
        top = len(column.levels) - 1
        cells = part.argmax(axis=1) / top if column.levels else part[:, 0]
        pairs.append((column, cells))
    return pairs


def _check(
    name: str,
    values: np.ndarray,
    family: str,
    places: list[tuple[str, int]],
    *,
    instead: str = "",
) -> None:
    """Refuses numbers that the family is not of."""
    kind = KINDS[family]
    bad = np.isinf(values)
    if kind == "count":
        bad |= (values < 0) | (values != np.floor(values)) & ~np.isnan(values)
    elif kind == "positive":
        bad |= values <= 0
    if bad.any():
        place = _first(places, bad)
        raise ValueError(
            f"{place}, column {name}: {values[int(bad.argmax())]:g} is no "
            f"{_NOUNS[kind]}, which {family} needs: mend it or leave it empty{instead}"
        )
    if kind == "positive" and (are_tiny := values < np.finfo(np.float32).tiny).any():
        raise ValueError(
            f"{_first(places, are_tiny)}, column {name}: "
            f"{values[int(are_tiny.argmax())]:g} is less than float32 holds: "
            "scale the column"
        )
    if kind == "count" and (are_large := values > _MOST_COUNT).any():
        raise ValueError(
            f"{_first(places, are_large)}, column {name}: "
            f"{values[int(are_large.argmax())]:.0f} is a count that float32 rounds: "
            f"say {name}:skip (--columns) if it names its row, or {name}:normal"
        )
