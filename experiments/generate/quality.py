"""How a model's samples compare with data: no network judges, distances do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.command import cli
from experiments.generate import samplers
from experiments.measures import measure, pictures
from experiments.runs import trained_runs
from vae_jax.data import sources
from vae_jax.evaluation import sample_quality
from vae_jax.types import PRNGKey

BANDWIDTH_ROWS = 1000  # of data and samples, from which the bandwidth is taken

nearest = jax.jit(sample_quality.nearest)
precision_recall = jax.jit(
    sample_quality.precision_recall, static_argnames="num_neighbors"
)
mmd = jax.jit(sample_quality.mmd, static_argnames="bandwidth")


def measured(
    key: PRNGKey,
    trained: trained_runs.Trained,
    sample_z: samplers.Sampler,
    *,
    num_rows: int,
    num_neighbors: int,
) -> dict[str, Any]:
    """The measures in pixels and in codes, each beside that of training rows.

    As many draws of x as test rows are compared with these, which are drawn without
    replacement: the start of a split may differ from its rest. Codes are means of
    q(z | x) of the draws. The nearest training row is looked for among all of them.

    Raises:
        UsageError: without a test split, for rows with entries missing, or for no more
            rows than neighbors.
    """
    prepared = trained.data.prepared
    if not len(prepared.test):
        raise cli.UsageError(
            f"--quality needs a test split, {trained.config.dataset} has none"
        )
    if any(sources.missing_entries(s).any() for s in (prepared.train, prepared.test)):
        raise cli.UsageError(
            "--quality measures distances to whole rows, and these have entries missing"
        )
    num = min(num_rows, len(prepared.test), len(prepared.train))
    if num_neighbors >= num:
        raise cli.UsageError(
            f"--num_neighbors={num_neighbors} must be below the {num} rows compared"
        )
    key_samples, key_codes, *keys = jax.random.split(key, 4)
    drawn = pictures.samples(key_samples, trained, num=num, sample_z=sample_z)["x"]
    stored = {
        name: jax.random.permutation(key, trained_runs.rows(trained, split=name))
        for key, name in zip(keys, ("train", "test"), strict=True)
    }
    stored["test"] = stored["test"][:num]
    rows = {name: prepared.value(part) for name, part in stored.items()}
    rows["samples"] = jnp.asarray(drawn)
    by_value = trained._replace(
        data=trained.data._replace(prepared=prepared._replace(value=lambda x: x))
    )
    keys_codes = dict(zip(rows, jax.random.split(key_codes, 3), strict=True))
    spaces = {
        "pixels": {name: part.reshape(len(part), -1) for name, part in rows.items()},
        "codes": {
            name: jnp.asarray(measure.codes(keys_codes[name], by_value, part))
            for name, part in rows.items()
        },
    }
    return {
        "num_rows": num,
        "num_train": len(prepared.train),
        "num_neighbors": num_neighbors,
        "spaces": {
            name: of_space(**parts, num_neighbors=num_neighbors)
            for name, parts in spaces.items()
        },
    }


def of_space(
    *, train: Array, test: Array, samples: Array, num_neighbors: int
) -> dict[str, float]:
    """The measures of one space, all rows [N, D] in random order."""
    num = len(test)
    fresh = train[:num]
    of_samples, of_test = nearest(samples, train), nearest(test, train)
    some = min(num, BANDWIDTH_ROWS // 2)
    pooled = jnp.concatenate([test[:some], samples[:some]])
    bandwidth = float(sample_quality.median_distance(pooled))
    judged = precision_recall(test, samples, num_neighbors=num_neighbors)
    reference = precision_recall(test, fresh, num_neighbors=num_neighbors)
    found = {
        "nearest_train_samples": float(jnp.median(of_samples.distance)),
        "nearest_train_test": float(jnp.median(of_test.distance)),
        "share_closer": float(
            sample_quality.share_closer(of_samples.distance, of_test.distance)
        ),
        "precision": float(judged.precision),
        "recall": float(judged.recall),
        "precision_of_train": float(reference.precision),
        "recall_of_train": float(reference.recall),
        "bandwidth": bandwidth,
    }
    if bandwidth > 0.0:
        found["mmd"] = float(mmd(samples, test, bandwidth=bandwidth))
        found["mmd_of_train"] = float(mmd(fresh, test, bandwidth=bandwidth))
    return found


def table(result: dict[str, Any], *, source: str) -> str:
    """The measures as lines of text."""
    num, k = result["num_rows"], result["num_neighbors"]
    lines = [
        f"{num} draws of x with z from {source}, against {num} test rows; in brackets "
        "the same of training rows",
        f"{'':<52}" + "".join(f"{name:>22}" for name in result["spaces"]),
    ]
    spaces = list(result["spaces"].values())

    def line(text: str, values: list[str]) -> None:
        lines.append(f"  {text:<50}" + "".join(f"{value:>22}" for value in values))

    train = result["num_train"]
    line(
        f"distance to the nearest of {train} training rows",
        [f"{s['nearest_train_samples']:.3f}" for s in spaces],
    )
    line("  the same of test rows", [f"{s['nearest_train_test']:.3f}" for s in spaces])
    line(
        "  P(draw closer than test row), 0.5 if like data",
        [f"{s['share_closer']:.3f}" for s in spaces],
    )
    for name in ("precision", "recall"):
        line(
            f"{name}, k = {k}",
            [f"{s[name]:.3f} ({s[f'{name}_of_train']:.3f})" for s in spaces],
        )
    line(
        "MMD^2, exp(-d^2 / 2 b^2), unbiased",
        [
            f"{s['mmd']:.5f} ({s['mmd_of_train']:.5f})"
            if "mmd" in s
            else "no bandwidth"
            for s in spaces
        ],
    )
    line("  b, the median distance", [f"{s['bandwidth']:.3f}" for s in spaces])
    closer = np.array([s["share_closer"] for s in spaces])
    if (closer > 0.6).any():
        lines.append(
            "  draws lie closer to training rows than test rows do: copies, or draws "
            "smoother than data"
        )
    return "\n".join(lines)
