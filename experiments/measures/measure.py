"""Measurements of a trained model over a split."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from experiments.runs import trained_runs
from vae_jax.data import batches
from vae_jax.estimators import importance, sgvb
from vae_jax.evaluation import examples, marginal, representation, weights
from vae_jax.types import Model, Params, PRNGKey

DECODED_ROWS = 1000  # samples decoded side by side
IMPORTANCE_CHUNK = 500  # importance samples decoded at a time
MEAN_SAMPLES = 100  # of a code, where q has no mean in closed form


def check_importance_samples(number: int) -> None:
    """Refuses a --importance_samples that does not divide into chunks.

    Raises:
        ValueError: naming the flag and its value.
    """
    if number > IMPORTANCE_CHUNK and number % IMPORTANCE_CHUNK:
        raise ValueError(
            f"--importance_samples above {IMPORTANCE_CHUNK} must be a multiple of it, "
            f"got {number}"
        )


def elbo_over_examples(
    model: Model,
    prepared: batches.Prepared,
    *,
    num_samples: int,
    mesh: Mesh | None = None,
) -> Callable[[PRNGKey, Params, Array], Any]:
    """Compiles (key, params, rows [N, *X]) -> ELBO terms of each row."""
    return examples.over_examples(
        sgvb.elbo_terms(model, num_samples=num_samples),
        batch_size=max(1, DECODED_ROWS // num_samples),
        value=prepared.value,
        mesh=mesh,
    )


def importance_bound_over_examples(
    model: Model,
    prepared: batches.Prepared,
    *,
    num_samples: int,
    mesh: Mesh | None = None,
) -> Callable[[PRNGKey, Params, Array], Array]:
    """Compiles (key, params, rows [N, *X]) -> the K-sample bound of each row."""
    return examples.over_examples(
        importance.iwae(model, num_samples=num_samples),
        batch_size=max(1, DECODED_ROWS // num_samples),
        value=prepared.value,
        mesh=mesh,
    )


def evidence_over_examples(
    model: Model,
    *,
    num_samples: int,
    value: Callable[[Array], Array],
    mesh: Mesh | None = None,
) -> Callable[[PRNGKey, Params, Array], weights.LogEvidence]:
    """Compiles (key, params, rows [N, *X]) -> log p(x) of each row, sampled from q."""
    chunk = min(IMPORTANCE_CHUNK, num_samples)
    estimate = marginal.importance_sampling(
        model, num_samples=num_samples, chunk_size=chunk
    )
    batch_size = max(1, IMPORTANCE_CHUNK // chunk)
    return examples.over_examples(
        estimate, batch_size=batch_size, value=value, mesh=mesh
    )


def bound(
    key: PRNGKey,
    trained: trained_runs.Trained,
    *,
    split: str,
    num_samples: int,
    num_images: int = 0,
) -> dict[str, float]:
    """ELBO, reconstruction and KL of a split in nats, with the ELBO's standard error.

    The standard error is that of the mean over the images as a sample of their kind.
    """
    evaluate = elbo_over_examples(
        trained.model,
        trained.data.prepared,
        num_samples=num_samples,
        mesh=trained.mesh,
    )
    data = trained_runs.spread_rows(trained, split=split, num_images=num_images)
    terms = evaluate(key, trained.params, data)
    reconstruction, kl = (np.asarray(term, np.float64) for term in terms)
    return {
        "elbo": float((reconstruction - kl).mean()),
        "elbo_standard_error": standard_error(reconstruction - kl),
        "reconstruction": float(reconstruction.mean()),
        "kl": float(kl.mean()),
    }


def latents(
    trained: trained_runs.Trained, *, split: str, num_images: int = 0
) -> dict[str, list[float] | float]:
    """KL of each latent in nats, averaged over a split, and the active units.

    Empty for a q that does not factorize: its latents have no KL of their own.
    """
    kl, moments = trained.model.kl, trained.model.recognition.moments
    if kl is None or moments is None or not _factorizes(trained.model):
        return {}

    def evaluator(key: PRNGKey, params: Params, x: Array) -> tuple[Array, Array]:
        del key
        h = trained.model.recognition.encode(params, x)
        return moments(params, h)[0], kl(params, h)

    evaluate = examples.over_examples(
        evaluator,
        batch_size=DECODED_ROWS,
        value=trained.data.prepared.value,
        mesh=trained.mesh,
    )
    data = trained_runs.spread_rows(trained, split=split, num_images=num_images)
    means, kls = evaluate(jax.random.key(0), trained.params, data)
    per_latent = np.asarray(kls, np.float64).mean(axis=0)
    active = representation.active_units(means) if len(means) > 1 else np.nan
    return {"kl_per_latent": per_latent.tolist(), "active_units": float(active)}


def _factorizes(model: Model) -> bool:
    """Whether the KL is a sum over latents."""
    return model.recognition.family.name in ("diag_normal", "bernoulli")


def codes(
    key: PRNGKey, trained: trained_runs.Trained, data: Array, *, sampled: bool = False
) -> np.ndarray:
    """The code of each row: the mean of q(z | x), or one draw of it.

    In closed form, where the key is not read, or the mean of 100 draws: a code is noisy
    only where it is asked to be.
    """
    evaluate = codes_over_examples(
        trained.model,
        trained.data.prepared,
        sampled=sampled,
        mesh=trained.mesh,
    )
    return np.asarray(evaluate(key, trained.params, data))


def codes_over_examples(
    model: Model,
    prepared: batches.Prepared,
    *,
    sampled: bool = False,
    mesh: Mesh | None = None,
) -> Callable[[PRNGKey, Params, Array], Array]:
    """Compiles (key, params, rows [N, *X]) -> the codes [N, D], as `codes` has them."""
    recognition = model.recognition
    moments = None if sampled else recognition.moments
    num_samples = 1 if sampled or moments else MEAN_SAMPLES

    def mean(key: PRNGKey, params: Params, x: Array) -> Array:
        del key
        assert moments is not None
        return moments(params, recognition.encode(params, x))[0]

    return examples.over_examples(
        mean
        if moments
        else representation.sampled_mean(recognition, num_samples=num_samples),
        batch_size=max(1, DECODED_ROWS // num_samples),
        value=prepared.value,
        mesh=mesh,
    )


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of independent values; NaN for a single one."""
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(len(values)))
