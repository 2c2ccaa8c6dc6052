"""Ways through the latent space of a trained model, decoded: arrays and pictures."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.command import cli
from experiments.measures import measure, pictures
from experiments.measures.pictures import Arrays, Limits
from experiments.runs import trained_runs
from vae_jax import compilation
from vae_jax.evaluation import interpolation
from vae_jax.plots import files, images
from vae_jax.types import PRNGKey

KINDS = {"linear": interpolation.linear, "spherical": interpolation.spherical}


def chosen(
    trained: trained_runs.Trained, *, split: str, places: tuple[int, ...]
) -> Array:
    """The images of a split at these places, as stored.

    Raises:
        UsageError: if the split is empty or a place is beyond it.
    """
    with cli.user_errors():
        size = trained.size(split)
        outside = [place for place in places if not 0 <= place < size]
        if outside:
            raise ValueError(
                f"--images={','.join(map(str, places))}: {outside[0]} is none of the "
                f"{size} rows of the {split} split, 0 to {size - 1}"
            )
    rows = trained_runs.rows(trained, split=split, num_images=max(places) + 1)
    return rows[jnp.array(places)]


def between(
    key: PRNGKey, trained: trained_runs.Trained, data: Array, *, num_steps: int
) -> Arrays:
    """Straight and spherical paths from the first code to the second, and so on.

    data [2 P, *X] holds pairs one after the other. For each kind: z [P, T, D] and the
    means of p(x | z) [P, T, *X]; x [2 P, *X] are the images themselves.
    """
    codes = jnp.asarray(measure.codes(key, trained, data))
    times = jnp.linspace(0.0, 1.0, num_steps, dtype=codes.dtype)
    arrays = {"x": np.asarray(trained.data.prepared.value(data))}
    for name, kind in KINDS.items():
        path = compilation.program(jax.vmap(kind, (0, 0, None)))
        z = path(codes[::2], codes[1::2], times)
        arrays |= {
            f"{name}_z": np.asarray(z),
            f"{name}_mean": pictures.decoded(trained, z),
        }
    return arrays


def along(
    key: PRNGKey, trained: trained_runs.Trained, row: Array, *, num_steps: int, num: int
) -> Arrays:
    """One latent at a time of an image's code, over the prior's width: x stays else.

    Of the `num` latents with the greatest mean KL on the reported split, the greatest
    first; by the variance of their codes where q has no KL per latent. Values run from
    the 1st to the 99th percentile of the prior's draws; bits take 0 and 1, and a symbol
    of a code what it has on the split.

    Returns latents [L], their kl or variance [L], z [L, T, D] and mean [L, T, *X], and
    the sizes of the layers of z, of which the i-th latent of layer l is called z_l[i].
    """
    key_code, key_order, key_prior = jax.random.split(key, 3)
    if trained.has_point_mass:
        return _along_symbols(trained, row, num_steps=num_steps, num=num)
    scores, what = _scores(key_order, trained)
    latents = np.argsort(-scores)[: min(num, len(scores))]
    code = jnp.asarray(measure.codes(key_code, trained, row[None]))[0]
    if not trained.has_real_latents:
        code, values = jnp.round(code), jnp.tile(jnp.array([0.0, 1.0]), (len(code), 1))
    else:
        generative = trained.model.generative
        prior = interpolation.prior_values(generative, num_values=num_steps)
        values = compilation.program(prior)(key_prior, trained.params)
    z = interpolation.along_latents(code, jnp.asarray(latents), values[latents])
    sizes = np.array(trained.layer_sizes)
    return _decoded(trained, row, z, latents, {what: scores[latents]}, sizes)


def _along_symbols(
    trained: trained_runs.Trained, row: Array, *, num_steps: int, num: int
) -> Arrays:
    """As `along` of a code, place by place, at equal distances among its symbols."""
    key, rows = jax.random.key(0), _some_rows(trained)  # q is a point mass
    width = measure.symbol_width(trained)
    code = measure.codes(key, trained, row[None]).reshape(-1, width)
    codes = measure.codes(key, trained, rows).reshape(len(rows), -1, width)
    variance = codes.var(axis=0).sum(axis=-1)
    places = np.argsort(-variance)[:num]
    z = np.tile(code, (len(places), num_steps, 1, 1))
    for of_place, place in zip(z, places, strict=True):
        symbols = np.unique(codes[:, place], axis=0)
        steps = np.linspace(0, len(symbols) - 1, num_steps).round().astype(int)
        of_place[:, place] = symbols[steps]
    z = jnp.asarray(z.reshape(len(places), num_steps, -1))
    scores, sizes = {"variance": variance[places]}, np.array([len(code)])
    return _decoded(trained, row, z, places, scores, sizes)


def _decoded(
    trained: trained_runs.Trained,
    row: Array,
    z: Array,
    latents: np.ndarray,
    scores: dict[str, np.ndarray],
    layer_sizes: np.ndarray,
) -> Arrays:
    return {
        "latents": latents,
        **scores,
        "z": np.asarray(z),
        "mean": pictures.decoded(trained, z),
        "x": np.asarray(trained.data.prepared.value(row)),
        "layer_sizes": layer_sizes,
    }


def draw_between(arrays: Arrays, path: pathlib.Path, *, limits: Limits) -> None:
    """A picture of each kind of path: the images themselves at both ends."""
    first, last = arrays["x"][::2, None], arrays["x"][1::2, None]
    for name in KINDS:
        parts = first, arrays[f"{name}_mean"], last
        title = f"Between the codes of two images, {name} (means of p(x | z))"
        figure = images.groups(parts, title=title, limits=limits)
        files.save(figure, path.with_stem(f"{path.stem}_{name}"))


def draw_along(arrays: Arrays, path: pathlib.Path, *, limits: Limits) -> None:
    """A row of means for each latent, that of the greatest KL at the top."""
    by = "KL" if "kl" in arrays else "variance of the code"
    ends, places = np.cumsum(arrays["layer_sizes"]), arrays["latents"]
    layers = np.searchsorted(ends, places, side="right")
    starts = ends - arrays["layer_sizes"]
    pairs = zip(layers + 1, places - starts[layers] + 1, strict=True)
    of_one = len(ends) == 1
    names = ", ".join(f"z_{i}" if of_one else f"z_{layer}[{i}]" for layer, i in pairs)
    title = f"One latent moves, greatest {by} at the top: {names}"
    files.save(images.groups([arrays["mean"]], title=title, limits=limits), path)


def _scores(key: PRNGKey, trained: trained_runs.Trained) -> tuple[np.ndarray, str]:
    """What the latents are ordered by, and its name."""
    rows, split = _some_rows(trained), trained_runs.test_split(trained)
    latents = measure.latents(trained, split=split, num_images=len(rows))
    if "kl_per_latent" in latents:
        return np.asarray(latents["kl_per_latent"]), "kl"
    return measure.codes(key, trained, rows).var(axis=0), "variance"


def _some_rows(trained: trained_runs.Trained) -> Array:
    split = trained_runs.test_split(trained)
    size = min(measure.DECODED_ROWS, len(trained.stored(split)))
    return trained_runs.rows(trained, split=split, num_images=size)
