"""Rows, their pixels, components and codes, and how each is judged by labels."""

import warnings
from typing import NamedTuple

import jax
import numpy as np
from sklearn import decomposition

from experiments.choices import models
from experiments.command import cli
from experiments.measures import measure
from experiments.representation.config import Config
from experiments.runs import trained_runs
from vae_jax.evaluation import probes


class Features(NamedTuple):
    """Of the rows that are fitted to, and of those that are judged, [N, D] each."""

    train: np.ndarray
    test: np.ndarray


class Rows(NamedTuple):
    """One run's rows to fit to and to judge on.

    Attributes:
        train: [N, *X], as stored.
        test: as train.
        train_labels: None where there are none.
        test_labels: as train_labels.
        split: that of `test`.
        unlabeled: why there is nothing to judge by labels; empty where there is.
    """

    train: jax.Array
    test: jax.Array
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    split: str
    unlabeled: str

    def labeled(self, features: Features) -> list[probes.Labeled]:
        """The two sets of features with their labels."""
        assert self.train_labels is not None
        assert self.test_labels is not None
        return [
            probes.Labeled(features.train, self.train_labels),
            probes.Labeled(features.test, self.test_labels),
        ]


def load_rows(config: Config, trained: trained_runs.Trained) -> Rows:
    """The first rows of the training and of the test split, with their labels.

    Raises:
        UsageError: for a single row, or fewer than neighbors or clusters.
    """
    dataset, judged = trained.config.dataset, config.measured_split(trained)
    arrays, labels = [], []
    for split, flag in (("train", "num_train"), (judged, "num_test")):
        with cli.user_errors():
            num = config.num_rows(trained, flag, split=split)
        if num < 2:
            raise cli.UsageError(
                f"{trained.place(split)} gives a single row, and codes are compared "
                "with each other: it takes two or more"
            )
        arrays.append(trained_runs.rows(trained, split=split, num_images=num))
        of_split = trained.labels(split)
        labels.append(None if of_split is None else of_split[:num])
    for name in ("num_neighbors", "num_clusters"):
        if getattr(config, name) > len(arrays[0]):
            raise cli.UsageError(
                f"--{name}={getattr(config, name)} is more than the {len(arrays[0])} "
                "training rows"
            )
    unlabeled = ""
    if labels[0] is None or labels[1] is None:
        place = trained.place("train" if labels[0] is None else judged)
        unlabeled = f"{place} has no labels"
    elif judged == "train":
        unlabeled = f"{dataset} has no test split to judge on"
    elif len(np.unique(labels[0])) < 2:
        unlabeled = f"{dataset} has a single label"
    (train, test), (of_train, of_test) = arrays, labels
    return Rows(train, test, of_train, of_test, judged, unlabeled)


def of_rows(
    config: Config, trained: trained_runs.Trained, rows: Rows
) -> dict[str, Features]:
    """Pixels, their principal components and codes, of training and test rows.

    Pixels of counts and of tables are what the encoder sees of them. Where one is
    missing it is its mean over the training rows.
    """
    stored = rows.train, rows.test
    pixels = _pixels(trained, stored)
    keys = jax.random.split(jax.random.key(config.seed))
    entries = trained.layer(config.layer)
    codes = [
        measure.codes(key, trained, part, sampled=config.codes == "sample")[:, entries]
        for key, part in zip(keys, stored, strict=True)
    ]
    size = min(codes[0].shape[1], *pixels[0].shape)
    projection = decomposition.PCA(size, random_state=config.seed).fit(pixels[0])
    components = map(projection.transform, pixels)
    name = "columns" if trained.config.is_table else "pixels"
    named = {name: pixels, "pca": components, "codes": codes}
    return {name: Features(*pair) for name, pair in named.items()}


def _pixels(
    trained: trained_runs.Trained, stored: tuple[jax.Array, jax.Array]
) -> list[np.ndarray]:
    value = trained.data.prepared.value
    seen = models.seen(trained.config, trained.data.x_shape)
    train, test = (
        np.asarray(jax.vmap(seen)(value(part))).reshape(len(part), -1)
        for part in stored
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nowhere there: zero
        mean = np.nan_to_num(np.nanmean(train, axis=0))
    return [np.where(np.isnan(part), mean, part) for part in (train, test)]
