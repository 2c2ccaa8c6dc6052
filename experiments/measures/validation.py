"""Bounds of the validation split, taken while a model trains."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choices import estimators
from experiments.choices.config import Config
from experiments.measures import measure
from experiments.runs.fit import Validate
from experiments.runs.runs import Run
from vae_jax.estimators import importance
from vae_jax.evaluation import ablation, representation
from vae_jax.types import Params, PRNGKey

MOST_SAMPLES = 10  # of an image where --valid_samples leaves it open
ENOUGH = 10_000  # samples of all images: more tell the mean of the ELBO no better


def num_samples(config: Config, num_rows: int) -> int:
    """Samples of each of the rows of a validation split."""
    if config.valid_samples:
        return config.valid_samples
    if config.watch == "importance":  # the number is a part of the bound
        return MOST_SAMPLES
    return max(1, min(MOST_SAMPLES, ENOUGH // num_rows))


def build(run: Run) -> Validate | None:
    """What measures the validation split as `fit.fit` asks; None without a split or q.

    MCEM's q is made of HMC chains, for which an epoch's end is no time.
    """
    prepared = run.data.prepared
    if not len(prepared.valid) or run.config.algorithm == "mcem":
        return None
    valid = jnp.asarray(prepared.valid)
    size = num_samples(run.config, len(valid))
    terms, bounds = (
        measure.over_rows(
            estimate(run.model, num_samples=size),
            prepared.value,
            num_decoded=size,
            mesh=run.mesh,
        )
        for estimate in (estimators.elbo_terms, importance.iwae)
    )
    codes = kls = None  # of latents: cheap where an encoder gives them without decoding
    has_codes = run.config.has_encoder and run.model.recognition.moments is not None
    if run.model.hierarchy is not None:
        of_groups = ablation.kl_of_groups(run.model, num_samples=1)
        kls = measure.over_rows(of_groups, prepared.value, num_decoded=1, mesh=run.mesh)
    elif has_codes and len(valid) > 1:
        codes = measure.codes_over_rows(run.model, prepared.value, mesh=run.mesh)

    def validate(key: PRNGKey, params: Params) -> dict[str, float]:
        nats = {name: _mean(x) for name, x in terms(key, params, valid).items()}
        reconstruction, kl = nats["reconstruction"], nats["kl"]
        elbo = reconstruction - kl
        two = {"bound": elbo, "reconstruction": reconstruction, "kl": kl}
        measured = two | nats
        if codes is not None:
            means = codes(jax.random.clone(key), params, valid)
            measured["active_units"] = float(representation.active_units(means))
        if kls is not None:
            each = np.asarray(kls(jax.random.clone(key), params, valid))
            counts = measure.groups_of(run.model, params, run.data.x_shape)
            sizes = run.model.layer_sizes(params)
            measured |= measure.active_units(each.mean(0, np.float64), counts, sizes)
        if run.config.watch == "importance":
            each = bounds(jax.random.clone(key), params, valid)
            measured["importance_bound"] = _mean(each)
        return measured

    return validate


def _mean(nats: jax.Array) -> float:
    return float(np.asarray(nats).mean(dtype=np.float64))
