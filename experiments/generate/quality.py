"""How a model's samples compare with data: no network judges, distances do."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.command import cli, report
from experiments.command.report import Column, field
from experiments.generate import samplers
from experiments.measures import measure, pictures
from experiments.runs import trained_runs
from vae_jax.data import sources
from vae_jax.evaluation import sample_quality
from vae_jax.types import PRNGKey


class Quality(NamedTuple):
    """How draws compare with test rows, in pixels and in codes.

    Attributes:
        num_rows: draws, and as many test rows.
        num_train: training rows among which the nearest is looked for.
        num_neighbors: of precision and recall.
        spaces: the measures in "pixels" and in "codes".
    """

    num_rows: int
    num_train: int
    num_neighbors: int
    spaces: dict[str, dict[str, float]]


def check(trained: trained_runs.Trained, *, num_rows: int, num_neighbors: int) -> int:
    """How many draws are compared with as many test rows.

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
            "--quality measures distances to whole rows, and these have entries "
            "missing: leave it out"
        )
    num = min(num_rows, len(prepared.test), len(prepared.train))
    if num_neighbors >= num:
        raise cli.UsageError(
            f"--num_neighbors={num_neighbors} must be below the {num} rows compared"
        )
    return num


def measured(
    key: PRNGKey,
    trained: trained_runs.Trained,
    sample_z: samplers.Sampler | None,
    *,
    num_rows: int,
    num_neighbors: int,
) -> Quality:
    """The measures in pixels and in codes, each beside that of training rows.

    As many draws of x as test rows are compared with these, which are drawn without
    replacement: the start of a split may differ from its rest. Codes are means of
    q(z | x) of the draws. The nearest training row is looked for among all of them.

    Raises:
        UsageError: as `check`.
    """
    num = check(trained, num_rows=num_rows, num_neighbors=num_neighbors)
    prepared = trained.data.prepared
    key_samples, key_codes, *keys = jax.random.split(key, 4)
    train, test = (
        prepared.value(jax.random.permutation(key, trained_runs.rows(trained, split=s)))
        for key, s in zip(keys, ("train", "test"), strict=True)
    )
    samples = pictures.samples(key_samples, trained, num=num, sample_z=sample_z)["x"]
    values = train, test[:num], jnp.asarray(samples)
    # These are values of x and no stored rows any more.
    codes_of = measure.codes_over_rows(trained.model, lambda x: x, mesh=trained.mesh)
    spaces = {
        "pixels": [part.reshape(len(part), -1) for part in values],
        "codes": [
            codes_of(key, trained.params, part)
            for key, part in zip(jax.random.split(key_codes, 3), values, strict=True)
        ],
    }
    measures = {
        name: sample_quality.compare(*rows, num_neighbors=num_neighbors)._asdict()
        for name, rows in spaces.items()
    }
    return Quality(num, len(prepared.train), num_neighbors, measures)


def table(result: Quality, *, source: str) -> str:
    """The measures as lines of text, those of training rows in brackets."""
    spaces, k = result.spaces, result.num_neighbors
    measures = [
        (
            f"distance to the nearest of {result.num_train} training rows",
            "{nearest_train_samples:.3f}",
        ),
        ("  the same of test rows", "{nearest_train_test:.3f}"),
        ("  P(draw closer than test row), 0.5 if like data", "{share_closer:.3f}"),
        (f"precision, k = {k}", "{precision:.3f} ({precision_of_train:.3f})"),
        (f"recall, k = {k}", "{recall:.3f} ({recall_of_train:.3f})"),
        ("MMD^2, exp(-d^2 / 2 b^2), unbiased", "{mmd:.5f} ({mmd_of_train:.5f})"),
        ("  b, the median distance", "{bandwidth:.3f}"),
    ]
    rows = [
        {"measure": text} | {name: form.format(**s) for name, s in spaces.items()}
        for text, form in measures
    ]
    columns: list[Column] = [field("", "measure", width=52)]
    columns += [field(name, name, width=21) for name in spaces]
    lines = [
        f"{result.num_rows} draws of x with z from {source}, against as many test "
        "rows; in brackets the same of training rows",
        report.table(columns, rows),
    ]
    if any(space["share_closer"] > 0.6 for space in spaces.values()):
        lines.append(
            "draws lie closer to training rows than test rows do: copies, or draws "
            "smoother than data"
        )
    return "\n".join(lines)
