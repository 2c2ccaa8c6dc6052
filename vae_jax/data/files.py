"""Original data files: found in a folder, else fetched once and kept.

Nothing here waits on a network that is not there: an address is first asked, in a
thread with a deadline (a name look-up cannot be interrupted), whether it answers.
"""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

PROBE_SECONDS = 3.0
"""How long an address may take to answer before it counts as not there."""

SPLIT_NAMES = {
    "train": ("train",),
    "valid": ("validation", "valid", "val"),
    "test": ("test",),
}
"""Our split, and the names it goes by."""


class File(NamedTuple):
    """One original file: its name and address, and how it is read and checked.

    Attributes:
        name: of the file, without .gz.
        url: where it is fetched from.
        packed_sha256: of what the address sends, where it is known.
        read: path -> the array; raises ValueError unless the content is right.
    """

    name: str
    url: str
    packed_sha256: str | None
    read: Callable[[Path], np.ndarray]


def read_all(
    dataset: str, files: Sequence[File], *, data_dir: str | os.PathLike[str] | None
) -> list[np.ndarray]:
    """The arrays of a data set's files, each from `data_dir`, the cache or its address.

    A file may lie in `data_dir` itself or in a folder named like the data set, with or
    without .gz. What is missing there is fetched into pooch's cache under a temporary
    name, and renamed only after its content was checked.

    Raises:
        FileNotFoundError: missing, and its address does not answer (under 5 seconds).
        ValueError: a file that is there is not the original one.
    """
    paths = {file.name: _find(file.name, dataset, data_dir) for file in files}
    missing = [file for file in files if paths[file.name] is None]
    arrays = {
        file.name: file.read(path)
        for file in files
        if (path := paths[file.name]) is not None
    }
    for file in missing:
        arrays[file.name] = _cached(dataset, file, missing, data_dir)
    return [arrays[file.name] for file in files]


def cache_dir(dataset: str) -> Path:
    """The folder, in the user's cache, that holds what was fetched for a data set."""
    import pooch

    return Path(pooch.os_cache("vae_jax")) / dataset


def silence(url: str, *, seconds: float = PROBE_SECONDS) -> str | None:
    """Why an address does not answer, or None if it does, within `seconds`.

    Proxies set in the environment are used. Any answer counts, a refusal too: this
    asks for the network, not for the file.
    """
    import requests

    outcome: list[str | None] = []

    def ask() -> None:
        try:
            requests.head(url, timeout=seconds, allow_redirects=False)
            outcome.append(None)
        except Exception as error:  # whatever it is, it is reported
            outcome.append(type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"no answer in {seconds:g} seconds"


def _find(
    name: str, dataset: str, data_dir: str | os.PathLike[str] | None
) -> Path | None:
    """In the data set's own folder first: MNIST and Fashion-MNIST share names."""
    if not data_dir:
        return None
    root = Path(data_dir).expanduser()
    for folder in (root / dataset, root / dataset.replace("_", "-"), root):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _cached(
    dataset: str,
    file: File,
    missing: Sequence[File],
    data_dir: str | os.PathLike[str] | None,
) -> np.ndarray:
    """Reads from the cache; fetches what is not there or is damaged there."""
    path = cache_dir(dataset) / file.url.rsplit("/", 1)[-1]
    if path.is_file():
        try:
            return file.read(path)
        except ValueError:
            pass  # a damaged cache is replaced
    if reason := silence(file.url):
        raise FileNotFoundError(_wanted(dataset, missing, data_dir, file.url, reason))
    return _fetched(dataset, file, missing, data_dir, path)


def _fetched(
    dataset: str,
    file: File,
    missing: Sequence[File],
    data_dir: str | os.PathLike[str] | None,
    path: Path,
) -> np.ndarray:
    import pooch
    import requests

    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        pooch.retrieve(
            file.url,
            known_hash=file.packed_sha256 and f"sha256:{file.packed_sha256}",
            fname=part.name,
            path=path.parent,
            downloader=pooch.HTTPDownloader(timeout=(PROBE_SECONDS, 30.0)),  # pyright: ignore[reportArgumentType]
        )
        array = file.read(part)
        part.replace(path)
    except requests.RequestException as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            _wanted(dataset, missing, data_dir, file.url, reason)
        ) from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file.url} did not send the original file ({reason}); get {file.name} "
            "elsewhere and give its folder as data_dir"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return array


def _wanted(
    dataset: str,
    missing: Sequence[File],
    data_dir: str | os.PathLike[str] | None,
    url: str,
    reason: str,
) -> str:
    names = ", ".join(file.name for file in missing)
    root = Path(data_dir).expanduser() if data_dir else Path("DIR")
    places = f"{root} or {root / dataset}"
    if not data_dir:
        places = f"a folder DIR given as data_dir (or DIR/{dataset})"
    elif not root.is_dir():
        places += f" ({root} is no folder)"
    return (
        f"{dataset}: missing {names} (plain or .gz): put them in {places}; tried to "
        f"fetch {url}: {reason}"
    )
