"""Data sets by name: raw arrays in three splits, and the scale that they are on."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from vae_jax.data import files, formats, originals

PathLike: TypeAlias = str | os.PathLike[str]

SPLITS = ("train", "valid", "test")
MISSING = ("refuse", "nan")


class Source(NamedTuple):
    """A data set as it was stored; the value of an entry is (raw + offset) / divisor.

    Splits are [N, *X] of one X, uint8 or float32, finite but for NaN where it marks a
    missing entry; valid and test may have no rows. Images are [N, H, W], or
    [N, H, W, C] with C > 1 channels. Labels are int32 [N] by the name of their split.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    labels: dict[str, np.ndarray]
    offset: float
    divisor: float
    origin: str  # where the data came from, the same on every machine


def load(
    name: str,
    *,
    data_dir: PathLike | None = None,
    valid_size: int | None = None,
    missing: str = "refuse",
) -> Source:
    """Loads a data set by name.

    `digits` (embedded), `mnist`, `fashion_mnist`, `binarized_mnist` and `frey_face`
    (original files from `data_dir`, else fetched once into the user's cache),
    `npz:PATH` (arrays train and optionally valid, test, train_labels, valid_labels,
    test_labels) and `tfds:NAME` (TensorFlow Datasets). The validation split is the
    last `valid_size` training rows where the source does not fix it: 10,000 of MNIST
    and Fashion-MNIST, none of an npz file, a tenth of a TensorFlow data set. With
    `valid_size` 0 all training rows train. Integers of npz and tfds are shades from 0
    to 255, or zeros and ones; floats are the values themselves. NaN is refused, or with
    `missing` "nan" taken for a missing entry.

    Raises:
        ValueError: an unknown name, data that is not what it should be (each with the
            file, split or row and the fix), `valid_size` where the splits are fixed, an
            unknown `missing`.
        FileNotFoundError: data that is neither there nor to be fetched, in under 5 s.

    Examples:
        >>> source = load("digits")
        >>> source.train.shape, source.test.shape, source.divisor
        ((1000, 8, 8), (447, 8, 8), 16.0)
    """
    kind, _, rest = name.partition(":")
    if kind not in _REGISTRY or bool(rest) != (kind in ("npz", "tfds")):
        known = ", ".join(_REGISTRY).replace("npz", "npz:PATH")
        known = known.replace("tfds", "tfds:NAME")
        raise ValueError(f"unknown data set {name!r}: choose one of {known}")
    if valid_size is not None and valid_size < 0:
        raise ValueError(f"valid_size={valid_size} is negative")
    if missing not in MISSING:
        raise ValueError(f"missing={missing!r}: choose one of {', '.join(MISSING)}")
    source = _REGISTRY[kind](name, data_dir, valid_size)
    if missing == "refuse":
        _refuse_nan(source)
    return source


def load_rows(path: PathLike) -> Source:
    """Rows of an .npz file that need be no data set: all of them are test rows.

    The array named test, or the only one; its labels, if any, have its name with
    _labels behind it. Everything is read as `npz:PATH` reads it. NaN passes.

    Raises:
        ValueError: as `load`; no rows, or several arrays and none named test.
        FileNotFoundError: there is no such file.
    """
    path = Path(path).expanduser()
    stored = _stored(path)
    names = [name for name in stored if not name.endswith("_labels")]
    if "test" not in names and len(names) != 1:
        raise ValueError(
            f"{path}: it holds {', '.join(sorted(names)) or 'no rows'}: name the array "
            "of rows test, or save it alone"
        )
    name = "test" if "test" in names else names[0]
    rows = _normal(f"{path}: {name}", stored[name])
    if not rows.size:
        raise ValueError(f"{path}: {name} of shape {rows.shape} holds no rows")
    labels, known = {}, stored.get(f"{name}_labels")
    if known is not None:
        labels["test"] = _labels(str(path), name, known, len(rows))
    splits = {split: stored[split] for split in SPLITS if split in stored}
    return Source(
        name=name,
        train=rows[:0],
        valid=rows[:0],
        test=rows,
        labels=labels,
        offset=0.0,
        divisor=image_divisor(str(path), splits | {name: stored[name]}),
        origin=_origin(path),
    )


def checked(
    name: str,
    arrays: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    *,
    offset: float,
    divisor: float,
    origin: str,
) -> Source:
    """A Source of arrays that were checked: every source passes here.

    Booleans and integers in 0..255 become uint8, floats float32; a single trailing
    channel [N, H, W, 1] is dropped; splits that are not given get no rows. NaN passes
    here and is judged by `load`.

    Raises:
        ValueError: other dtypes, no training rows, no event axes, splits of different
            shapes or dtypes, an infinite entry (split and row), labels that are not one
            integer a row.
    """
    splits = {
        split: _normal(f"{name}: {split}", array) for split, array in arrays.items()
    }
    train = splits["train"]
    if not train.size:
        raise ValueError(
            f"{name}: train has shape {train.shape}: give at least one row with at "
            "least one entry"
        )
    for split in SPLITS:
        array = splits.setdefault(split, np.zeros((0, *train.shape[1:]), train.dtype))
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
        valid=splits["valid"],
        test=splits["test"],
        labels={
            split: _labels(name, split, array, len(splits[split]))
            for split, array in labels.items()
        },
        offset=offset,
        divisor=divisor,
        origin=origin,
    )


def missing_entries(array: np.ndarray) -> np.ndarray:
    """Where entries [N, *X] are missing: where they are NaN, in bytes nowhere."""
    if array.dtype.kind != "f":
        return np.zeros(array.shape, bool)
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


def file_digest(path: PathLike) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def held_out(
    name: str,
    arrays: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    *,
    valid_size: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Splits the last `valid_size` training rows, and their labels, off as valid.

    Raises:
        ValueError: fewer training rows than that, or none left.
    """
    num_rows = len(arrays["train"])
    if not 0 <= valid_size < max(num_rows, 1):
        raise ValueError(
            f"{name}: valid_size={valid_size} leaves none of {num_rows} training rows"
        )
    rest = num_rows - valid_size

    def split(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "train" not in named:
            return dict(named)
        train = named["train"]
        return {**named, "train": train[:rest], "valid": train[rest:]}

    return split(arrays), split(labels)


def image_divisor(name: str, arrays: Mapping[str, np.ndarray]) -> float:
    """The divisor to [0, 1] of stored images: 255 for 8 bits, 1 for zeros and ones.

    Floats are taken as they are.

    Raises:
        ValueError: integers that are neither, as no value of a split reaches half of
            255.
    """
    integers = all(array.dtype.kind in "ui" for array in arrays.values())
    if not integers or not any((array > 1).any() for array in arrays.values()):
        return 1.0
    for split, array in arrays.items():
        if array.size and 0 < array.max() < 128:
            raise ValueError(
                f"{name}: {split} holds integers up to {array.max()}, which are taken "
                "for shades from 0 to 255: store floats, in [0, 1] if they are shades"
            )
    return 255.0


def is_own(name: str) -> bool:
    """Whether a data set is the user's own: npz:PATH or tfds:NAME.

    The protocols of the others, how they are split and binarized, are published.
    """
    return ":" in name


def refuse_valid_size(name: str, valid_size: int | None) -> None:
    """Raises ValueError where a source that fixes its splits is given a valid_size."""
    if valid_size is not None:
        raise ValueError(
            f"{name}: valid_size={valid_size}, but this source fixes its splits: "
            "leave valid_size out"
        )


def _normal(where: str, array: np.ndarray) -> np.ndarray:
    """uint8 or finite float32, without a single trailing channel."""
    kind = array.dtype.kind
    if kind not in "buif":
        raise ValueError(
            f"{where} is {array.dtype}: store bool, float, or integers in 0..255"
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
        array = array.astype(np.float32 if kind == "f" else np.uint8, order="C")
    if kind == "f" and (row := _first_row(np.isinf(array))) is not None:
        raise ValueError(f"{where} row {row} holds infinity: remove the row or mend it")
    return array


def _refuse_nan(source: Source) -> None:
    for split in SPLITS:
        row = _first_row(missing_entries(getattr(source, split)))
        if row is not None:
            raise ValueError(
                f"{source.name}: {split} row {row} holds NaN: remove the row, mend it, "
                "or take NaN for a missing entry (missing=nan)"
            )


def _first_row(bad: np.ndarray) -> int | None:
    """The first row that holds a bad entry, if any does."""
    return int(bad.reshape(len(bad), -1).any(1).argmax()) if bad.any() else None


def _labels(name: str, split: str, array: np.ndarray, num_rows: int) -> np.ndarray:
    if array.shape != (num_rows,) or array.dtype.kind not in "bui":
        raise ValueError(
            f"{name}: {split} labels are {array.dtype} of shape {array.shape}: give "
            f"one integer for each of the {num_rows} rows"
        )
    return array.astype(np.int32)


def _digits(name: str, data_dir: PathLike | None, valid_size: int | None) -> Source:
    del data_dir
    refuse_valid_size(name, valid_size)
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


def _idx(name: str, data_dir: PathLike | None, valid_size: int | None) -> Source:
    train, train_labels, test, test_labels = files.read_all(
        name, originals.FILES[name], data_dir=data_dir
    )
    arrays, labels = held_out(
        name,
        {"train": train, "test": test},
        {"train": train_labels, "test": test_labels},
        valid_size=10_000 if valid_size is None else valid_size,
    )
    origin = originals.ORIGINS[name]
    return checked(name, arrays, labels, offset=0.0, divisor=255.0, origin=origin)


def _binarized(name: str, data_dir: PathLike | None, valid_size: int | None) -> Source:
    refuse_valid_size(name, valid_size)
    rows = files.read_all(name, originals.FILES[name], data_dir=data_dir)
    images = [array.reshape(-1, 28, 28) for array in rows]
    return checked(
        name,
        dict(zip(SPLITS, images, strict=True)),
        {},
        offset=0.0,
        divisor=1.0,
        origin=originals.ORIGINS[name],
    )


def _frey_face(name: str, data_dir: PathLike | None, valid_size: int | None) -> Source:
    refuse_valid_size(name, valid_size)
    (columns,) = files.read_all(name, originals.FILES[name], data_dir=data_dir)
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


def _npz(name: str, data_dir: PathLike | None, valid_size: int | None) -> Source:
    del data_dir
    path = Path(name.partition(":")[2]).expanduser()
    stored = _stored(path)
    if "train" not in stored:
        raise ValueError(
            f"{path}: no array named train among {sorted(stored)}: save it with "
            "numpy.savez(path, train=...)"
        )
    arrays = {split: stored[split] for split in SPLITS if split in stored}
    labels = {
        split: stored[f"{split}_labels"]
        for split in SPLITS
        if f"{split}_labels" in stored
    }
    if missing := set(labels) - set(arrays):
        raise ValueError(f"{path}: labels without rows for {sorted(missing)}")
    divisor = image_divisor(name, arrays)
    if "valid" in arrays:
        refuse_valid_size(name, valid_size)
    elif valid_size:
        arrays, labels = held_out(name, arrays, labels, valid_size=valid_size)
    origin = _origin(path)
    return checked(name, arrays, labels, offset=0.0, divisor=divisor, origin=origin)


def _stored(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return formats.read_npz(path)


def _origin(path: Path) -> str:
    return f"npz file {path.name}, sha256 {file_digest(path)}"


def _tfds(name: str, data_dir: PathLike | None, valid_size: int | None) -> Source:
    from vae_jax.data import tfds_arrays

    prepared = tfds_arrays.read(name.partition(":")[2], data_dir=data_dir)
    arrays, labels = prepared.arrays, prepared.labels
    divisor = image_divisor(name, arrays)
    if "valid" in arrays:
        refuse_valid_size(name, valid_size)
    else:
        size = len(arrays["train"]) // 10 if valid_size is None else valid_size
        arrays, labels = held_out(name, arrays, labels, valid_size=size)
    return checked(
        name,
        arrays,
        labels,
        offset=0.0,
        divisor=divisor,
        origin=f"TensorFlow Datasets {prepared.full_name}",
    )


_REGISTRY: dict[str, Callable[[str, PathLike | None, int | None], Source]] = {
    "digits": _digits,
    "mnist": _idx,
    "fashion_mnist": _idx,
    "binarized_mnist": _binarized,
    "frey_face": _frey_face,
    "npz": _npz,
    "tfds": _tfds,
}
