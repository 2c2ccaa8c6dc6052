"""Readers of file formats: idx, amat and MATLAB 5, gzip or plain; and npz.

Every reader checks before it believes: a header's promise is compared with what the
file holds, memory grows with the content that is really there and never beyond
LIMIT, and whatever is wrong is a ValueError of one line that names the file. Gzip is
recognized by its first two bytes, not by the name, and checksums are those of the
unpacked content, since a recompressed file holds the same data.
"""

import contextlib
import gzip
import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeAlias, cast

import numpy as np

from vae_jax.data import matlab

PathLike: TypeAlias = str | os.PathLike[str]

LIMIT = 1 << 30
"""The most unpacked bytes that are read from one file: 1 GiB."""

_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_IDX_DTYPES = {
    0x08: "u1",
    0x09: "i1",
    0x0B: ">i2",
    0x0C: ">i4",
    0x0D: ">f4",
    0x0E: ">f8",
}


class _ObjectsError(ValueError):
    """An array of Python objects: whole, and refused all the same."""


def read_idx(path: PathLike, *, sha256: str | None = None) -> np.ndarray:
    """The array of an idx file (the format of MNIST), in native byte order.

    Two zero bytes, a type code, the number of axes, the lengths as big-endian 32-bit
    integers, then the entries in C order. Entries are read only as far as the header
    promises and the file holds, so that a false header allocates nothing.

    Raises:
        ValueError: not idx, truncated, longer than promised, or another sha256 (of the
            unpacked file) than the one given.
    """
    header, dtype, shape = b"", np.dtype("u1"), ()
    with _unpacked(path) as stream:
        header = stream.read(4)
        if len(header) < 4 or header[:2] != b"\0\0" or header[2] not in _IDX_DTYPES:
            raise ValueError(
                f"{path}: not an idx file: it starts with 0x{header.hex()}, not with "
                f"0x0000, a type code and a number of axes"
            )
        dtype, num_axes = np.dtype(_IDX_DTYPES[header[2]]), header[3]
        lengths = stream.read(4 * num_axes)
        if len(lengths) < 4 * num_axes:
            raise ValueError(f"{path}: truncated: it ends inside its idx header")
        header += lengths
        shape = tuple(np.frombuffer(lengths, ">u4").tolist())
        promised = math.prod(shape) * dtype.itemsize
        content = read_up_to(stream, min(promised, LIMIT) + 1)
    if len(content) < promised and len(content) <= LIMIT:
        raise ValueError(
            f"{path}: truncated: header promises {_axes(shape)} = {promised} bytes, "
            f"file holds {len(content)}"
        )
    _check_size(path, promised)
    if len(content) > promised:
        raise ValueError(
            f"{path}: too long: header promises {_axes(shape)} = {promised} bytes, "
            "file holds more"
        )
    _check_sha256(path, sha256, header, content)
    array = np.frombuffer(content, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_amat(path: PathLike, *, sha256: str | None = None) -> np.ndarray:
    """The rows [N, D] of a text file of zeros and ones, as uint8 in {0, 1}.

    One row a line, one digit a value, single spaces between: so every value stands at
    an even column, and the text is sliced as one array of bytes, which is 100 times as
    fast as parsing numbers. The slices are checked to the last byte.

    Raises:
        ValueError: another layout or another digit (with its line), unequal rows, or
            another sha256 (of the unpacked text) than the one given.
    """
    content = _whole(path)
    _check_text(path, content)
    _check_sha256(path, sha256, content)
    if not content.endswith(b"\n"):
        content += b"\n"
    width = content.index(b"\n") + 1
    text = np.frombuffer(content, np.uint8)
    if width % 2 or text.size % width:
        raise ValueError(
            f"{path}: truncated or not an amat file: {text.size} bytes are not rows "
            f"of {width} like its first, each digits with single spaces between"
        )
    text = text.reshape(-1, width)
    digits, spaces = text[:, ::2] - np.uint8(ord("0")), text[:, 1:-1:2]
    right = (digits <= 1).all(1) & (spaces == ord(" ")).all(1)
    right &= text[:, -1] == ord("\n")
    if not right.all():
        raise ValueError(
            f"{path}: line {int(right.argmin()) + 1} is not {(width) // 2} zeros and "
            "ones with single spaces between"
        )
    return digits


def read_mat(path: PathLike, variable: str, *, sha256: str | None = None) -> np.ndarray:
    """A numeric array out of a MATLAB file of version 5 to 7, in C order.

    The checksum is of the array's bytes in C order, not of the file, whose header
    carries the date on which it was written.

    Raises:
        ValueError: not such a file, no such variable, not numeric, or another sha256
            (of the array) than the one given.
    """
    content = _whole(path)
    try:
        array = matlab.read(content, variable, limit=LIMIT)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole MATLAB 5 file ({error})") from error
    _check_sha256(path, sha256, array.tobytes())
    return array


def read_npz(path: PathLike) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; pickled objects, which could run code, are refused.

    Raises:
        ValueError: no such archive, damaged, with pickled objects, or with a header
            that promises more than there is.
    """
    try:
        _check_promises(path)
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except _ObjectsError:
        raise
    except (
        *(ValueError, OSError, EOFError, KeyError, AttributeError, TypeError),
        *(MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error),
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: not a whole .npz of plain arrays ({reason}): save it again with "
            "numpy.savez(path, train=...), a table of text by way of numpy.loadtxt"
        ) from error


def file_digest(path: PathLike) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_up_to(stream: IO[bytes], limit: int) -> bytearray:
    """Up to `limit` bytes, in pieces: read(limit) may allocate all of it at once."""
    content = bytearray()
    while len(content) < limit:
        piece = stream.read(min(_CHUNK, limit - len(content)))
        if not piece:
            break
        content += piece
    return content


def _check_promises(path: PathLike) -> None:
    """Compares every array's header in an .npz with its size: NumPy allocates first.

    Raises:
        _ObjectsError: for an array of Python objects.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            if dtype.hasobject:
                raise _ObjectsError(
                    f"{path}: {member.filename.removesuffix('.npy')} is an array of "
                    "Python objects, which are not read, as they could run code: make "
                    "it one of numbers (rows of one length, NaN where a value is "
                    "missing) before it is saved"
                )
            promised = math.prod(shape) * dtype.itemsize
            if promised > member.file_size:
                raise ValueError(
                    f"{member.filename} promises {_axes(shape)} = {promised} bytes and "
                    f"holds {member.file_size}"
                )


@contextlib.contextmanager
def _unpacked(path: PathLike) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked if it is gzip; damaged gzip is a ValueError."""
    with Path(path).open("rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        try:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: truncated or damaged gzip file ({error})"
            ) from error


def _whole(path: PathLike) -> bytearray:
    """All that a file holds, unpacked."""
    with _unpacked(path) as stream:
        content = read_up_to(stream, LIMIT + 1)
    _check_size(path, len(content))
    return content


def _check_size(path: PathLike, num_bytes: int) -> None:
    if num_bytes > LIMIT:
        raise ValueError(f"{path}: holds more than the {LIMIT} bytes that are read")


def _check_text(path: PathLike, content: bytearray) -> None:
    if not content:
        raise ValueError(f"{path}: empty")
    if b"\n" not in content[: 1 << 20]:
        raise ValueError(f"{path}: not an amat file: no line ends in its first MiB")


def _check_sha256(path: PathLike, expected: str | None, *pieces: bytes | bytearray):
    if expected is None:
        return
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    if digest.hexdigest() != expected:
        raise ValueError(
            f"{path}: wrong checksum: expected sha256 {expected} of the unpacked "
            f"content, got {digest.hexdigest()}; put the original file there, or "
            "remove this one to have it fetched"
        )


def _axes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"
