"""Image files in a folder or a .zip: which there are, of which split and class.

Nothing is unpacked to the disk: what a .zip holds is read from it, so that a name in it
is a name and no place.
"""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias, TypeVar

from vae_jax.data import files, formats, image_pixels

PathLike: TypeAlias = str | os.PathLike[str]
T = TypeVar("T")
S = TypeVar("S")

MAX_BYTES = 1 << 28
"""The most bytes of one image file: 256 MiB."""

_BLOCK = 256  # files whose results wait for their turn at once
_SPLIT_OF = {
    name: split for split, names in files.SPLIT_NAMES.items() for name in names
}


class ImageFile(NamedTuple):
    """One file: its name below the source, folders of its split, and what reads it.

    Attributes:
        name: below the source.
        folders: that it lies in, of its split.
        read: its content; raises ValueError or OSError.
    """

    name: str
    folders: tuple[str, ...]
    read: Callable[[], bytes]


class Listing(NamedTuple):
    """The image files of a source, in the order of their names.

    Attributes:
        parts: by split; train alone where there is none.
        num_others: files that are no images, or of no split.
        sha256: of the names and contents.
    """

    parts: dict[str, list[ImageFile]]
    num_others: int
    sha256: str


@contextlib.contextmanager
def listed(path: PathLike) -> Iterator[Listing]:
    """The image files below a folder or in a .zip, readable inside the `with`.

    Folders named train, valid (validation, val) and test are splits where there is a
    train, at the top or in the one folder at the top; so are archives of these names,
    in a folder, or beside the train.zip that is given. The other folders are classes
    (`class_name`). Hidden files (a leading dot, __MACOSX) are passed over; files
    without the suffix of an image, and images outside the splits, are counted.

    Raises:
        FileNotFoundError: neither a folder nor a file.
        ValueError: a file that is no .zip, or no images.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"images:{path}: there is no folder or .zip {path}")
    with contextlib.ExitStack() as stack:
        archives = _archives(path)
        if archives:
            opened = {
                split: _in_archive(stack.enter_context(_zip(archive)), archive.name)
                for split, archive in archives.items()
            }
            seen = {split: _images(entries) for split, entries in opened.items()}
            num_others = sum(map(len, opened.values()))
            sha256 = _digest(
                (split, formats.file_digest(archives[split]))
                for split in sorted(archives)
            )
        else:
            entries = list(_in_folder(path, (), frozenset()))
            seen, num_others = {"": _images(entries)}, len(entries)
            sha256 = _contents_digest(seen[""])
        parts = _by_split(seen[""]) if "" in seen else seen
        parts = {split: files for split, files in parts.items() if files}
        if "train" not in parts:
            suffixes = " ".join(image_pixels.SUFFIXES)
            raise ValueError(
                f"{path}: holds no images to train on among {num_others} files: give a "
                f"folder or .zip of files that end in one of {suffixes}"
            )
        num_others -= sum(map(len, parts.values()))
        yield Listing(parts, num_others, sha256)


def class_names(parts: Mapping[str, Sequence[ImageFile]]) -> dict[str, list[str]]:
    """The class of each file by split: the folders it lies in, joined by slashes.

    Leading folders that all files of train lie in are left out, but for the last; of
    another split as many as leave it the classes of train, where that can be. A file in
    no folder has the class "".
    """
    train = _without(parts["train"], _num_shared(parts["train"]))
    names = {}
    for split, part in parts.items():
        depths = range(_num_shared(part), -1, -1)
        ways = [_without(part, depth) for depth in depths]
        names[split] = next((way for way in ways if {*way} <= {*train}), ways[0])
    return names


def _num_shared(part: Sequence[ImageFile]) -> int:
    """How many leading folders all files lie in, but for the last."""
    folders, shared = [file.folders for file in part], 0
    while all(len(f) > shared + 1 for f in folders) and (
        len({f[shared] for f in folders}) == 1
    ):
        shared += 1
    return shared


def _without(part: Sequence[ImageFile], depth: int) -> list[str]:
    return ["/".join(file.folders[depth:]) for file in part]


def in_threads(
    function: Callable[[S], T],
    items: Sequence[S],
    take: Callable[[S, T], None],
    *,
    doing: str,
) -> None:
    """take(item, function(item)) of each item in its turn; function runs in threads.

    Pillow and hashlib let other threads run. Only a block of results waits at a time,
    so that memory does not grow with the number of items. On a terminal a bar shows how
    far it is. What either of them raises ends it, and its threads: an iterator that is
    left would keep them, and hang where they are cleared away by one of themselves.
    """
    from tqdm import tqdm

    pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="images")
    try:
        with tqdm(
            total=len(items), desc=doing, unit="image", disable=None, delay=1
        ) as bar:
            for start in range(0, len(items), _BLOCK):
                block = items[start : start + _BLOCK]
                futures = [pool.submit(function, item) for item in block]
                for item, future in zip(block, futures, strict=True):
                    take(item, future.result())
                    bar.update()
    finally:
        pool.shutdown(cancel_futures=True)


def _archives(path: Path) -> dict[str, Path]:
    """The archives of a source by split; a single one, of no split, goes by ""."""
    folder = path if path.is_dir() else path.parent
    single = folder / "train.zip" if path.is_dir() else path
    if path.is_dir() and ((path / "train").is_dir() or not single.is_file()):
        return {}
    named = _named(folder) if single.name == "train.zip" else {}
    return named if len(named) > 1 else {"": single}


def _named(folder: Path) -> dict[str, Path]:
    """The archives in a folder that are named like splits."""
    named = {split: folder / f"{name}.zip" for name, split in _SPLIT_OF.items()}
    return {split: path for split, path in named.items() if path.is_file()}


@contextlib.contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"{path}: neither a folder nor a whole .zip ({error}): give one of image "
            "files"
        ) from error
    with archive:
        yield archive


def _in_archive(archive: zipfile.ZipFile, of: str) -> list[ImageFile]:
    seen = []
    for info in archive.infolist():
        *folders, name = info.filename.replace("\\", "/").strip("/").split("/")
        if not info.is_dir() and not _is_hidden((*folders, name)):
            read = partial(_read_member, archive, info)
            seen.append(ImageFile(f"{of}/{info.filename}", tuple(folders), read))
    return seen


def _in_folder(
    folder: Path, below: tuple[str, ...], above: frozenset[str]
) -> Iterator[ImageFile]:
    """The files of a folder and those below; a link to one above is passed over."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_hidden((entry.name,)):
            continue
        path = folder / entry.name
        if entry.is_dir():
            yield from _in_folder(path, (*below, entry.name), above | {real})
        elif entry.is_file():
            name = "/".join((*below, entry.name))
            yield ImageFile(name, below, partial(_read_file, path))


def _is_hidden(names: Iterable[str]) -> bool:
    return any(name.startswith(".") or name == "__MACOSX" for name in names)


def _images(entries: Iterable[ImageFile]) -> list[ImageFile]:
    seen = [e for e in entries if e.name.lower().endswith(image_pixels.SUFFIXES)]
    return sorted(seen, key=lambda file: (file.folders, file.name))


def _by_split(seen: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Images by the folder of their split, which is taken off; else train alone."""
    tops = {file.folders[:1] for file in seen}
    for depth in range(2 if len(tops) == 1 else 1):
        parts: dict[str, list[ImageFile]] = {}
        for file in seen:
            top = file.folders[depth : depth + 1]
            split = _SPLIT_OF.get(top[0].lower()) if top else None
            if split is not None:
                below = file.folders[depth + 1 :]
                parts.setdefault(split, []).append(file._replace(folders=below))
        if "train" in parts:
            return parts
    return {"train": seen}


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return _bounded(file)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes that the archive says there are, at most, and their CRC-32 is right."""
    try:
        with archive.open(info) as file:
            return _bounded(file)
    except Exception as error:  # of damage, of a password, of another compression
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(reason) from error


def _bounded(file: IO[bytes]) -> bytes:
    content = formats.read_up_to(file, MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it holds more than the {MAX_BYTES} bytes that are read")
    return bytes(content)


def _digest(pieces: Iterable[tuple[str, str]]) -> str:
    sha256 = hashlib.sha256()
    for name, digest in pieces:
        sha256.update(f"{name}\0{digest}\0".encode(errors="surrogateescape"))
    return sha256.hexdigest()


def _contents_digest(seen: Sequence[ImageFile]) -> str:
    """sha256 of names and contents; a file that cannot be read has no content."""

    digests: list[tuple[str, str]] = []

    def of_content(file: ImageFile) -> str:
        with contextlib.suppress(ValueError, OSError):
            return hashlib.sha256(file.read()).hexdigest()
        return ""

    def take(file: ImageFile, digest: str) -> None:
        digests.append((file.name, digest))

    in_threads(of_content, seen, take, doing="looking")
    return _digest(digests)
