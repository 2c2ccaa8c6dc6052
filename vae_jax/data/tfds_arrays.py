"""Image data sets of TensorFlow Datasets as arrays, read without TensorFlow.

Only a folder prepared as array_record can be read without TensorFlow, and preparing
one with no network stalls for minutes: so it is looked for first, and its addresses
are asked before anything is fetched. Images are decoded once; the arrays are kept.
"""

import contextlib
import hashlib
import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from vae_jax.data import files, formats

PathLike: TypeAlias = str | os.PathLike[str]


class Prepared(NamedTuple):
    """Decoded images [N, *X] and labels [N] by split, as stored.

    Attributes:
        full_name: name/config/version.
        arrays: the images.
        labels: of each, where there are any.
    """

    full_name: str
    arrays: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def read(name: str, *, data_dir: PathLike | None = None) -> Prepared:
    """Reads the features image and, if it is there, label of a prepared data set.

    It is looked for in `data_dir`, then in TensorFlow Datasets' own folder; where it
    is not prepared and TensorFlow is installed, it is prepared in the first of them.

    Raises:
        FileNotFoundError: not prepared, and it cannot be prepared here (no TensorFlow,
            or an address that does not answer).
        ValueError: unknown, prepared in another file format, no train split, no images,
            images of different shapes.
    """
    builder = _prepared(name, data_dir)
    if builder is None:
        _generator(name, data_dir)  # an unknown name is the first thing to say
        if importlib.util.find_spec("tensorflow") is None:
            raise FileNotFoundError(_how_to_prepare(name, data_dir))
        prepare(name, data_dir=data_dir)
        builder = _prepared(name, data_dir)
    if builder is None:
        raise FileNotFoundError(_how_to_prepare(name, data_dir))
    return _cached(builder)


def prepare(name: str, *, data_dir: PathLike | None = None) -> Path:
    """Downloads a data set and prepares it as array_record; returns its folder.

    Most data sets need TensorFlow for this (not for reading it afterwards). Each one
    unpacks its downloads in a folder of its own: in a shared one, two data sets whose
    files have the same names get each other's contents.

    Raises:
        FileNotFoundError: an address of the data set does not answer.
        ValueError: TensorFlow Datasets does not know the name.
    """
    import tensorflow_datasets as tfds

    builder = _generator(name, data_dir)
    for url in list(builder.url_infos or ())[:1]:
        if reason := files.silence(url):
            raise FileNotFoundError(
                f"{_how_to_prepare(name, data_dir)}; tried to fetch {url}: {reason}"
            )
    folder = Path(builder.data_dir)
    downloads = folder.parent / "downloads"
    builder.download_and_prepare(
        download_dir=str(downloads),
        download_config=tfds.download.DownloadConfig(
            extract_dir=str(downloads / "extracted"), try_download_gcs=False
        ),
    )
    return folder


def _generator(name: str, data_dir: PathLike | None) -> Any:
    """The builder that can prepare a data set, from TensorFlow Datasets' code."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    except ImportError as error:  # code that needs TensorFlow to be looked at
        raise FileNotFoundError(_how_to_prepare(name, data_dir)) from error
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"tfds:{name} is neither prepared nor known to TensorFlow Datasets "
            f"{tfds.__version__} ({reason})"
        ) from error


def _prepared(name: str, data_dir: PathLike | None) -> Any:
    """The builder of a prepared folder, from its files alone, or None."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    wrong_format = None
    for place in [Path(data_dir).expanduser(), None] if data_dir else [None]:
        try:
            return read_only_builder.builder_from_files(
                name, data_dir=place and str(place), file_format="array_record"
            )
        except tfds.core.DatasetNotFoundError:
            continue
        except ValueError as error:
            wrong_format = error
    if wrong_format is None:
        return None
    raise ValueError(
        f"tfds:{name} is prepared, but cannot be read without TensorFlow "
        f"({' '.join(str(wrong_format).split())}): prepare it as array_record into "
        "another folder and give that as data_dir"
    ) from wrong_format


def _cached(builder: Any) -> Prepared:
    """Decodes once; the key has the name, the version and a digest of the metadata."""
    full_name = builder.info.full_name
    info = (Path(builder.data_dir) / "dataset_info.json").read_bytes()
    key = f"{full_name.replace('/', '-')}-{hashlib.sha256(info).hexdigest()[:16]}"
    path = files.cache_dir("tfds") / f"{key}.npz"
    if path.is_file():
        try:
            return _unflattened(full_name, formats.read_npz(path))
        except ValueError:
            pass  # damaged: decode again
    prepared = _decoded(builder)
    _keep(path, prepared)
    return prepared


def _keep(path: Path, prepared: Prepared) -> None:
    """Writes the arrays under a temporary name, then renames: never a half file."""
    part = path.with_suffix(f".{os.getpid()}.part")
    stored = prepared.arrays | {
        f"{split}_labels": array for split, array in prepared.labels.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **stored)  # pyright: ignore[reportArgumentType]
        part.replace(path)
    except OSError as error:  # a full or read-only cache costs time, not the data
        warnings.warn(f"decoded images are not kept: {error}", stacklevel=2)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _unflattened(full_name: str, stored: dict[str, np.ndarray]) -> Prepared:
    ending = "_labels"
    return Prepared(
        full_name,
        {name: array for name, array in stored.items() if not name.endswith(ending)},
        {
            name.removesuffix(ending): array
            for name, array in stored.items()
            if name.endswith(ending)
        },
    )


def _decoded(builder: Any) -> Prepared:
    name, features = builder.info.full_name, builder.info.features
    if "image" not in features:
        raise ValueError(
            f"tfds:{name} has no feature image, only {sorted(features)}: save the "
            "arrays you want as an npz file and load npz:PATH"
        )
    arrays: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for split, names in files.SPLIT_NAMES.items():
        stored = next((known for known in names if known in builder.info.splits), None)
        if stored is None:
            continue
        examples = builder.as_data_source(split=stored)
        arrays[split], split_labels = _stacked(f"tfds:{name} {stored}", examples)
        if "label" in features and features["label"].shape == ():
            labels[split] = np.array(split_labels)
    if "train" not in arrays:
        raise ValueError(
            f"tfds:{name} has no split train, only {sorted(builder.info.splits)}"
        )
    return Prepared(name, arrays, labels)


def _stacked(where: str, examples: Any) -> tuple[np.ndarray, list[Any]]:
    """Decodes every example once, into one array of the first image's shape."""
    images, labels = None, []
    for row, example in enumerate(examples):
        image = np.asarray(example["image"])
        if images is None:
            images = np.empty((len(examples), *image.shape), image.dtype)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"{where}: image {row} has shape {image.shape}, image 0 has "
                f"{images.shape[1:]}: crop or resize them to one shape and load the "
                "arrays as npz:PATH"
            )
        images[row] = image
        labels.append(example.get("label"))
    if images is None:
        raise ValueError(f"{where}: the split is empty")
    return images, labels


def _how_to_prepare(name: str, data_dir: PathLike | None) -> str:
    place = f"{Path(data_dir).expanduser()} or " if data_dir else ""
    argument = f", data_dir={str(data_dir)!r}" if data_dir else ""
    return (
        f"tfds:{name} is not prepared as array_record in {place}TensorFlow Datasets' "
        "own folder: where there are a network and TensorFlow (pip install "
        "'vae_jax[tf]'), run python -c \"import vae_jax.data.tfds_arrays as t; "
        f't.prepare({name!r}{argument})"'
    )
