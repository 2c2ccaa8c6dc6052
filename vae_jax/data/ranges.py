"""What stored numbers stand for: shades on a scale, or values as they are."""

from collections.abc import Mapping

import numpy as np

RANGES = ("auto", "unit", "byte", "word", "value")
"""Of --data_range: found from the numbers, or said."""

_TOPS = {"unit": 1, "byte": 255, "word": 65535}


def understand(
    name: str, arrays: Mapping[str, np.ndarray], *, data_range: str = "auto"
) -> tuple[dict[str, np.ndarray], float]:
    """Arrays [N, *X] by split and their divisor: entry / divisor is the value.

    `unit` are values in [0, 1], `byte` shades from 0 to 255, `word` shades from 0 to
    65535, each divided by the greatest of them, and `value` any numbers, as they are.
    `auto` takes floats for values as they are; integers for zeros and ones if there
    are no others, for bytes if every split reaches the upper half of 0 to 255, and
    16-bit unsigned ones for words if every split reaches the upper half of 0 to 65535.
    Integers beyond bytes become floats, which hold them exactly below 2^24.

    Raises:
        ValueError: an unknown `data_range`, numbers outside the one that is said, or,
            in auto, integers that may be on one scale or another: the message has the
            split, its greatest number and what settles it.
    """
    if data_range not in RANGES:
        raise ValueError(
            f"data_range={data_range!r}: choose one of {', '.join(RANGES)}"
        )
    said = {split: np.asarray(array) for split, array in arrays.items()}
    numeric = all(array.dtype.kind in "buif" for array in said.values())
    if not numeric:  # `sources.checked` says so, with the split
        return said, 1.0
    kind = _named(name, said) if data_range == "auto" else data_range
    if data_range in _TOPS:
        _refuse_outside(name, said, data_range)
    if kind == "word" or data_range == "value":
        said = {split: _as_floats(array) for split, array in said.items()}
    return said, float(_TOPS.get(kind, 1))


def stored(where: str, array: np.ndarray) -> np.ndarray:
    """Rows as they are kept: uint8 or float32, without a single trailing channel.

    Raises:
        ValueError: for another dtype, integers beyond bytes, a single axis, infinity
            or floats beyond float32.
    """
    kind = array.dtype.kind
    if kind not in "buif":
        raise ValueError(
            f"{where} is {array.dtype}: store bool, float, integers in 0..255 or "
            "16-bit words"
        )
    if array.ndim < 2:
        raise ValueError(
            f"{where} has shape {array.shape}: reshape it to [rows, ...], one example "
            "a row"
        )
    if kind in "ui" and array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(
            f"{where} holds integers from {array.min()} to {array.max()}: scale them "
            "to 0..255, or store floats"
        )
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    with np.errstate(over="ignore"):  # an overflow is found just below
        dtype = np.float32 if kind == "f" else np.uint8
        rows = array.astype(dtype, order="C", copy=False)
    if kind == "f" and (row := first_row(np.isinf(rows))) is not None:
        if np.isinf(array[row]).any():
            raise ValueError(
                f"{where} row {row} holds infinity: remove the row or mend it"
            )
        raise ValueError(
            f"{where} row {row} holds {np.abs(array[row]).max():g}, more than float32 "
            "does: scale the numbers"
        )
    return rows


def first_row(bad: np.ndarray) -> int | None:
    """The first row that holds a bad entry, if any does."""
    return int(bad.reshape(len(bad), -1).any(1).argmax()) if bad.any() else None


def _named(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """The range of numbers that nobody has named.

    Raises:
        ValueError: for integers that reach the upper half of no scale, or lie on none.
    """
    if any(array.dtype.kind == "f" for array in arrays.values()):
        return "value"
    tops = {s: int(array.max()) for s, array in arrays.items() if array.size}
    top = max(tops.values(), default=0)
    words = all(array.dtype == np.uint16 for array in arrays.values())
    kind = "unit" if top <= 1 else "word" if words and top > _TOPS["byte"] else "byte"
    for split, highest in tops.items():
        lowest = int(arrays[split].min())
        if lowest < 0 or highest > _TOPS[kind]:
            raise ValueError(
                f"{name}: {split} holds integers from {lowest} to {highest}: scale "
                "them to 0..255, or store floats, or say what they are "
                "(data_range=word or value)"
            )
        if kind != "unit" and 0 < highest <= _TOPS[kind] // 2:
            raise ValueError(
                f"{name}: {split} holds integers up to {highest}, which are taken for "
                f"shades from 0 to {_TOPS[kind]}: store floats, in [0, 1] if they are "
                "shades, or say what they are (data_range=byte, word or value)"
            )
    return kind


def _refuse_outside(
    name: str, arrays: Mapping[str, np.ndarray], data_range: str
) -> None:
    """Raises ValueError at a split with numbers outside a range that is said."""
    for split, array in arrays.items():
        if not array.size or (array.dtype.kind == "f" and np.isnan(array).all()):
            continue
        low, high = np.nanmin(array), np.nanmax(array)
        if low < 0 or high > _TOPS[data_range]:
            raise ValueError(
                f"{name}: {split} holds numbers from {low:g} to {high:g}, but "
                f"data_range={data_range} are those from 0 to {_TOPS[data_range]}: "
                "take another data_range, or scale them"
            )


def _as_floats(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind == "f" else array.astype(np.float32)
