"""What p and q are given beside x, of each row: what --condition names."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vae_jax.data import sources


class Contexts(NamedTuple):
    """The contexts of a data set.

    Attributes:
        names: of the C entries of one.
        splits: [N, C] by the name of each split.
    """

    names: tuple[str, ...]
    splits: Mapping[str, np.ndarray]


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
                f"--condition=labels: the {split} split of {source.name} has no labels"
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
        )
        for split in sources.SPLITS
    }
    return Contexts(names, one_hots)


def one_hot(labels: np.ndarray, names: Sequence[str], place: str) -> np.ndarray:
    """Labels [N] as contexts uint8 [N, C].

    Raises:
        ValueError: for a label that is none of the names, with the place it stands in.
    """
    among = np.asarray(labels)[:, None].astype(str) == np.asarray(names)
    if not among.any(axis=1).all():
        label = labels[among.any(axis=1).argmin()]
        raise ValueError(
            f"{place} has the label {label}, which no training row has: of those are "
            f"{', '.join(names)}"
        )
    return among.astype(np.uint8)
