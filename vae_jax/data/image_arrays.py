"""Image files as arrays: decoded once, kept in the user's cache, memory-mapped."""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import PIL

from vae_jax.data import files, image_files, image_pixels

PathLike: TypeAlias = str | os.PathLike[str]
T = TypeVar("T")

_CARD = "card.json"
_DARK = 32  # of 255: where 13 bits of 16 end, and few photographs do
_OF_ORDER = 2  # keeps its streams apart from those of binarization and of holes


class _Said(NamedTuple):
    """What images are made of files: with their contents, all that arrays depend on.

    Attributes:
        image_size: the sides of what is cut out and scaled; None: as stored.
        channels: auto, gray or color.
        skip_broken: whether files that cannot be read are left out.
        data_seed: of the order and the splits.
    """

    image_size: int | None
    channels: str
    skip_broken: bool
    data_seed: int


class _Job(NamedTuple):
    """Files that are being made into arrays.

    Attributes:
        where: the source, as errors name it.
        listing: its files.
        said: what is made of them.
        broken: what is wrong, by the file's name.
    """

    where: str
    listing: image_files.Listing
    said: _Said
    broken: dict[str, str]


class Images(NamedTuple):
    """Images [N, H, W] or [N, H, W, 3] by split, uint8 on the disk, and their labels.

    There are labels, int64 [N], where every file lies in the folder of a class and
    there are two classes or more; `classes` are their names.

    Attributes:
        arrays: by split.
        labels: by split.
        classes: names of labels 0, 1, ...
        origin: what they were made of.
    """

    arrays: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]
    origin: str


def read(
    path: PathLike,
    *,
    image_size: int | None = None,
    channels: str = "auto",
    skip_broken: bool = False,
    data_seed: int = 0,
) -> Images:
    """The images below a folder or in a .zip, as `image_files.listed` finds them.

    The files of each split are put into an order that `data_seed` draws, as their names
    sort by class, and decoded by `image_pixels.decode` in threads. The arrays are kept
    in the user's cache under a digest of the files' contents and of all that is said
    here, and read from there the next time: nothing of them is held in memory.

    Args:
        path: a folder or a .zip.
        image_size: the side that squares are scaled to; None leaves images as they are,
            which then have to be of one size.
        channels: `gray`, `color`, or `auto`, which is color if any file is.
        skip_broken: whether files that cannot be read are left out, with a warning that
            counts them.
        data_seed: of the order.

    Raises:
        FileNotFoundError: no such folder or .zip.
        ValueError: an image_size that is not positive; no images; a file that cannot be
            read, or images of two sizes without an `image_size`, with the file's name.
        OSError: a cache that cannot be written.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size} is not positive")
    path = Path(path).expanduser()
    said = _Said(image_size, channels, skip_broken, data_seed)
    with image_files.listed(path) as listing, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        key = "-".join(map(str, (listing.sha256[:32], *said)))
        folder = files.cache_dir("images") / f"{key}-pillow{PIL.__version__}"
        cached = _from_cache(folder)
        if cached is None:
            _keep(folder, _Job(str(path), listing, said, {}))
            cached = _from_cache(folder)
    if cached is None:
        raise OSError(f"{folder} does not hold what was written there: remove it")
    arrays, labels, card = cached
    num_files, broken = sum(map(len, listing.parts.values())), card["broken"]
    if broken:
        warnings.warn(
            f"images:{path}: {len(broken)} of {num_files} files cannot be read and are "
            f"left out, the first: {broken[0]}",
            stacklevel=2,
        )
    if card["brightest"] < _DARK:
        warnings.warn(
            f"images:{path}: no pixel to train on is above {card['brightest']} of 255. "
            "Of files of more than 8 bits the upper 8 of 16 are read: store values of "
            "fewer bits as npz:PATH",
            stacklevel=2,
        )
    color = "color" if arrays["train"].ndim == 4 else "gray"
    pieces = [
        f"{num_files} image files of {path.resolve().name}, sha256 {listing.sha256}",
        f"8 bits of {color}, transparent pixels on white",
        image_size and f"squares in the middle scaled to {image_size} by Lanczos",
        broken and f"{len(broken)} of them broken and left out",
        listing.num_others and f"other files not read: {listing.num_others}",
        f"in the order of data_seed {data_seed}",
    ]
    origin = "; ".join(filter(None, pieces))
    return Images(arrays, labels, tuple(card["classes"]), origin)


def _from_cache(
    folder: Path,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]] | None:
    """The arrays, labels and card of a folder in the cache; None if it is not whole."""
    try:
        card = json.loads((folder / _CARD).read_text())
        if "brightest" not in card:  # of an older version
            return None
        paths = {split: folder / f"{split}.npy" for split in card["splits"]}
        # As plain arrays, which go on being mapped, so that none knows the difference.
        arrays = {
            split: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            for split, path in paths.items()
        }
        labels = {
            split: np.load(folder / f"{split}_labels.npy", allow_pickle=False)
            for split in (card["splits"] if card["classes"] else ())
        }
    except (OSError, ValueError, EOFError, KeyError):
        return None
    return arrays, labels, card


def _keep(folder: Path, job: _Job) -> None:
    """Writes a folder under another name, then renames it: whole, or not there."""
    said, parts = job.said, job.listing.parts
    shape = _shape(job)
    decode = partial(
        image_pixels.decode, image_size=said.image_size, color=len(shape) == 3
    )
    names = image_files.class_names(parts)
    classes = sorted({name for of in names.values() for name in of})
    if len(classes) < 2 or "" in classes:
        classes = []
    number_of = {name: number for number, name in enumerate(classes)}
    brightest = 0
    part_folder = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part_folder.mkdir(parents=True, exist_ok=True)
        for number, split in enumerate(files.SPLIT_NAMES):
            if split not in parts:
                continue
            part = parts[split]
            generator = np.random.default_rng((said.data_seed, number, _OF_ORDER))
            order = generator.permutation(len(part))
            path = part_folder / f"{split}.npy"
            with path.open("wb") as sink:
                ordered = [part[i] for i in order]
                saved = _write(sink, job, ordered, shape, decode)
            if split == "train":
                written = np.load(path, mmap_mode="r", allow_pickle=False)
                brightest = int(written.max())
            if classes:
                of = np.array([number_of[names[split][i]] for i in order[saved]])
                np.save(part_folder / f"{split}_labels.npy", of, allow_pickle=False)
        card = {
            "splits": list(parts),
            "classes": classes,
            "broken": [f"{name}: {job.broken[name]}" for name in sorted(job.broken)],
            "brightest": brightest,
        }
        (part_folder / _CARD).write_text(json.dumps(card))
        if _from_cache(folder) is None:  # else another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            part_folder.rename(folder)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error}): make room there, or name another "
            "place for caches by XDG_CACHE_HOME"
        ) from error
    finally:
        shutil.rmtree(part_folder, ignore_errors=True)


def _shape(job: _Job) -> tuple[int, ...]:
    """[H, W] or [H, W, 3] of all images, from their headers where it is not said.

    Raises:
        ValueError: images of two sizes, or none that can be read.
    """
    said = job.said
    color = said.channels == "color"
    size = (said.image_size, said.image_size) if said.image_size else None
    if size is None or said.channels == "auto":
        every = [file for part in job.listing.parts.values() for file in part]
        seen: list[tuple[str, image_pixels.Header]] = []

        def take(file: image_files.ImageFile, header: image_pixels.Header) -> None:
            seen.append((file.name, header))

        _attempt(image_pixels.header, job, every, take, doing="looking")
        size = size or _one_size(job, seen)
        if said.channels == "auto":
            color = any(header.is_color for _, header in seen)
    return (*size, 3) if color else size


def _one_size(
    job: _Job, seen: Sequence[tuple[str, image_pixels.Header]]
) -> tuple[int, int]:
    first, (_, height, width) = seen[0]
    for name, header in seen:
        if (header.height, header.width) != (height, width):
            raise ValueError(
                f"{job.where}: {name} is {header.height} x {header.width}, {first} is "
                f"{height} x {width}: scale all to one size (image_size)"
            )
    return height, width


def _write(
    sink: IO[bytes],
    job: _Job,
    part: Sequence[image_files.ImageFile],
    shape: tuple[int, ...],
    decode: Callable[[bytes], np.ndarray],
) -> list[int]:
    """Writes an .npy of the images that can be read; which of the files these are.

    Raises:
        ValueError: none can.
    """

    def decode_checked(content: bytes) -> np.ndarray:
        pixels = decode(content)
        if pixels.shape != shape:
            raise ValueError(f"its pixels are {pixels.shape}, its header says {shape}")
        return pixels

    row_of = {file.name: row for row, file in enumerate(part)}
    saved = []

    def take(file: image_files.ImageFile, pixels: np.ndarray) -> None:
        sink.write(pixels.tobytes())
        saved.append(row_of[file.name])

    _write_header(sink, (len(part), *shape))
    _attempt(decode_checked, job, part, take, doing="decoding")
    sink.seek(0)
    _write_header(sink, (len(saved), *shape))
    return saved


def _write_header(sink: IO[bytes], shape: tuple[int, ...]) -> None:
    """The header of an .npy, of one length whatever the number of rows."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, header)


def _attempt(
    function: Callable[[bytes], T],
    job: _Job,
    part: Sequence[image_files.ImageFile],
    take: Callable[[image_files.ImageFile, T], None],
    *,
    doing: str,
) -> None:
    """take(file, function(content)) of each file that is not broken and left out.

    Raises:
        ValueError: a file that cannot be read where such are not left out; none can.
    """
    taken = 0

    def attempt(file: image_files.ImageFile) -> T | str:
        try:
            return function(file.read())
        except (ValueError, OSError) as error:
            return str(error)

    def judge(file: image_files.ImageFile, result: T | str) -> None:
        nonlocal taken
        if not isinstance(result, str):
            take(file, result)
            taken += 1
        elif job.said.skip_broken:
            job.broken[file.name] = result
        else:
            raise ValueError(
                f"{job.where}: {file.name}: {result}: mend or remove this image, or "
                "leave out what cannot be read (skip_broken)"
            )

    image_files.in_threads(attempt, part, judge, doing=doing)
    if not taken:
        first = part[0].name
        raise ValueError(
            f"{job.where}: none of {len(part)} files can be read, the first: {first}: "
            f"{job.broken[first]}"
        )
