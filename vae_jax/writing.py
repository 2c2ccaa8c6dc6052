"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that takes its name once it is whole and on the disk, or never.

    It is written beside its place as `.NAME.partial`, flushed to the disk and renamed,
    and so is the folder that lists it: a reader, a kill and a loss of power find the
    old file or the new one. Where writing fails nothing is left.

    Args:
        path: of the file, which is replaced if it is there.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)
    except OSError as error:  # of a full disk it names no file, else the partial one
        if error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
