r"""Completes images of which a part is hidden, and says how well.

    python -m experiments.completion --workdir=runs/digits --mask=left
    python -m experiments.completion --workdir=runs/digits --mask=random --fraction=0.8

Three ways to draw the hidden entries from p(x_mis | x_obs): pseudo-Gibbs (Rezende et
al. 2014, arXiv:1401.4082), Metropolis-within-Gibbs (Mattei & Frellsen 2018,
arXiv:1802.04826) and importance sampling (Mattei & Frellsen 2019, arXiv:1812.02633).
Writes completion_MASK.json, .txt, .npz and .png to the workdir: the error beside that
of the training mean, the log-likelihood of the truth, calibration or coverage. What is
of another --split, another number of images or the rows of an --input file has that in
its files' names.

Of a table also METHOD.csv behind that name: its rows with every hole filled (the median
of the draws, the level most often drawn) and 90% intervals, and METHOD.png: intervals
of hidden numbers above what they were. --mask=none fills those that are missing and
hides no more.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.command import cli, report
from experiments.completion import columns, methods, scores
from experiments.completion.config import METHODS, Config
from experiments.measures import pictures, stored_values
from experiments.runs import trained_runs
from vae_jax.data import batches, csv_tables
from vae_jax.evaluation import masks
from vae_jax.plots import completions, files

OF_TABLES = (
    "Errors, coverage and widths of all columns together are those of numbers, errors "
    "and widths in units of each column's deviation in training."
)
OF_POINT_MASSES = "q is a point mass: nothing tells log p(x_mis | x_obs)."


def hidden_entries(config: Config, x: Array) -> np.ndarray:
    """Which entries [N, *X] of the images x are hidden, each image by its own key.

    Raises:
        ValueError: if a mask does not fit the images, or its file hides nothing.
        OSError: if there is no such file.
    """
    key, shape = jax.random.key(config.seed), x.shape[1:]
    if config.mask.startswith("npy:"):
        path = pathlib.Path(config.mask.removeprefix("npy:")).expanduser()
        try:
            stored = np.load(path, allow_pickle=False)
            if not isinstance(stored, np.ndarray):
                raise ValueError("not one array: save the mask by numpy.save")
            return masks.checked(stored, x.shape)
        except (ValueError, EOFError) as error:
            raise ValueError(f"--mask={config.mask}: {error}") from error
    if config.mask == "random":
        mask = masks.random_fraction(shape, fraction=config.fraction)
    elif config.mask == "none":
        return np.zeros(x.shape, bool)
    elif len(shape) < 2:
        raise ValueError(
            f"--mask={config.mask} hides a part of an image, and a row here has the "
            f"shape {shape}: take --mask=random, or none where cells are missing"
        )
    elif config.mask == "block":
        try:
            mask = masks.block(shape, height=config.block, width=config.block)
        except ValueError as error:
            raise ValueError(f"--block={config.block}: {error}") from error
    else:
        mask = masks.half(shape, side=config.mask)
    return np.asarray(masks.of_images(key, mask, num_images=len(x)))


def _behind(hidden: np.ndarray, rows: Array) -> np.ndarray:
    """What is hidden of x, and of rows nothing else that they hold behind it."""
    if hidden.shape == rows.shape:
        return hidden
    flat = hidden.reshape(len(hidden), -1)
    return np.pad(flat, ((0, 0), (0, rows.shape[1] - flat.shape[1])))


class Hidden(NamedTuple):
    """Rows with holes, and what is in them.

    Attributes:
        rows: as the model takes them, contexts behind x.
        partial: the same, NaN where hidden or missing.
        truth: x alone; NaN where nobody knows.
        mask: of x, true where hidden.
    """

    rows: Array
    partial: Array
    truth: np.ndarray
    mask: np.ndarray


def hidden_rows(config: Config, trained: trained_runs.Trained) -> Hidden:
    """The rows that are completed.

    Raises:
        UsageError: as `methods.check` and `hidden_entries`; where nothing is hidden
            that could be compared, or nothing is missing that could be filled.
    """
    split = config.measured_split(trained)
    with cli.user_errors():
        methods.check(config, trained)
        num_images = config.num_rows(trained, "num_images")
        rows = trained_runs.spread_rows(trained, split=split, num_images=num_images)
        rows = trained.data.prepared.value(rows)
        x = trained.data.observed(rows)
        mask = hidden_entries(config, x)
        if config.mask == "none" and not np.isnan(x).any():
            raise ValueError("--mask=none, and nothing is missing in these rows")
        if config.mask != "none" and not (mask & ~np.isnan(x)).any():
            raise ValueError(
                f"--mask={config.mask} hides no entry of these {len(x)} rows whose "
                "value is known: there is nothing to compare a completion with"
            )
        partial = jax.vmap(masks.hide)(rows, jnp.asarray(_behind(mask, rows)))
    return Hidden(rows, partial, np.asarray(x), mask)


def complete(
    config: Config, trained: trained_runs.Trained
) -> tuple[dict[str, Any], pictures.Arrays]:
    """All that is reported, and the arrays behind the picture."""
    holes = hidden_rows(config, trained)
    both = holes.partial, holes.rows
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 2)
    results = methods.complete(keys[0], config, trained, *both)
    log_p_truth = {}
    if methods.has_weights(trained) and holes.mask.any():
        log_p_truth = methods.log_likelihood(
            keys[1], config, trained, *both, results
        )._asdict()
    is_missing = np.isnan(holes.truth)
    table = csv_tables.observed(trained.data.source.columns)
    result = {
        "mask": config.mask,
        "share_hidden": float(holes.mask.mean()),
        "share_missing": float(is_missing.mean()),
        "notes": [
            *_notes(holes.mask, trained.data.quantity, int(is_missing.sum())),
            *([OF_TABLES] if table and holes.mask.any() else []),
            *([OF_POINT_MASSES] if trained.has_point_mass else []),
        ],
        **_scored(trained, holes, results),
        "log_p_truth": log_p_truth,
        "split": config.measured_split(trained),
        "num_images": config.num_rows(trained, "num_images"),
        "checkpoint": config.checkpoint,
        "step": trained.step,
        "seed": config.seed,
        "protocol": trained.stamp(),
    }
    return result, _arrays(trained, holes, results)


def _scored(
    trained: trained_runs.Trained,
    holes: Hidden,
    results: dict[str, methods.Completed],
) -> dict[str, Any]:
    """What completions are worth, beside what is hidden; of a table by column too."""
    scored: dict[str, Any] = {"methods": {}, "differences": {}, "columns": []}
    if not holes.mask.any():
        return scored
    training = scores.training_values(trained)
    table = csv_tables.observed(trained.data.source.columns)
    parts = holes.truth, holes.mask, results, training
    kinds: dict[str, Any] = {"are_counts": stored_values.are_counts(trained)}
    if table:
        kinds["units"] = columns.units(training)
        kinds["are_numbers"] = columns.are_numbers(table)
        scored["columns"] = columns.scores(table, *parts)
    else:
        scored["differences"] = scores.differences(holes.truth, holes.mask, results)
    scored["methods"] = scores.scores(*parts, trained.data.quantity, **kinds)
    return scored


def _arrays(
    trained: trained_runs.Trained,
    holes: Hidden,
    results: dict[str, methods.Completed],
) -> pictures.Arrays:
    """What is written: the truth, the mask and the completions of each method."""
    arrays = {"x": holes.truth, "hidden": holes.mask}
    table = csv_tables.observed(trained.data.source.columns)
    if table:
        observed = np.asarray(trained.data.observed(holes.partial))
        for name, completed in results.items():
            filled = columns.imputed(table, observed, completed)
            arrays |= {f"{name}_imputed{end}": rows for end, rows in filled.items()}
    for name, (draws, _) in results.items():
        arrays[f"{name}_mean"] = np.asarray(draws.mean)
        arrays[f"{name}_x"] = np.asarray(draws.x[:, :10])
    return arrays


def main(config: Config) -> int:
    """Completes, prints, writes and draws."""
    trained = config.load()
    result, arrays = complete(config, trained)
    text = scores.table(result, columns.table(result["columns"]))
    print(text)
    path, endings = result_path(config, trained), [".npz"]
    with cli.user_errors():
        pictures.save_arrays(path.with_suffix(".npz"), arrays)
        table = csv_tables.observed(trained.data.source.columns)
        for name in METHODS:
            if f"{name}_imputed" in arrays:
                rows = {e: arrays[f"{name}_imputed{e}"] for e in ("", "_low", "_high")}
                file = path.with_name(f"{path.name}_{name}.csv")
                csv_tables.write(file, table, rows)
                endings.append(f"_{name}.csv")
                if panels := columns.hidden_numbers(table, arrays, name):
                    figure = completions.intervals(panels)
                    files.save(figure, file.with_suffix(".png"))
                    endings.append(f"_{name}.png")
        if trained.is_image:
            endings.append(".png")
            draw(arrays, path.with_suffix(".png"), num=config.num_shown)
    report.write_both(path, config, result, text, *endings)
    return 0


def result_path(config: Config, trained: trained_runs.Trained) -> pathlib.Path:
    """Of the files, without their ending; of other settings by names of their own."""
    parts = (
        config.mask_name,
        config.other_split,
        config.rows_part(trained, "num_images"),
    )
    return config.result_path(trained, "completion", *parts)


def draw(arrays: pictures.Arrays, path: pathlib.Path, *, num: int) -> None:
    """Some images, what is hidden, and of each method the mean and three draws."""
    whole = len(arrays["x"])
    num = min(num, whole)
    rows = batches.at_equal_distances(whole, num)
    groups = {}
    for name in METHODS:
        if f"{name}_mean" in arrays:
            mean, samples = arrays[f"{name}_mean"][rows], arrays[f"{name}_x"][rows]
            title = f"{name.replace('_', ' ')}: mean, draws"
            groups[title] = np.concatenate([mean[:, None], samples[:, :3]], axis=1)
    limits = pictures.limits_of(arrays["x"])
    originals, hidden = arrays["x"][rows], arrays["hidden"][rows]
    files.save(completions.table(originals, hidden, groups, limits=limits), path)


def _notes(hidden: np.ndarray, quantity: str, num_holes: int) -> list[str]:
    """What a reader has to know before the numbers."""
    notes = []
    if num_holes and not hidden.any():
        notes.append(
            f"{num_holes} empty cells are filled; nobody knows what they hold."
        )
    all_hidden = int(hidden.reshape(len(hidden), -1).all(1).sum())
    if all_hidden:
        notes.append(
            f"Nothing is observed of {all_hidden} of {len(hidden)} rows: their "
            "completions are draws of the model, z from the prior, and log p(x_obs) "
            "is 0."
        )
    if quantity == "cross-entropy":
        notes.append(
            "Targets are not binary and the likelihood is: no log-likelihood, "
            "calibration or coverage is reported."
        )
    if hidden.all():
        notes.append("Everything is hidden: this is the prior's answer for each row.")
    return notes
