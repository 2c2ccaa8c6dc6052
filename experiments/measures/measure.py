"""Measurements of a trained model over a split."""

import math
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from experiments.choices import densities, estimators
from experiments.command import cli
from experiments.runs import trained_runs
from experiments.runs.trained_runs import Trained
from vae_jax import codes as discrete_codes
from vae_jax import vector_quantized
from vae_jax.data import batches
from vae_jax.evaluation import ablation, examples, marginal, representation, weights
from vae_jax.training import journal
from vae_jax.types import Model, Params, PRNGKey, PyTree

DECODED_ROWS = 1000  # samples decoded side by side
SILENT_SECONDS = 10.0  # of an evaluation, which then tells how far it is
IMPORTANCE_CHUNK = 500  # importance samples decoded at a time
MEAN_SAMPLES = 100  # of a code, where q has no mean in closed form
NO_KL_PER_LATENT = "no KL of each latent: q or a prior does not factorize over them"
KL_SAMPLES = 10  # of the layers above one, whose KL depends on them


def check_importance_samples(number: int, flag: str = "importance_samples") -> None:
    """Refuses a number of importance samples that does not divide into chunks.

    Raises:
        ValueError: naming the flag and its value.
    """
    if number > IMPORTANCE_CHUNK and number % IMPORTANCE_CHUNK:
        raise ValueError(
            f"--{flag} above {IMPORTANCE_CHUNK} must be a multiple of it, got {number}"
        )


def over_rows(
    estimate: Callable[[PRNGKey, PyTree, Array], PyTree],
    value: batches.Value,
    *,
    num_decoded: int,
    at_once: int = DECODED_ROWS,
    mesh: Mesh | None = None,
) -> Callable[..., PyTree]:
    """Compiles (key, params, rows [N, *X], first=0) -> what an estimate gives of each.

    Args:
        estimate: (key, params, x) -> any tree of arrays, as `examples.over_examples`'s.
        value: raw row -> x, as `Prepared.value`.
        num_decoded: samples of z that the estimate decodes.
        at_once: of those, over all rows, so that memory holds.
        mesh: devices that share the rows.
    """
    size = max(1, at_once // num_decoded)
    return examples.over_examples(estimate, batch_size=size, value=value, mesh=mesh)


def of_rows(
    key: PRNGKey,
    trained: Trained,
    estimate: Callable[[PRNGKey, Any, Array], PyTree],
    data: Array,
    *,
    num_decoded: int,
    at_once: int = DECODED_ROWS,
    batches_a_block: int = 100,
    params: PyTree = None,
    value: batches.Value | None = None,
) -> PyTree:
    """What an estimate of a trained model gives of each row, as `over_rows`.

    Tells how far it is, once it has taken ten seconds.

    Args:
        key: of all rows.
        trained: the model.
        estimate: (key, params, x) -> any tree of arrays.
        data: rows [N, *X] as they are stored.
        num_decoded: as in `over_rows`.
        at_once: as in `over_rows`.
        batches_a_block: of that many samples side by side, in one program that tells
            nothing while it runs.
        params: what the estimate reads, where that is not the model's parameters.
        value: raw row -> x, where the rows are not the model's.
    """
    evaluate = over_rows(
        estimate,
        value or trained.data.prepared.value,
        num_decoded=num_decoded,
        at_once=at_once,
        mesh=trained.mesh,
    )
    at, total = trained.params if params is None else params, len(data)
    together = max(1, at_once // num_decoded)
    num_blocks = math.ceil(total / (together * batches_a_block))
    size = math.ceil(total / num_blocks)
    parts, progress, started = [], None, time.monotonic()
    for done in range(0, total, size):
        first = min(done, total - size)  # one size for all: the last reaches back
        rows = jax.lax.dynamic_slice_in_dim(data, first, size)
        part = jax.block_until_ready(evaluate(key, at, rows, first))
        parts.append(jax.tree.map(operator.itemgetter(slice(done - first, None)), part))
        is_long = time.monotonic() - started > SILENT_SECONDS and first + size < total
        if progress is None and is_long:
            progress = journal.progress(total, initial=first + size, unit="row")
        if progress is not None:
            progress.update(first + size)
    if progress is not None:
        progress.close()
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def moments(
    model: Model,
) -> Callable[[PRNGKey, Params, Array], tuple[Array, Array]]:
    """(key, params, x) -> mean and standard deviation of a q that knows its own."""
    recognition, of_h = model.recognition, model.recognition.moments
    assert of_h is not None

    def of_x(key: PRNGKey, params: Params, x: Array) -> tuple[Array, Array]:
        del key
        return of_h(params, recognition.encode(params, x))

    return of_x


def log_evidence(
    model: Model, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array], weights.LogEvidence]:
    """(key, params, x) -> log p(x) by importance samples from q, some at a time.

    Raises:
        UsageError: for a q that is a point mass, whose samples tell no more than one.
    """
    if densities.traits(model).rounded:
        raise cli.UsageError(
            "log p(x) by importance sampling needs a q that covers p(z | x), and "
            f"{model.recognition.family.name} is a point mass: its ELBO is exact, and "
            "all that it says"
        )
    chunk = min(IMPORTANCE_CHUNK, num_samples)
    return marginal.importance_sampling(
        model, num_samples=num_samples, chunk_size=chunk
    )


def bound(
    key: PRNGKey,
    trained: Trained,
    *,
    split: str,
    num_samples: int,
    num_images: int = 0,
) -> dict[str, float]:
    """ELBO, reconstruction and KL of a split in nats, with the ELBO's standard error.

    Under the names that are true of them (`protocol.Dataset.labeled`). The standard
    error is that of the mean over the images as a sample of their kind. Of a ladder,
    the KL of each layer too.
    """
    terms = estimators.elbo_terms(trained.model, num_samples=num_samples)
    data = trained_runs.spread_rows(trained, split=split, num_images=num_images)
    of_each = of_rows(key, trained, terms, data, num_decoded=num_samples)
    each = {name: np.asarray(term, np.float64) for name, term in of_each.items()}
    reconstruction, kl = each["reconstruction"], each["kl"]
    elbo = reconstruction - kl
    nats = {"elbo": elbo, "reconstruction": reconstruction, "kl": kl, **each}
    (name, _), *_ = labeled = [*trained.data.labeled(nats).items()]
    means = {name: float(values.mean()) for name, values in labeled}
    return {
        name: means.pop(name),
        f"{name}_standard_error": standard_error(elbo),
        **means,
    }


def latents(
    trained: Trained, *, split: str, num_images: int = 0
) -> dict[str, list[float] | float]:
    """KL of each latent in nats, averaged over a split, and the active units.

    Those of a ladder are given the layers above, as draws of q have them, and units are
    active by their KL (`ablation.active`), which is said of each layer as well. Codes
    have no KL but the perplexity of their values, its mean over latents, or that of
    each codebook's rows and the share of them in use. Empty for another q that does not
    factorize: its latents have no KL of their own.
    """
    data = trained_runs.spread_rows(trained, split=split, num_images=num_images)
    if trained.model.hierarchy is not None:
        return _of_layers(trained, data)
    if trained.has_point_mass:
        z = codes(jax.random.key(0), trained, data)
        return _of_symbols(trained, z)
    recognition, kl = trained.model.recognition, trained.model.kl
    moments = recognition.moments
    if kl is None or moments is None or not densities.traits(trained.model).factorizes:
        return {}

    def evaluator(key: PRNGKey, params: Params, x: Array) -> tuple[Array, Array]:
        del key
        h = recognition.encode(params, x)
        return moments(params, h)[0], kl(params, h)

    means, kls = of_rows(jax.random.key(0), trained, evaluator, data, num_decoded=1)
    per_latent = np.asarray(kls, np.float64).mean(axis=0)
    active = representation.active_units(means) if len(means) > 1 else np.nan
    return {"kl_per_latent": per_latent.tolist(), "active_units": float(active)}


def group_counts(trained: Trained) -> tuple[int, ...]:
    """How many groups of latents each layer of a ladder has, from x upward."""
    return groups_of(trained.model, trained.params, trained.data.x_shape)


def groups_of(
    model: Model, params: Params, x_shape: tuple[int, ...]
) -> tuple[int, ...]:
    """As `group_counts`, of any parameters; from shapes alone."""
    x = jax.ShapeDtypeStruct(x_shape, jnp.result_type(float))
    return ablation.group_counts(model, params, x)


def _of_layers(trained: Trained, data: Array) -> dict[str, list[float] | float]:
    estimate = ablation.kl_of_groups(trained.model, num_samples=KL_SAMPLES)
    counts = group_counts(trained)
    kls = of_rows(jax.random.key(0), trained, estimate, data, num_decoded=KL_SAMPLES)
    kl = np.asarray(kls, np.float64).mean(axis=0)
    per_latent = {"kl_per_latent": kl.tolist()}
    return {
        **(per_latent if counts == trained.layer_sizes else {}),
        **active_units(kl, counts, trained.layer_sizes),
    }


def active_units(
    kl: np.ndarray, counts: Sequence[int], sizes: Sequence[int]
) -> dict[str, float]:
    """By the KL of each latent, averaged over data: in all, and of each layer.

    Of those layers alone that `ablation.active` knows it of, and in all of all.
    """
    active = ablation.active(kl, counts, sizes)
    known = {i: float(n) for i, n in enumerate(active, 1) if n is not None}
    in_all = {"active_units": sum(known.values())} if len(known) == len(active) else {}
    return in_all | {f"active_units_z{i}": n for i, n in known.items()}


def symbol_width(trained: Trained) -> int:
    """Entries of z that are one symbol of a code."""
    if trained.model.recognition.family.name != densities.CODEBOOK:
        return 1
    return vector_quantized.read(trained.params).shape[-1]


def _of_symbols(trained: Trained, z: np.ndarray) -> dict[str, list[float] | float]:
    if trained.model.recognition.family.name != densities.CODEBOOK:
        return {
            "perplexity": float(discrete_codes.perplexity(z).mean()),
            "active_units": float(representation.active_units(jnp.asarray(z))),
        }
    num_levels, num_rows, width = vector_quantized.read(trained.params).shape
    # An entry tells the row that it is of.
    first = z.reshape(-1, num_levels, width)[..., 0]
    used = [len(np.unique(of_level)) / num_rows for of_level in first.T]
    return {
        "perplexity": float(discrete_codes.perplexity(first).mean()),
        "used_rows": float(np.mean(used)),
    }


def codes(
    key: PRNGKey, trained: Trained, data: Array, *, sampled: bool = False
) -> np.ndarray:
    """The code of each row: the mean of q(z | x), or one draw of it.

    In closed form, where the key is not read (of a ladder the mean of each layer, given
    those above at theirs), or the mean of 100 draws: a code is noisy only where it is
    asked to be.
    """
    value = trained.data.prepared.value
    evaluate = codes_over_rows(trained.model, value, sampled=sampled, mesh=trained.mesh)
    return np.asarray(evaluate(key, trained.params, data))


def codes_over_rows(
    model: Model,
    value: batches.Value,
    *,
    sampled: bool = False,
    mesh: Mesh | None = None,
) -> Callable[[PRNGKey, Params, Array], Array]:
    """Compiles (key, params, rows [N, *X]) -> the codes [N, D], as `codes` has them."""
    recognition, means = model.recognition, _means(model)
    if sampled or means is None:
        number = 1 if sampled else MEAN_SAMPLES
        estimate = representation.sampled_mean(recognition, num_samples=number)
        return over_rows(estimate, value, num_decoded=number, mesh=mesh)

    def mean(key: PRNGKey, params: Params, x: Array) -> Array:
        del key
        return means(params, recognition.encode(params, x))

    return over_rows(mean, value, num_decoded=1, mesh=mesh)


def _means(model: Model) -> Callable[[Params, PyTree], Array] | None:
    """(params, h) -> the code, where it has a closed form."""
    if model.hierarchy is not None:
        return model.hierarchy.means
    moments = model.recognition.moments
    return moments and (lambda params, h: moments(params, h)[0])


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of independent values; NaN for a single one."""
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(len(values)))
