"""Which rows are scored, which say what is usual, and which of them are outliers."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.runs import trained_runs
from experiments.runs.trained_runs import INPUT, Trained
from vae_jax.data import batches

REFERENCE = "train"  # says what is usual, and is not scored
CALIBRATION = "valid"
INLIERS = "test"


class Rows(NamedTuple):
    """Rows of several splits, one behind the other, those of reference first.

    Attributes:
        raw: as stored, [N, *X].
        parts: where the rows of each split stand.
        places: of these rows in their split.
        labels: of the rows to score, where there are any.
        outlier: whether each row to score is one; None where that is not known.
    """

    raw: Array
    parts: dict[str, slice]
    places: dict[str, np.ndarray]
    labels: np.ndarray | None
    outlier: np.ndarray | None

    def size(self, part: str) -> int:
        """How many rows of a split there are."""
        return len(self.places[part])

    @property
    def num_outliers(self) -> int | None:
        """How many of the rows to score are outliers, where that is known."""
        return None if self.outlier is None else int(self.outlier.sum())

    def kinds(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [N] of the outliers, and of the inliers they are held against.

        All rows to score, where outliers are not known; the test rows, where no row to
        score is an inlier.
        """
        to_score = values[self.parts[INPUT]]
        outlier = self.outlier
        if outlier is None:
            outlier = np.ones(len(to_score), bool)
        inliers = to_score[~outlier]
        if not len(inliers):
            inliers = values[self.parts[INLIERS]]
        return to_score[outlier], inliers


def gathered(
    trained: Trained, *, num_rows: int, outlier_labels: tuple[int, ...], place: str
) -> Rows:
    """The rows of a command.

    Args:
        trained: the run, with the rows to score as its input.
        num_rows: of each split, at equal distances, and of outliers that are rows of a
            data set; 0 for all, and where there are fewer.
        outlier_labels: of the rows to score.
        place: of these rows, as the flag that says it.

    Raises:
        ValueError: for a run without rows to calibrate on, or to measure the rate on;
            for labels that no row has, or of rows without labels.
    """
    for split, use in ((CALIBRATION, "calibrated"), (INLIERS, "measured")):
        if not len(trained.stored(split)):
            raise ValueError(
                f"{trained.config.dataset} has no {split} rows, on which the rate of "
                f"false alarms is {use}: train on a data set that has, or with "
                "--valid_size"
            )
    places = {
        split: _spread(trained.size(split), num_rows)
        for split in (REFERENCE, CALIBRATION, INLIERS)
    }
    labels, index = trained.labels(INPUT), np.arange(trained.size(INPUT))
    outlier = _outlier(labels, outlier_labels, place) if outlier_labels else None
    if place.startswith("--outlier_dataset"):
        index = index if outlier is None else np.flatnonzero(outlier)
        index = index[_spread(len(index), num_rows)]
        outlier = np.ones(len(index), bool)
    places[INPUT] = index
    pieces, parts, start = [], {}, 0
    for split, at in places.items():
        whole = trained_runs.rows(trained, split=split)
        pieces.append(whole[at].astype(jnp.float32))  # bytes are held exactly
        parts[split] = slice(start, start + len(at))
        start += len(at)
    labels = None if labels is None else labels[index]
    return Rows(jnp.concatenate(pieces), parts, places, labels, outlier)


def _outlier(
    labels: np.ndarray | None, outlier_labels: tuple[int, ...], place: str
) -> np.ndarray:
    asked = ",".join(map(str, outlier_labels))
    if labels is None:
        raise ValueError(
            f"--outlier_labels={asked}: {place} has no labels to tell its outliers by: "
            "store them as test_labels, an integer a row"
        )
    outlier = np.isin(labels, outlier_labels)
    if not outlier.any():
        there = ", ".join(map(str, np.unique(labels)))
        raise ValueError(f"--outlier_labels={asked}: {place} has the labels {there}")
    return outlier


def _spread(size: int, number: int) -> np.ndarray:
    """So many places at equal distances; all for 0, or where there are fewer."""
    number = min(number or size, size)
    return batches.at_equal_distances(size, number)
