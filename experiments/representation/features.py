"""Rows, their pixels, components and codes, and how each is judged by labels."""

from typing import NamedTuple

import jax
import numpy as np
from sklearn import decomposition

from experiments.command import cli
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax.evaluation import clustering, probes

Pair = tuple[np.ndarray, np.ndarray]
"""Features [N, D] of the rows that are fitted to, and of those that are judged."""


class Settings(NamedTuple):
    """The flags that are read here."""

    codes: str
    num_train: int
    num_test: int
    num_neighbors: int
    num_clusters: int
    few_labels: tuple[int, ...]
    few_draws: int
    seed: int


class Rows(NamedTuple):
    """One run's rows to fit to and to judge on, as the model reads them."""

    train: jax.Array  # [N, *X], stored
    test: jax.Array
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    split: str  # of the latter rows
    doubt: str  # why there is nothing to judge by labels; empty where there is

    def labelled(self, features: Pair) -> list[probes.Labelled]:
        """The two sets of features with their labels."""
        assert self.train_labels is not None
        assert self.test_labels is not None
        return [
            probes.Labelled(features[0], self.train_labels),
            probes.Labelled(features[1], self.test_labels),
        ]


def load_rows(settings: Settings, trained: trained_runs.Trained) -> Rows:
    """The first rows of the training and of the test split, with their labels."""
    split, labels = trained_runs.test_split(trained), trained.data.prepared.labels
    sizes = {"train": settings.num_train, split: settings.num_test}
    rows, known = {}, {}
    for name, size in sizes.items():
        size = min(size, len(getattr(trained.data.prepared, name)))
        rows[name] = trained_runs.rows(trained, split=name, num_images=size)
        known[name] = labels[name][: len(rows[name])] if name in labels else None
    missing = [name for name, found in known.items() if found is None]
    doubt = ""
    if missing:
        doubt = f"{trained.config.dataset} has no labels of its {missing[0]} split"
    elif split == "train":
        doubt = f"{trained.config.dataset} has no test split to judge on"
    elif len(np.unique(known["train"])) < 2:  # pyright: ignore[reportArgumentType]
        doubt = f"{trained.config.dataset} has a single label"
    return Rows(rows["train"], rows[split], known["train"], known[split], split, doubt)


def of_rows(
    settings: Settings, trained: trained_runs.Trained, rows: Rows
) -> dict[str, Pair]:
    """Pixels, their principal components and codes, of training and test rows."""
    value = trained.data.prepared.value
    pixels = tuple(
        np.asarray(value(part)).reshape(len(part), -1)
        for part in (rows.train, rows.test)
    )
    if any(np.isnan(part).any() for part in pixels):
        raise cli.UsageError(
            "codes are compared with pixels, and pixels are missing in these rows"
        )
    keys = jax.random.split(jax.random.key(settings.seed))
    sampled = settings.codes == "sample"
    codes = tuple(
        measure.codes(key, trained, part, sampled=sampled)
        for key, part in zip(keys, (rows.train, rows.test), strict=True)
    )
    size = min(codes[0].shape[1], *pixels[0].shape)
    projection = decomposition.PCA(size, random_state=settings.seed).fit(pixels[0])
    components = tuple(projection.transform(part) for part in pixels)
    return {"pixels": pixels, "pca": components, "codes": codes}  # pyright: ignore


def judge(settings: Settings, rows: Rows, pair: Pair, *, seed: int) -> dict[str, float]:
    """Every labelled metric of one set of features."""
    train, test = rows.labelled(pair)
    probe = probes.linear_probe(train, test)
    vote = probes.nearest_neighbors(train, test, num_neighbors=settings.num_neighbors)
    found = {"linear_probe": probe.accuracy, "nearest_neighbors": vote}
    found["linear_probe_converged"] = float(probe.converged)
    methods = {"k_means": clustering.k_means, "mixture": clustering.gaussian_mixture}
    num_clusters = settings.num_clusters or len(np.unique(train.labels))
    for name, method in methods.items():
        clusters = method(*pair, num_clusters=num_clusters, random_state=seed)
        agreed = clustering.agreement(test.labels, clusters)
        found |= {f"{name}_{metric}": value for metric, value in agreed.items()}
    return found


def few_labels(
    settings: Settings, rows: Rows, pair: Pair, *, seed: int
) -> dict[str, list[float]]:
    """Accuracy of the probe at each draw, by the number of labels that it could get."""
    train, test = rows.labelled(pair)
    _, counts = np.unique(train.labels, return_counts=True)
    drawn = {}
    for num_labels in settings.few_labels:
        if not len(counts) <= num_labels <= len(counts) * counts.min():
            continue
        found = probes.few_labels(
            train,
            test,
            num_labels=num_labels,
            num_draws=settings.few_draws,
            random_state=seed,
        )
        drawn[str(num_labels)] = found.tolist()
    return drawn
