"""Numeric arrays out of MATLAB files of version 5 to 7.

SciPy's reader allocates what a damaged header promises, and reads beyond its memory on
some damaged files (1.17.1: a segmentation fault, found by fuzzing). This one reads only
dense numeric arrays, and never more than the file holds.

The layout (MAT-File Format, MathWorks): a header of 128 bytes that ends in the byte
order, then elements: a type and a length of 4 bytes each and that many bytes, padded to
a multiple of eight unless compressed. A length of up to 4 may share one word with the
type, the content in the next. An array is an element made of elements: flags, lengths
of the axes, name, entries in Fortran order.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

_HEADER = 128  # bytes
_ARRAY, _COMPRESSED = 14, 15
_ENTRIES = {  # type of an element: how its entries are stored
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_CLASSES = {  # class of an array: what its entries mean; they may be stored smaller
    6: "f8",
    7: "f4",
    8: "i1",
    9: "u1",
    10: "i2",
    11: "u2",
    12: "i4",
    13: "u4",
    14: "i8",
    15: "u8",
}
_COMPLEX = 0x0800


def read(content: bytes | bytearray, variable: str, *, limit: int) -> np.ndarray:
    """One dense, real, numeric array of a file's content, in C order.

    Args:
        content: of the whole file.
        variable: its name.
        limit: the most bytes that a compressed element is unpacked to.

    Raises:
        ValueError: another format, truncated, a promise that the content does not keep,
            no such variable, or one that is not dense, real and numeric.
    """
    mark = bytes(content[_HEADER - 2 : _HEADER])
    if mark not in (b"IM", b"MI") or not content.startswith(b"MATLAB"):
        raise ValueError("it has not the header of a MATLAB 5 file")
    order = "<" if mark == b"IM" else ">"
    names = []
    for kind, element in _elements(memoryview(content)[_HEADER:], order):
        if kind == _COMPRESSED:
            kind, element = _uncompressed(element, order, limit)
        if kind != _ARRAY:
            continue
        parts = list(_elements(element, order))
        if len(parts) < 3:
            raise ValueError("an array has not its flags, axes and name")
        name = bytes(parts[2][1]).decode("latin1")
        if name == variable:
            return _array(parts, order)
        names.append(name)
    raise ValueError(f"no variable {variable!r}; it holds {sorted(names) or 'none'}")


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}2I", content, at)
        start, step = at + 8, -(-length // 8) * 8
        if kind >> 16:  # the small form
            kind, length, start, step = kind & 0xFFFF, kind >> 16, at + 4, 0
            if length > 4:
                raise ValueError(f"a small element promises {length} bytes, not 4")
        element = content[start : start + length]
        if len(element) < length:
            raise ValueError(
                f"truncated: an element promises {length} bytes, {len(element)} follow"
            )
        yield kind, element
        at += 8 + (length if kind == _COMPRESSED else step)


def _uncompressed(
    element: memoryview, order: str, limit: int
) -> tuple[int, memoryview]:
    unpacked = zlib.decompressobj().decompress(element, limit)
    first = next(_elements(memoryview(unpacked), order), None)
    if first is None:
        raise ValueError("a compressed element is empty")
    return first


def _array(parts: list[tuple[int, memoryview]], order: str) -> np.ndarray:
    (_, flags), (axes_kind, axes) = parts[:2]
    if len(flags) < 4 or axes_kind != 5 or len(axes) % 4:
        raise ValueError("an array's flags or axes are no integers of 4 bytes")
    (word,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(axes) // 4}i", axes)
    of_class = _CLASSES.get(word & 0xFF)
    if of_class is None or word & _COMPLEX or len(parts) != 4:
        raise ValueError("it is not numeric, real and dense")
    kind, entries = parts[3]
    if kind not in _ENTRIES:
        raise ValueError(f"entries of an unknown type {kind}")
    dtype = np.dtype(order + _ENTRIES[kind])
    promised = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(entries) != promised:
        raise ValueError(
            f"truncated: the axes {shape} promise {promised} bytes, {len(entries)} "
            "are there"
        )
    array = np.frombuffer(entries, dtype).reshape(shape, order="F")
    with np.errstate(invalid="ignore"):  # a double outside of its class's range
        return np.ascontiguousarray(array, np.dtype(of_class))
