"""Checkpoints that are whole or not there: Orbax arrays with a digest of the contents.

A checkpoint is a folder `STEP/` (zero-padded; `STEP.1` when a step is saved again)
with Orbax's arrays, one per leaf in the tree's own order, and `card.json`, which names
the leaves. It is written under a hidden name and renamed when done, so a kill leaves
the earlier ones as they were.

Orbax loads flipped bits without a word, and meets damage to its own files with stray
tracebacks. So the card holds a sha256 of every file, compared before Orbax opens one,
and a sha256 over the leaves' names, dtypes, shapes and bytes, compared after.

One process writes a directory; any number may read it.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.types import PyTree

_FORMAT = 1
_UNFINISHED = ".partial-"  # being written or being removed; swept by the next save
_NAME = re.compile(r"(\d{10,})(?:\.(\d+))?")
_PRNGS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}
_OVERHEAD, _OVERHEAD_PER_LEAF = 128 << 10, 2 << 10  # bytes: Orbax's own files, card


class Restored(NamedTuple):
    """The newest whole checkpoint, and one line for each newer one that is damaged.

    Attributes:
        step: steps taken.
        tree: what it holds.
        damaged: a line for each newer one.
    """

    step: int
    tree: PyTree
    damaged: tuple[str, ...]


class DamagedError(ValueError):
    """There are checkpoints, and none of them is whole."""


class TemplateError(ValueError):
    """A whole checkpoint holds another tree than the one asked for."""


class _Leaf(NamedTuple):
    """How the card names one array of a tree.

    Attributes:
        path: its place in the tree.
        dtype: by name; a key's is key<...>.
        shape: of the array.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path} {self.dtype}[{','.join(map(str, self.shape))}]"


class _StepFolder(NamedTuple):
    """A folder that was published as a checkpoint.

    Attributes:
        step: steps taken.
        attempt: which saving of that step.
        path: the folder.
    """

    step: int
    attempt: int
    path: Path


def save(
    directory: str | os.PathLike[str], step: int, tree: PyTree, *, keep: int = 2
) -> None:
    """Writes one checkpoint, then removes all but the newest `keep`.

    A kill at any moment leaves the earlier checkpoints whole. What interrupted saves
    left behind is removed, and so are checkpoints of later steps than this one: the
    run has gone back behind them. The arrays are read before this returns, so the
    tree may be donated afterwards.

    Args:
        directory: holds the checkpoints of one run; made if it is not there.
        step: the number that `restore` gives back.
        tree: arrays and typed keys, in any nesting that JAX knows.
        keep: how many checkpoints stay.

    Raises:
        ValueError: `step` or `keep` out of range, or a leaf that is not an array.
        OSError: the directory cannot be written, or has no room; nothing is left there.
    """
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    leaves = _leaves(tree)
    arrays = [_stored(leaf) if leaf.size else None for leaf in jax.tree.leaves(tree)]
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover)

    folder = _step_folders(directory)
    attempts = [other.attempt for other in folder if other.step == step]
    name = f"{step:010d}" + (f".{max(attempts) + 1}" if attempts else "")
    partial = directory / (_UNFINISHED + name)
    partial.mkdir()
    try:
        _write(partial, step, leaves, arrays)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # gives a full disk its room back
        raise
    partial.rename(directory / name)

    earlier = [other for other in folder if other.step < step and _complete(other)]
    remaining = {other.path for other in earlier[max(0, len(earlier) - keep + 1) :]}
    for other in folder:
        if other.path not in remaining:  # renamed first, so that no half of it is seen
            shutil.rmtree(
                other.path.rename(directory / (_UNFINISHED + other.path.name))
            )


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps that have a complete checkpoint, ascending; [] without a directory.

    Complete means written to the end; whether its contents are whole, only `restore`
    can tell.
    """
    return sorted(
        {folder.step for folder in _step_folders(Path(directory)) if _complete(folder)}
    )


def restore(directory: str | os.PathLike[str], template: PyTree) -> Restored | None:
    """The newest whole checkpoint in the structure of `template`; None without any.

    A damaged checkpoint (any bit of its contents changed, a file cut or missing) is
    passed over for the one before it, and reported. The arrays own their buffers, so
    they may be donated; a leaf whose template lies on several devices goes there too.

    Args:
        directory: where `save` wrote.
        template: a tree of arrays, keys or `jax.ShapeDtypeStruct`s.

    Raises:
        DamagedError: there are checkpoints, and all are damaged.
        TemplateError: the newest whole one holds other leaves than the template.
    """
    wanted, damaged = _leaves(template), []
    for folder in reversed(_step_folders(Path(directory))):
        try:
            leaves, arrays = _read(folder)
        # A damaged file raises whatever the reader it confuses raises: KeyError and
        # JSONDecodeError here, ValueError, TypeError, OSError and others in Orbax.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            damaged.append(f"{folder.path} is damaged ({reason})")
            continue
        if leaves != wanted:
            raise TemplateError(_difference(folder.path, leaves, wanted))
        templates, structure = jax.tree.flatten(template)
        values = [
            _like(leaf, array) for leaf, array in zip(templates, arrays, strict=True)
        ]
        return Restored(folder.step, structure.unflatten(values), tuple(damaged))
    if damaged:
        raise DamagedError("no whole checkpoint is left: " + "; ".join(damaged))
    return None


def _step_folders(directory: Path) -> list[_StepFolder]:
    """Everything published in a directory, oldest first."""
    if not directory.is_dir():
        return []
    matches = [(path, _NAME.fullmatch(path.name)) for path in directory.iterdir()]
    return sorted(
        _StepFolder(int(match[1]), int(match[2] or 0), path)
        for path, match in matches
        if match
    )


def _complete(folder: _StepFolder) -> bool:
    return (folder.path / "card.json").is_file() and (folder.path / "arrays").is_dir()


def _write(
    partial: Path,
    step: int,
    leaves: Sequence[_Leaf],
    arrays: Sequence[np.ndarray | None],
) -> None:
    """Fills the folder of one checkpoint; OSError where that fails."""
    tree = {_slot(i): array for i, array in enumerate(arrays) if array is not None}
    size = sum(array.nbytes for array in tree.values())
    _check_room(partial, size + _OVERHEAD + len(leaves) * _OVERHEAD_PER_LEAF)
    try:
        with _silent_threads(), _checkpointer() as checkpointer:
            checkpointer.save(
                (partial / "arrays").absolute(), args=_orbax().args.PyTreeSave(tree)
            )
    except ValueError as error:  # what Orbax makes of a write that fails
        reason = " ".join(str(error).split())[:160]
        raise OSError(f"{partial} cannot be written ({reason})") from error
    card = {
        "format": _FORMAT,
        "step": step,
        "leaves": [list(leaf) for leaf in leaves],
        "files": _file_digests(partial / "arrays"),
        "contents": _digest(step, leaves, arrays),
    }
    (partial / "card.json").write_text(json.dumps(card) + "\n")


def _check_room(folder: Path, size: int) -> None:
    """OSError if the disk has no `size` bytes left.

    Orbax's threads meet a full disk with tracebacks on stderr that no caller can catch,
    so the room is asked for before they start.
    """
    path = folder / "room"
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(
                    error.errno, os.strerror(error.errno), str(folder)
                ) from None
        except AttributeError:
            pass  # macOS has no such call
    path.unlink()


@contextmanager
def _silent_threads() -> Iterator[None]:
    """Keeps Orbax's threads from logging what its caller gets as an exception too."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _read(folder: _StepFolder) -> tuple[list[_Leaf], list[np.ndarray | None]]:
    """A checkpoint's leaves, or any exception if it is not what was saved."""
    card = json.loads((folder.path / "card.json").read_text())
    if card["format"] != _FORMAT:
        raise ValueError(f"the card has format {card['format']}, not {_FORMAT}")
    if card["step"] != folder.step:
        raise ValueError(f"the card is of step {card['step']}")
    files = _file_digests(folder.path / "arrays")
    if files != card["files"]:
        changed = dict(files.items() ^ card["files"].items())
        raise ValueError(f"arrays/{min(changed)} is not the file that was saved")
    leaves = [_Leaf(path, dtype, tuple(shape)) for path, dtype, shape in card["leaves"]]
    slots = [None if 0 in leaf.shape else _slot(i) for i, leaf in enumerate(leaves)]
    ocp = _orbax()
    as_numpy = {
        slot: ocp.RestoreArgs(restore_type=np.ndarray) for slot in slots if slot
    }
    with _checkpointer() as checkpointer:
        stored = checkpointer.restore(
            (folder.path / "arrays").absolute(),
            args=ocp.args.PyTreeRestore(restore_args=as_numpy),
        )
    arrays = [None if slot is None else stored[slot] for slot in slots]
    if _digest(folder.step, leaves, arrays) != card["contents"]:
        raise ValueError("the arrays are not those that were saved")
    return leaves, arrays


def _orbax() -> ModuleType:
    """Orbax, imported at the first save or restore: that takes its time."""
    import orbax.checkpoint

    return orbax.checkpoint


def _checkpointer() -> Any:
    """A synchronous one of few, plain files: trained weights hardly compress.

    Of this process alone: what it holds is whole, and it waits for no other.
    """
    ocp = _orbax()
    alone = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=alone,
        active_processes={alone},
        barrier_sync_key_prefix=f"process_{alone}",
    )
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(
            use_ocdbt=True, use_compression=False, multiprocessing_options=options
        ),
        multiprocessing_options=options,
    )


def _slot(i: int) -> str:
    """A leaf's name in Orbax's tree; empty ones, which Orbax refuses, have none."""
    return f"{i:04d}"


def _leaves(tree: PyTree) -> list[_Leaf]:
    """Names of a tree's leaves.

    Raises:
        ValueError: a leaf has no dtype or no shape.
    """
    leaves = []
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if not (hasattr(value, "dtype") and hasattr(value, "shape")):
            raise ValueError(f"{name or 'the tree'} is not an array: {value!r}")
        leaves.append(_Leaf(name, str(value.dtype), tuple(value.shape)))
    return leaves


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> np.ndarray:
    """What is written of a leaf: itself, or a key's data."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(template: Any, array: np.ndarray | None) -> jax.Array:
    """A leaf from what was written of it: a copy, as JAX must own what is donated."""
    key = _is_key(template)
    if array is None:
        shape = jax.eval_shape(jax.random.key_data, template).shape if key else None
        array = np.zeros(shape or template.shape, np.uint32 if key else template.dtype)
    value = jnp.array(array, copy=True)
    if key:
        value = jax.random.wrap_key_data(value, dtype=template.dtype)
    sharding = getattr(template, "sharding", None)
    if sharding is not None and len(sharding.device_set) > 1:
        value = jax.device_put(value, sharding)
    return value


def _digest(
    step: int, leaves: Sequence[_Leaf], arrays: Sequence[np.ndarray | None]
) -> str:
    """sha256 over the step, the leaves' names, and what is written of each."""
    written = [None if a is None else (str(a.dtype), a.shape) for a in arrays]
    digest = hashlib.sha256(json.dumps([_FORMAT, step, leaves, written]).encode())
    for array in arrays:
        if array is not None:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _file_digests(directory: Path) -> dict[str, str]:
    """sha256 of every file under a directory, by its relative path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _setting(saved_as: str, here: str) -> str:
    """What a dtype goes by: a setting of JAX, or else the model."""
    if saved_as in _PRNGS and here in _PRNGS:
        return (
            f"PRNG (set JAX_DEFAULT_PRNG_IMPL={_PRNGS[saved_as]}, which it was made by)"
        )
    if {saved_as, here} == {"float32", "float64"}:
        double = int(saved_as == "float64")
        return f"precision (set JAX_ENABLE_X64={double}, by which it was made)"
    return "model"


def _difference(path: Path, held: Sequence[_Leaf], wanted: Sequence[_Leaf]) -> str:
    """One line that names the first leaf in which two trees differ, and how many do.

    Trees that differ in their dtypes alone are of one model: what is named is then the
    setting of JAX that their dtypes go by.
    """
    if [leaf._replace(dtype="") for leaf in held] == [
        leaf._replace(dtype="") for leaf in wanted
    ]:
        pairs = zip(held, wanted, strict=True)
        saved_as, here = next(pair for pair in pairs if pair[0] != pair[1])
        reason = _setting(saved_as.dtype, here.dtype)
        return (
            f"{path} is of another {reason}: it holds {saved_as}, the template {here}"
        )
    only_held = [leaf for leaf in held if leaf not in wanted]
    only_wanted = [leaf for leaf in wanted if leaf not in held]
    first = [
        f"{word} {leaves[0]}"
        for word, leaves in (("it holds", only_held), ("the template", only_wanted))
        if leaves
    ]
    count = max(len(only_held), len(only_wanted))
    described = " and ".join(first) or "the order of its leaves is another"
    return f"{path} is of another model: {described} ({count} leaves differ)."
