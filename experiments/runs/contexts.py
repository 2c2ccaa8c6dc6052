"""What p and q are given beside x, of each row: what --condition names."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.choices.config import Config
from vae_jax.data import sources


class Contexts(NamedTuple):
    """The contexts of a data set.

    Attributes:
        names: of the C entries of one.
        splits: [N, C] by the name of each split.
    """

    names: tuple[str, ...]
    splits: Mapping[str, np.ndarray]


def of(config: Config, source: sources.Source) -> Contexts:
    """What --condition names, of every row of a data set.

    Raises:
        ValueError: as `of_labels` and `of_numbers`.
    """
    if config.condition == "labels":
        return of_labels(source)
    return of_numbers(source, size_factor=config.size_factor)


def of_numbers(source: sources.Source, *, size_factor: str = "") -> Contexts:
    """The stored contexts, less their mean in units of their deviation in training.

    Those of zeros and ones stay as they are. Of a size factor it is the logarithm, less
    its mean.

    Raises:
        ValueError: for a split whose rows have none, what are no numbers [N, C], an
            entry that is the same in all training rows, or a size factor that is none
            of the entries or not positive.
    """
    for split in sources.SPLITS:
        num_rows, stored = len(getattr(source, split)), source.contexts.get(split, ())
        if num_rows and len(stored) != num_rows:
            raise ValueError(
                f"--condition=context: not every row of the {split} split of "
                f"{source.name} has one: name columns so (--columns=NAME:context, of "
                f"csv), or store {split}_context [N, C] (npz)"
            )
        if num_rows and not _are_numbers(stored := np.asarray(stored)):
            raise ValueError(
                f"--condition=context: {split}_context of {source.name} is "
                f"{stored.dtype} of shape {stored.shape}: give finite numbers [N, C]"
            )
    stored = {s: source.contexts[s].astype(np.float64) for s in source.contexts}
    train = stored["train"]
    for split, rows in stored.items():
        if rows.shape[1] != train.shape[1]:
            raise ValueError(
                f"--condition=context: {split}_context of {source.name} has "
                f"{rows.shape[1]} entries a row, train_context {train.shape[1]}"
            )
    names = source.context_names or tuple(map(str, range(train.shape[1])))
    is_size = np.array([name == size_factor for name in names])
    if size_factor and not is_size.any():
        raise ValueError(
            f"--size_factor={size_factor} is none of the contexts of {source.name}: "
            f"{', '.join(names)}"
        )
    for split, rows in stored.items():
        if not (rows[:, is_size] > 0).all():
            raise ValueError(
                f"--size_factor={size_factor}: the {split} split of {source.name} has "
                f"a size of {rows[:, is_size].min():g}, and sizes are positive"
            )
        rows[:, is_size] = np.log(rows[:, is_size])
    for name, low, high in zip(
        names, train.min(axis=0), train.max(axis=0), strict=True
    ):
        if low == high:
            raise ValueError(
                f"--condition=context: {name} is {low:g} in all training rows of "
                f"{source.name}: leave it out"
            )
    is_bit = ((train == 0) | (train == 1)).all(axis=0) & ~is_size
    shift = np.where(is_bit, 0.0, train.mean(axis=0))
    scale = np.where(is_bit | is_size, 1.0, train.std(axis=0))
    none = np.zeros((0, train.shape[1]))
    splits = {
        s: ((stored.get(s, none) - shift) / scale).astype(np.float32)
        for s in sources.SPLITS
    }
    return Contexts(names, splits)


def of_new(config: Config, run: sources.Source, new: sources.Source) -> np.ndarray:
    """The stored contexts [N, C] of new rows, on the scale of the run's training rows.

    Raises:
        ValueError: as `of_numbers`.
    """
    both = {"train": run.contexts["train"], "test": new.contexts["test"]}
    source = run._replace(
        name=new.name, valid=run.train[:0], test=new.test, contexts=both
    )
    return of_numbers(source, size_factor=config.size_factor).splits["test"]


def _are_numbers(array: np.ndarray) -> bool:
    is_table = array.ndim == 2 and array.shape[1] > 0 and array.dtype.kind in "buif"
    return is_table and bool(np.isfinite(array).all())


def of_labels(source: sources.Source) -> Contexts:
    """One entry for each label that a training row has, one where it is the row's.

    Raises:
        ValueError: for a split without labels, a row without one, which is below 0, or
            a label that no training row has.
    """
    splits = [split for split in sources.SPLITS if len(getattr(source, split))]
    for split in splits:
        if split not in source.labels:
            raise ValueError(
                f"--condition=labels: the {split} split of {source.name} has no "
                f"labels{_giving_labels(source, split)}"
            )
        if source.labels[split].min() < 0:
            row = int((source.labels[split] < 0).argmax())
            raise ValueError(
                f"--condition=labels: {split} row {row} of {source.name} has the label "
                f"{source.labels[split][row]}: give every row one from 0 on"
            )
    names = tuple(str(label) for label in np.unique(source.labels["train"]))
    one_hots = {
        split: one_hot(
            source.labels.get(split, np.zeros(0, int)),
            names,
            f"the {split} split of {source.name}",
            source.classes,
        )
        for split in sources.SPLITS
    }
    return Contexts(names, one_hots)


def _giving_labels(source: sources.Source, split: str) -> str:
    """How labels would be there, as the end of a sentence, where that can be said."""
    if source.columns:
        return ": name the column that holds them (--columns=NAME:label)"
    if source.name.startswith("npz:"):
        return f": store {split}_labels, an integer a row"
    if source.name.startswith("images:"):
        return ": put images into a folder a class"
    return ""


def label_texts(source: sources.Source, names: Sequence[str]) -> tuple[str, ...]:
    """Labels as they are told: the number, and the class where that has a name."""
    return _texts(names, source.classes)


def _texts(names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"{name} = {classes[int(name)]}" if 0 <= int(name) < len(classes) else name
        for name in names
    )


def one_hot(
    labels: np.ndarray, names: Sequence[str], place: str, classes: Sequence[str] = ()
) -> np.ndarray:
    """Labels [N] as contexts uint8 [N, C]; classes are what their numbers stand for.

    Raises:
        ValueError: for a label that is none of the names, with the place it stands in.
    """
    among = np.asarray(labels)[:, None].astype(str) == np.asarray(names)
    if not among.any(axis=1).all():
        label = str(labels[among.any(axis=1).argmin()])
        raise ValueError(
            f"{place} has the label {_texts([label], classes)[0]}, which no training "
            f"row has: of those are {', '.join(_texts(names, classes))}"
        )
    return among.astype(np.uint8)
