"""Arrays and pictures from a trained model: samples, reconstructions, the manifold."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.choices import estimators
from experiments.runs import scales, trained_runs
from vae_jax import compilation, conditional, writing
from vae_jax.plots import curves, files, images, latents
from vae_jax.training import journal
from vae_jax.types import Generative, Params, PRNGKey

Arrays = dict[str, np.ndarray]
MOST_LISTED = 12  # labels in a title
Limits = tuple[float, float]
"""The values of x that are drawn in black and in white."""
METRICS = {  # what a run is drawn by, where it reports it, and the unit
    "bound": "nats per example",
    "log_joint": "nats per example",
    "reconstruction": "nats per example",
    "kl": "nats per example",
    "acceptance": "share of HMC's proposals",
    "gradient_norm": "of the mean over a batch",
}


def samples(
    key: PRNGKey,
    trained: trained_runs.Trained,
    *,
    num: int,
    sample_z: Callable[[PRNGKey], Array] | None = None,
) -> Arrays:
    """z from the prior, then x from the decoder: z, the means of x, and draws of x.

    sample_z, key -> z, takes the prior's place if given.
    """
    generative, params = trained.model.generative, trained.params

    def sample(key: PRNGKey) -> dict[str, Array]:
        key_z, key_x = jax.random.split(key)
        z = _sample_z(key_z, generative, params, sample_z)
        x = generative.sample_observation(key_x, params, z)
        return {"z": z, "mean": generative.mean_observation(params, z), "x": x}

    return _draws(sample, key, num)


def _sample_z(
    key: PRNGKey,
    generative: Generative,
    params: Params,
    instead: Callable[[PRNGKey], Array] | None,
) -> Array:
    """z from the prior, or from what takes its place."""
    return generative.sample_prior(key, params) if instead is None else instead(key)


def samples_by_label(
    key: PRNGKey,
    trained: trained_runs.Trained,
    *,
    num: int,
    sample_z: Callable[[PRNGKey], Array] | None = None,
) -> Arrays:
    """As `samples`, shared out among the labels [C]: z [N, D], the others [C, N, *X].

    So a column has one z, which is what is left of x beside its label.
    """
    at_context, params = trained.at_context, trained.params
    num_labels = len(trained.data.context)
    assert at_context is not None

    def sample(key: PRNGKey) -> dict[str, Array]:
        key_z, key_x = jax.random.split(key)
        z = _sample_z(key_z, trained.model.generative, params, sample_z)

        def at(c: Array) -> dict[str, Array]:
            generative = at_context(c).generative
            x = generative.sample_observation(jax.random.clone(key_x), params, z)
            return {"mean": generative.mean_observation(params, z), "x": x}

        return {"z": z, **jax.vmap(at)(jnp.eye(num_labels))}

    arrays = _draws(sample, key, max(1, num // num_labels))
    by_label = {name: arrays.pop(name).swapaxes(0, 1) for name in ("mean", "x")}
    labels = jnp.array([int(name) for name in trained.data.context])
    return arrays | by_label | {"label": np.asarray(labels)}


def samples_by_row(
    key: PRNGKey,
    trained: trained_runs.Trained,
    *,
    num: int,
    sample_z: Callable[[PRNGKey], Array] | None = None,
) -> Arrays:
    """As `samples`, each given the context of another test row: c [N, C].

    Where rows are fewer than draws, each has its turn again.
    """
    split, params = trained_runs.test_split(trained), trained.params
    size = min(num, trained.size(split))
    stored = trained_runs.spread_rows(trained, split=split, num_images=size)
    stored = stored[np.arange(num) % size]

    def sample(key: PRNGKey, row: Array) -> dict[str, Array]:
        key_z, key_x = jax.random.split(key)
        value = trained.data.prepared.value(row)
        generative = trained.of_row(value)[1].generative
        z = _sample_z(key_z, generative, params, sample_z)
        x = generative.sample_observation(key_x, params, z)
        c = conditional.parted(value, trained.data.x_shape)[1]
        mean = generative.mean_observation(params, z)
        return {"z": z, "mean": mean, "x": x, "c": c}

    return _draws(sample, key, num, stored)


def sampler(
    trained: trained_runs.Trained,
) -> tuple[Callable[..., Arrays], Callable[..., None]]:
    """What samples x and what draws it: alone, at each label, or at rows' contexts."""
    if trained.at_context is None:
        return samples, draw_samples
    if trained.config.condition == "labels":
        return samples_by_label, draw_samples_by_label
    return samples_by_row, draw_samples


def reconstructions(
    key: PRNGKey, trained: trained_runs.Trained, *, split: str, num: int
) -> Arrays:
    """x of a split, one z from q(z | x) each, and the mean of p(x | z) there."""
    params = trained.params

    def reconstruct(key: PRNGKey, row: Array) -> dict[str, Array]:
        x, model = trained.of_row(trained.data.prepared.value(row))
        generative, recognition, *_ = model
        z = recognition.sample(key, params, recognition.encode(params, x))
        return {"x": x, "z": z, "mean": generative.mean_observation(params, z)}

    rows = trained_runs.spread_rows(trained, split=split, num_images=num)
    return _draws(reconstruct, key, num, rows)


def manifold(trained: trained_runs.Trained, *, size: int) -> Arrays:
    """mean: of p(x | z) [R, C, *X] on a grid of the unit square, for two latents.

    The grid is taken through the inverse CDF of the prior, so that each tile stands
    for the same prior mass: Figure 4 of AEVB (arXiv:1312.6114).
    """
    axis = jax.scipy.stats.norm.ppf((jnp.arange(size) + 0.5) / size)
    z = jnp.stack(jnp.meshgrid(axis, axis[::-1]), axis=-1)
    return {"mean": decoded(trained, z)}


def decoded(trained: trained_runs.Trained, z: Array) -> np.ndarray:
    """Means of p(x | z) [R, C, *X] of codes [R, C, D]."""
    mean = trained.model.generative.mean_observation
    decode = jax.vmap(jax.vmap(mean, in_axes=(None, 0)), in_axes=(None, 0))
    return np.asarray(compilation.program(decode)(trained.params, z))


def _draws(
    draw: Callable[..., dict[str, Array]], key: PRNGKey, num: int, *rows: Array
) -> Arrays:
    """(key, *row) -> arrays, of so many keys, and of rows where it takes them."""

    def together(key: PRNGKey, *rows: Array) -> dict[str, Array]:
        return jax.vmap(draw)(jax.random.split(key, num), *rows)

    arrays = compilation.program(together)(key, *rows)
    return {name: np.asarray(array) for name, array in arrays.items()}


def save_arrays(path: pathlib.Path, arrays: Arrays) -> None:
    """Writes an .npz whole or not at all."""
    with writing.atomically(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def limits(trained: trained_runs.Trained) -> Limits:
    """The values of x that are drawn in black and in white.

    0 and 1 where all x lie between them, else the least and the greatest of all splits.
    """
    if trained.config.settled.binarization != "none":
        return 0.0, 1.0
    ranges = scales.value_ranges(trained.data.source).values()
    return limits_of(np.asarray([*ranges]))


def limits_of(values: np.ndarray) -> Limits:
    """The same of values that are there, NaN left out."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low >= 0.0 and high <= 1.0:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0


def draw_samples(
    arrays: Arrays,
    path: pathlib.Path,
    *,
    limits: Limits,
    source: str = "the prior",
    caption: str = "",
) -> None:
    """Draws the means of sampled images; the caption follows the title."""
    title = _captioned(f"Samples, z from {source} (means of p(x | z))", caption)
    figure = images.grid(arrays["mean"], num_columns=10, title=title, limits=limits)
    files.save(figure, path)


def draw_samples_by_label(
    arrays: Arrays,
    path: pathlib.Path,
    *,
    limits: Limits,
    source: str = "the prior",
    caption: str = "",
) -> None:
    """Draws the means of images given each label; the caption follows the title."""
    labels = [str(label) for label in arrays["label"]]
    if len(labels) > MOST_LISTED:
        labels = [*labels[:2], "...", labels[-1]]
    title = (
        f"Labels {', '.join(labels)}, a row each; a z a column, from {source} (means "
        "of p(x | z, label))"
    )
    num_columns = arrays["mean"].shape[1]
    means = np.concatenate([*arrays["mean"]])
    title = _captioned(title, caption)
    figure = images.grid(means, num_columns=num_columns, title=title, limits=limits)
    files.save(figure, path)


def draw_reconstructions(
    arrays: Arrays, path: pathlib.Path, *, limits: Limits, caption: str = ""
) -> None:
    """Draws images above their reconstructions; the caption follows the title."""
    figure = images.pairs(
        arrays["x"],
        arrays["mean"],
        num_columns=10,
        title=_captioned("Each image above its reconstruction", caption),
        limits=limits,
    )
    files.save(figure, path)


def _captioned(title: str, caption: str) -> str:
    return f"{title}; {caption}" if caption else title


def draw_manifold(
    arrays: Arrays, path: pathlib.Path, *, limits: Limits, caption: str = ""
) -> None:
    """Draws the two-dimensional manifold; the caption follows the title."""
    title = _captioned("Means of p(x | z) over the prior's quantiles", caption)
    files.save(images.manifold(arrays["mean"], title=title, limits=limits), path)


def draw_latents(
    codes: np.ndarray, labels: np.ndarray | None, path: pathlib.Path, *, what: str
) -> None:
    """Draws codes [N, D] colored by label: one or two latents, or the first two
    principal components of more.
    """
    size = codes.shape[1]
    title = f"Codes of {len(codes)} rows: {what}"
    if size == 1:
        figure = latents.histogram(codes[:, 0], labels, x_label="z_1", title=title)
    elif size == 2:
        figure = latents.scatter(
            codes, labels, x_label="z_1", y_label="z_2", title=title
        )
    else:
        centered = codes - codes.mean(axis=0, keepdims=True)
        _, sizes, directions = np.linalg.svd(centered, full_matrices=False)
        shares = 100.0 * sizes**2 / max(float((sizes**2).sum()), 1e-30)
        axes = [
            f"principal component {i + 1} of {size} latents ({shares[i]:.0f}% of their "
            "variance)"
            for i in range(2)
        ]
        figure = latents.scatter(
            centered @ directions[:2].T,
            labels,
            x_label=axes[0],
            y_label=axes[1],
            title=title,
        )
    files.save(figure, path)


def draw_neighbors(
    queries: np.ndarray, neighbors: np.ndarray, path: pathlib.Path, *, limits: Limits
) -> None:
    """Draws test images [Q, *X] with their nearest training images [Q, K, *X]."""
    title = "Test images, and the training images of the nearest codes"
    parts = queries[:, None], neighbors
    files.save(images.groups(parts, title=title, limits=limits), path)


def draw_curves(trained: trained_runs.Trained, workdir: pathlib.Path) -> None:
    """Draws the metrics of the run so far, and from which epoch early stopping took."""
    rows, panels = journal.read(workdir), {}
    places = [row["epoch"] for row in rows if row["step"] == trained.step]
    chosen = places[-1] if places and trained.config.early_stopping else None
    reported, labels = {name for row in rows for name in row}, {}
    gradient, num_samples = trained.config.gradient, trained.config.num_samples
    for metric, unit in METRICS.items():
        for name in trained.data.labeled({metric: 0.0}):
            shown = [name, f"valid_{name}"]
            if reported & set(shown):
                of = "" if "bits" in name else f", {unit}"
                words = name.replace("_", " ")
                panels[f"{words}{of}"] = shown
                if metric == "bound" and not estimators.ESTIMATORS[gradient].of_elbo:
                    labels[name] = f"{words}: {gradient}, {num_samples} samples"
                    labels[f"valid_{name}"] = f"valid {words}: the ELBO"
    panels |= _of_latents(reported)
    figure = curves.training_curves(rows, panels=panels, labels=labels, chosen=chosen)
    files.save(figure, workdir / "training_curves.png")


def _of_latents(reported: set[str]) -> dict[str, list[str]]:
    """The panels of the validation split's latents, of each layer of a ladder."""
    layers = range(1, 1 + sum(name.startswith("valid_kl_z") for name in reported))
    units = [f"valid_active_units_z{i}" for i in layers] or ["valid_active_units"]
    panels = {
        "KL of each layer, nats per example": [f"valid_kl_z{i}" for i in layers],
        "active units": [name for name in units if name in reported],
    }
    return {label: names for label, names in panels.items() if names}


def of_run(
    key: PRNGKey,
    trained: trained_runs.Trained,
    workdir: pathlib.Path,
    *,
    caption: str = "",
) -> None:
    """The pictures that every training run ends with, under its result as a caption."""
    draw_curves(trained, workdir)
    if not trained.is_image:
        print(not_drawn(trained))
        return
    key_samples, key_reconstructions = jax.random.split(key)
    black_white = limits(trained)
    said: dict[str, Any] = {"limits": black_white, "caption": caption}
    sample, draw = sampler(trained)
    draw(sample(key_samples, trained, num=100), workdir / "samples.png", **said)
    split = trained_runs.test_split(trained)
    num = min(50, len(trained.stored(split)))
    arrays = reconstructions(key_reconstructions, trained, split=split, num=num)
    draw_reconstructions(arrays, workdir / "reconstructions.png", **said)
    if has_manifold(trained):
        arrays = manifold(trained, size=20)
        draw_manifold(arrays, workdir / "manifold.png", limits=black_white)


def not_drawn(trained: trained_runs.Trained) -> str:
    """Why there are no pictures of x that is no image."""
    return f"observations of shape {trained.data.x_shape} are no images: not drawn"


def has_manifold(trained: trained_runs.Trained) -> bool:
    """Whether the latents are two with a normal prior, below an image."""
    normal = trained.model.generative.prior_family.name == "standard_normal"
    of_x = trained.at_context is None
    return of_x and normal and trained.num_latents == 2 and trained.is_image
