"""Data sets by name: raw arrays in three splits, and the scale that they are on."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np

from vae_jax.data import csv_tables, files, formats, originals, ranges, splits

PathLike: TypeAlias = str | os.PathLike[str]

SPLITS = ("train", "valid", "test")
MISSING = ("refuse", "nan")
CHANNELS = ("auto", "gray", "color")


class Source(NamedTuple):
    """A data set as it was stored; the value of an entry is (raw + offset) / divisor.

    Splits are [N, *X] of one X, uint8 or float32, finite but for NaN where it marks a
    missing entry; valid and test may have no rows. Images are [N, H, W], or
    [N, H, W, C] with C > 1 channels. Labels are int32 [N] by the name of their split.

    Attributes:
        name: that `load` knows it by.
        train: rows to fit.
        valid: rows to choose by.
        test: rows to report on.
        labels: of a split's rows, where it has any.
        offset: added to a stored entry.
        divisor: of the sum.
        origin: where the data came from, the same on every machine.
        classes: names of labels 0, 1, ..., where they have any.
        columns: of a table, all of those in its file; those that x is made of are
            `csv_tables.observed`.
        contexts: by split, what x may be given: [N, C], as stored and not checked.
        context_names: of the C entries, where they have any.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    labels: dict[str, np.ndarray]
    offset: float
    divisor: float
    origin: str
    classes: tuple[str, ...] = ()
    columns: tuple[csv_tables.Column, ...] = ()
    contexts: Mapping[str, np.ndarray] = MappingProxyType({})
    context_names: tuple[str, ...] = ()


class _Asked(NamedTuple):
    """What `load` was asked for, beside the name.

    Attributes:
        data_dir: of original files.
        valid_size: rows split off as valid; None: the custom.
        data_seed: of the order and splits of images.
        image_size: that they are cut and scaled to.
        channels: auto, gray or color.
        skip_broken: whether to leave out what cannot be read.
        data_range: what stored numbers stand for.
        columns: of a table, the families that are said, by name.
    """

    data_dir: PathLike | None
    valid_size: int | None
    data_seed: int
    image_size: int | None
    channels: str
    skip_broken: bool
    data_range: str
    columns: Mapping[str, str]


class _Row(NamedTuple):
    """A kind of data set: what reads it, and which arguments of `load` it heeds.

    Attributes:
        read: name, what was asked -> the source.
        heeds: arguments of `load` that it reads.
        rest: what follows the kind and a colon in a name.
    """

    read: Callable[[str, _Asked], Source]
    heeds: tuple[str, ...] = ()
    rest: str = ""


def load(
    name: str,
    *,
    data_dir: PathLike | None = None,
    valid_size: int | None = None,
    missing: str = "refuse",
    data_seed: int = 0,
    image_size: int | None = None,
    channels: str = "auto",
    skip_broken: bool = False,
    data_range: str = "auto",
    columns: Mapping[str, str] = MappingProxyType({}),
) -> Source:
    """Loads a data set by name.

    `digits` and `photos` (embedded), `sprites`, `sprites:64` and `sprites:color`
    (computed from their factors: `sprites.GRIDS`; labels are shapes), `mnist`,
    `fashion_mnist`, `binarized_mnist` and `frey_face` (original files from `data_dir`,
    else fetched once into the user's cache), `images:PATH` (a folder or .zip of image
    files), `csv:PATH` (a table, or a folder of train.csv and optionally valid.csv,
    test.csv), `npz:PATH` (arrays train and optionally valid, test, train_labels,
    valid_labels, test_labels, train_context [N, C] and so on) and `tfds:NAME`
    (TensorFlow Datasets). The validation split is the last `valid_size` training rows
    where the source does not fix it: 10,000 of MNIST and Fashion-MNIST, none of an npz
    file, a tenth of a TensorFlow data set, of images and of sprites. With `valid_size`
    0 all training rows train. What numbers of npz and tfds stand for is said by
    `data_range`, or found by `ranges.understand`. NaN is refused, or with `missing`
    "nan" taken for a missing entry.

    Images of `images:PATH` are uint8, [N, H, W] if all files are gray and else
    [N, H, W, 3], or as `channels` says; with an `image_size` the square in their middle
    is scaled to [image_size, image_size]. They are decoded once and memory-mapped
    (`image_arrays.read`), in an order drawn by `data_seed`. Folders or archives of the
    names train, valid (validation, val) and test are the splits; where there is neither
    valid nor test, the last tenth is test, and the tenth of the rest before it valid.
    So too of a table's rows, in an order drawn by `data_seed`; `columns` says of what
    family its columns are, by name, where `csv_tables.read` is not to guess. An npz
    file of which any is said holds a table too, with the columns x0, x1, ...
    A file that cannot be read is refused, or left out with `skip_broken`, which warns.

    Raises:
        ValueError: an unknown name, data that is not what it should be (each with the
            file, split or row and the fix), `valid_size` where the splits are fixed, an
            unknown `missing`, `channels` or `data_range`, an argument that says nothing
            to this source.
        FileNotFoundError: data that is neither there nor to be fetched, in under 5 s.

    Examples:
        >>> source = load("digits")
        >>> source.train.shape, source.test.shape, source.divisor
        ((1000, 8, 8), (447, 8, 8), 16.0)
    """
    kind, _, rest = name.partition(":")
    row = _REGISTRY.get(name, _REGISTRY.get(kind))
    if row is None or bool(rest and name not in _REGISTRY) != bool(row.rest):
        known = (f"{key}:{row.rest}".rstrip(":") for key, row in _REGISTRY.items())
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(known)}")
    if valid_size is not None and valid_size < 0:
        raise ValueError(f"valid_size={valid_size} is negative")
    for argument, value, choices in (
        ("missing", missing, MISSING),
        ("channels", channels, CHANNELS),
    ):
        if value not in choices:
            choices = ", ".join(choices)
            raise ValueError(f"{argument}={value!r}: choose one of {choices}")
    asked = _Asked(
        data_dir,
        valid_size,
        data_seed,
        image_size,
        channels,
        skip_broken,
        data_range,
        columns,
    )
    _refuse_unheeded(name, asked, row.heeds)
    source = row.read(name, asked)
    if missing == "refuse":
        _refuse_nan(source)
    return source


def checked(
    name: str,
    arrays: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    *,
    offset: float,
    divisor: float,
    origin: str,
    classes: tuple[str, ...] = (),
) -> Source:
    """A Source of arrays that were checked: every source passes here.

    Booleans and integers in 0..255 become uint8, floats float32; a single trailing
    channel [N, H, W, 1] is dropped; splits that are not given get no rows. NaN passes
    here and is judged by `load`. Arrays that need no change are not copied, so that
    what is memory-mapped stays on the disk.

    Raises:
        ValueError: other dtypes, no training rows, no event axes, splits of different
            shapes or dtypes, an infinite entry (split and row), labels that are not one
            integer a row.
    """
    by_split = {
        split: ranges.stored(f"{name}: {split}", array)
        for split, array in arrays.items()
    }
    train = by_split["train"]
    if not train.size:
        raise ValueError(
            f"{name}: train has shape {train.shape}: give at least one row with at "
            "least one entry"
        )
    for split in SPLITS:
        array = by_split.setdefault(split, np.zeros((0, *train.shape[1:]), train.dtype))
        if array.shape[1:] != train.shape[1:]:
            raise ValueError(
                f"{name}: rows of {split} have shape {array.shape[1:]}, rows of train "
                f"{train.shape[1:]}: reshape them to one shape"
            )
        if array.dtype != train.dtype:
            raise ValueError(
                f"{name}: {split} is {array.dtype}, train is {train.dtype} (uint8 "
                "stands for integers): store all splits in one dtype"
            )
    return Source(
        name=name,
        train=train,
        valid=by_split["valid"],
        test=by_split["test"],
        labels={
            split: labels_of(name, split, array, len(by_split[split]))
            for split, array in labels.items()
        },
        offset=offset,
        divisor=divisor,
        origin=origin,
        classes=classes,
    )


def missing_entries(array: np.ndarray) -> np.ndarray:
    """Where entries [N, *X] are missing: where they are NaN, in bytes nowhere.

    Not to be written to: for bytes it is one False that takes no memory.
    """
    if array.dtype.kind != "f":
        return np.broadcast_to(np.False_, array.shape)
    return np.isnan(array)


def digest(source: Source) -> str:
    """sha256 of the rows of all splits and of their scale, whatever file held them.

    Labels are left out: they may be added to a file after a model was trained on it.
    """
    sha256 = hashlib.sha256(repr((source.offset, source.divisor)).encode())
    for split in SPLITS:
        array = np.ascontiguousarray(getattr(source, split))
        sha256.update(f"{split} {array.dtype} {array.shape}".encode())
        sha256.update(array.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


def keeps_values(name: str) -> bool:
    """Whether values stay as they are where no binarization is asked for.

    So it is of the user's own data (images:PATH, npz:PATH, tfds:NAME), of `photos` and
    of sprites, whose values are zeros and ones but for those of `sprites:color`.
    The others have a custom: they are published as zeros and ones.
    """
    return ":" in name or name in ("photos", "sprites")


def _refuse_unheeded(name: str, asked: _Asked, heeds: tuple[str, ...]) -> None:
    """Raises ValueError where an argument is given that the source does not read."""
    for argument, left_out in (
        ("image_size", None),
        ("channels", "auto"),
        ("skip_broken", False),
        ("data_range", "auto"),
        ("columns", {}),
    ):
        if getattr(asked, argument) != left_out and argument not in heeds:
            readers = [
                f"{k}:{r.rest}" for k, r in _REGISTRY.items() if argument in r.heeds
            ]
            raise ValueError(
                f"{name}: {argument}={getattr(asked, argument)} has no effect with "
                f"this source: leave it out, it is of {' and '.join(readers)}"
            )


def _refuse_nan(source: Source) -> None:
    for split in SPLITS:
        row = ranges.first_row(missing_entries(getattr(source, split)))
        if row is not None:
            raise ValueError(
                f"{source.name}: {split} row {row} holds NaN: remove the row, mend it, "
                "or take NaN for a missing entry (missing=nan)"
            )


def labels_of(name: str, split: str, array: np.ndarray, num_rows: int) -> np.ndarray:
    """Labels int32 [N] of a split's rows.

    Raises:
        ValueError: unless they are one integer a row, of at most 32 bits.
    """
    if array.shape != (num_rows,) or array.dtype.kind not in "bui":
        raise ValueError(
            f"{name}: {split} labels are {array.dtype} of shape {array.shape}: give "
            f"one integer for each of the {num_rows} rows"
        )
    labels = array.astype(np.int32)
    if (labels != array).any():
        raise ValueError(
            f"{name}: {split} label {array[labels != array][0]} does not fit into 32 "
            "bits: number the classes from 0 on"
        )
    return labels


def _digits(name: str, asked: _Asked) -> Source:
    splits.refuse_valid_size(name, asked.valid_size)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = {"train": slice(1000), "valid": slice(1000, 1350), "test": slice(1350, None)}
    return checked(
        name,
        {split: bunch.images[at].astype(np.uint8) for split, at in rows.items()},  # pyright: ignore[reportAttributeAccessIssue]
        {split: bunch.target[at] for split, at in rows.items()},  # pyright: ignore[reportAttributeAccessIssue]
        offset=0.0,
        divisor=16.0,
        origin="scikit-learn load_digits, rows 0-999, 1000-1349, 1350-1796",
    )


def _idx(name: str, asked: _Asked) -> Source:
    train, train_labels, test, test_labels = files.read_all(
        name, originals.FILES[name], data_dir=asked.data_dir
    )
    arrays, labels = splits.held_out(
        name,
        {"train": train, "test": test},
        {"train": train_labels, "test": test_labels},
        valid_size=10_000 if asked.valid_size is None else asked.valid_size,
    )
    origin = originals.ORIGINS[name]
    return checked(name, arrays, labels, offset=0.0, divisor=255.0, origin=origin)


def _binarized(name: str, asked: _Asked) -> Source:
    splits.refuse_valid_size(name, asked.valid_size)
    rows = files.read_all(name, originals.FILES[name], data_dir=asked.data_dir)
    images = [array.reshape(-1, 28, 28) for array in rows]
    return checked(
        name,
        dict(zip(SPLITS, images, strict=True)),
        {},
        offset=0.0,
        divisor=1.0,
        origin=originals.ORIGINS[name],
    )


def _frey_face(name: str, asked: _Asked) -> Source:
    splits.refuse_valid_size(name, asked.valid_size)
    (columns,) = files.read_all(name, originals.FILES[name], data_dir=asked.data_dir)
    frames = columns.T.reshape(1965, 28, 20)
    frames = frames[np.random.default_rng(0).permutation(1965)]
    return checked(
        name,
        {"train": frames[:1565], "test": frames[1565:]},
        {},
        offset=0.5,
        divisor=256.0,
        origin=originals.ORIGINS[name],
    )


def _npz(name: str, asked: _Asked) -> Source:
    path = Path(name.partition(":")[2]).expanduser()
    stored = arrays_of(path)
    if "train" not in stored:
        raise ValueError(
            f"{path}: no array named train among {sorted(stored)}: save it with "
            "numpy.savez(path, train=...)"
        )
    arrays = {split: stored[split] for split in SPLITS if split in stored}
    labels, contexts = (
        {s: stored[f"{s}_{what}"] for s in SPLITS if f"{s}_{what}" in stored}
        for what in ("labels", "context")
    )
    if missing := (labels.keys() | contexts.keys()) - arrays.keys():
        raise ValueError(f"{path}: labels or context of no rows: {sorted(missing)}")
    if asked.columns:
        table = csv_tables.of_arrays(str(path), arrays, asked.columns)
        beside = {"labels": labels, "contexts": contexts}
        named = {kind: of for kind, of in beside.items() if not getattr(table, kind)}
        return _of_table(name, table._replace(**named), path, asked)
    arrays, divisor = ranges.understand(name, arrays, data_range=asked.data_range)
    if "valid" in arrays:
        splits.refuse_valid_size(name, asked.valid_size)
    elif asked.valid_size:
        size = asked.valid_size
        _, contexts = splits.held_out(name, arrays, contexts, valid_size=size)
        arrays, labels = splits.held_out(name, arrays, labels, valid_size=size)
    origin = origin_of(path, asked.data_range)
    source = checked(name, arrays, labels, offset=0.0, divisor=divisor, origin=origin)
    return source._replace(contexts=contexts)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name.

    Raises:
        ValueError: as `formats.read_npz`.
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return formats.read_npz(path)


def origin_of(path: Path, data_range: str) -> str:
    """Where the arrays of an .npz file came from."""
    digest = formats.file_digest(path)
    return f"npz file {path.name}, sha256 {digest}{_said_range(data_range)}"


def _said_range(data_range: str) -> str:
    """What an origin says of a range; one that was found the divisor tells."""
    return "" if data_range == "auto" else f", data_range {data_range}"


def _tfds(name: str, asked: _Asked) -> Source:
    from vae_jax.data import tfds_arrays

    prepared = tfds_arrays.read(name.partition(":")[2], data_dir=asked.data_dir)
    arrays, divisor = ranges.understand(
        name, prepared.arrays, data_range=asked.data_range
    )
    labels = prepared.labels
    if "valid" in arrays:
        splits.refuse_valid_size(name, asked.valid_size)
    else:
        size = asked.valid_size
        size = len(arrays["train"]) // 10 if size is None else size
        arrays, labels = splits.held_out(name, arrays, labels, valid_size=size)
    return checked(
        name,
        arrays,
        labels,
        offset=0.0,
        divisor=divisor,
        origin=f"TensorFlow Datasets {prepared.full_name}"
        + _said_range(asked.data_range),
    )


def _images(name: str, asked: _Asked) -> Source:
    from vae_jax.data import image_arrays

    images = image_arrays.read(
        name.partition(":")[2],
        image_size=asked.image_size,
        channels=asked.channels,
        skip_broken=asked.skip_broken,
        data_seed=asked.data_seed,
    )
    arrays, labels, test_size = splits.with_test(
        name, images.arrays, images.labels, valid_size=asked.valid_size
    )
    origin = images.origin + (f", its last {test_size} test" if test_size else "")
    return checked(
        name,
        arrays,
        labels,
        offset=0.0,
        divisor=255.0,
        origin=origin,
        classes=images.classes,
    )


def _csv(name: str, asked: _Asked) -> Source:
    path = Path(name.partition(":")[2]).expanduser()
    return _of_table(name, csv_tables.read(path, asked.columns), path, asked)


def _of_table(name: str, table: csv_tables.Table, path: Path, asked: _Asked) -> Source:
    (arrays, labels), (_, contexts) = (
        splits.for_seed(
            name,
            table.arrays,
            beside,
            valid_size=asked.valid_size,
            data_seed=asked.data_seed,
        )
        for beside in (table.labels, table.contexts)
    )
    source = checked(
        name,
        arrays,
        labels,
        offset=0.0,
        divisor=1.0,
        origin=f"table {path.name}, rows in the order of data seed {asked.data_seed}",
        classes=table.classes,
    )
    return source._replace(
        columns=table.columns, contexts=contexts, context_names=table.context_names
    )


def _photos(name: str, asked: _Asked) -> Source:
    from vae_jax.data import photos

    splits.refuse_valid_size(name, asked.valid_size)
    arrays, labels = photos.patches()
    return checked(
        name,
        arrays,
        labels,
        offset=0.0,
        divisor=255.0,
        origin=photos.ORIGIN,
        classes=photos.NAMES,
    )


def _sprites(name: str, asked: _Asked) -> Source:
    from vae_jax.data import sprites

    images, factors = sprites.rows(name)
    tenth = len(images) // 10
    arrays, labels = splits.held_out(
        name,
        {"train": images},
        {"train": factors[:, list(sprites.GRIDS[name].sizes).index("shape")]},
        valid_size=tenth if asked.valid_size is None else asked.valid_size,
        test_size=tenth,
    )
    return checked(
        name,
        arrays,
        labels,
        offset=0.0,
        divisor=255.0 if images.ndim == 4 else 1.0,
        origin=f"{name} of vae_jax, a grid of factors permuted by numpy default_rng(0)",
        classes=sprites.SHAPES,
    )


_REGISTRY: dict[str, _Row] = {
    "digits": _Row(_digits),
    "photos": _Row(_photos),
    **dict.fromkeys(("sprites", "sprites:64", "sprites:color"), _Row(_sprites)),
    "mnist": _Row(_idx),
    "fashion_mnist": _Row(_idx),
    "binarized_mnist": _Row(_binarized),
    "frey_face": _Row(_frey_face),
    "images": _Row(_images, ("image_size", "channels", "skip_broken"), rest="PATH"),
    "csv": _Row(_csv, ("columns",), rest="PATH"),
    "npz": _Row(_npz, ("data_range", "columns"), rest="PATH"),
    "tfds": _Row(_tfds, ("data_range",), rest="NAME"),
}
