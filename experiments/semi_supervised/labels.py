"""Which rows keep their labels, and how rows come to be in the steps of an epoch."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.command import cli
from experiments.semi_supervised.config import Config
from vae_jax.estimators import semi_supervised


def labeled_rows(labels: np.ndarray, number: int, *, seed: int) -> np.ndarray:
    """Rows [number] drawn without replacement, equally many of each class.

    Raises:
        UsageError: where the number does not divide, or a class has too few rows.
    """
    if not number:
        return np.flatnonzero(labels >= 0)
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    each, rest = divmod(number, len(classes))
    if rest or not 0 < each <= counts.min():
        raise cli.UsageError(
            f"--num_labels={number} must be a multiple of the {len(classes)} classes, "
            f"of which the smallest has {counts.min()} rows"
        )
    generator = np.random.default_rng(seed)
    rows = [
        generator.choice(np.flatnonzero(labels == c), each, replace=False)
        for c in classes
    ]
    return np.concatenate(rows)


class Labels(NamedTuple):
    """A draw of labeled rows, and how rows come to be in the steps of an epoch.

    Attributes:
        seen: of each row its label, or `NO_LABEL`.
        num_plain: rows without a label a step.
        num_labeled: rows with one.
        steps: of an epoch.
    """

    seen: Int[np.ndarray, " N"]
    num_plain: int
    num_labeled: int
    steps: int

    @property
    def num_labels(self) -> int:
        """How many rows have one."""
        return int((self.seen != semi_supervised.NO_LABEL).sum())

    @property
    def weight(self) -> float:
        """Of a labeled row in a step: that of one row over an epoch."""
        return self.num_labels / (self.steps * self.num_labeled)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Rows [S, B] of an epoch: without labels first, each at most once."""
        has_label = self.seen != semi_supervised.NO_LABEL
        plain = generator.permutation(np.flatnonzero(~has_label))
        labeled = np.flatnonzero(has_label)
        parts = [
            plain[: self.steps * self.num_plain].reshape(self.steps, -1),
            [
                generator.permutation(labeled)[: self.num_labeled]
                for _ in range(self.steps)
            ],
        ]
        return np.concatenate(parts, axis=1)


def labels_of(config: Config, labels: np.ndarray, rows: np.ndarray) -> Labels:
    """Of all rows those that keep their labels."""
    seen = np.full(len(labels), semi_supervised.NO_LABEL)
    seen[rows] = np.unique(labels[rows], return_inverse=True)[1]
    num_rest = len(labels) - len(rows)
    num_plain = min(config.batch_size, num_rest)
    num_labeled = min(config.labels_per_step, len(rows))
    return Labels(seen, num_plain, num_labeled, num_rest // num_plain)
