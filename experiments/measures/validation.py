"""Bounds of the validation split, taken while a model trains."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measures import measure
from experiments.runs.fit import Validate
from experiments.runs.runs import Run
from vae_jax.estimators import importance, sgvb
from vae_jax.evaluation import representation
from vae_jax.types import Params, PRNGKey


def build(run: Run) -> Validate | None:
    """What measures the validation split as `fit.fit` asks; None without a split or q.

    MCEM's q is made of HMC chains, for which an epoch's end is no time.
    """
    prepared, size = run.data.prepared, run.config.valid_samples
    if not len(prepared.valid) or run.config.algorithm == "mcem":
        return None
    valid = jnp.asarray(prepared.valid)
    terms, bounds = (
        measure.over_rows(
            estimate(run.model, num_samples=size),
            prepared.value,
            num_decoded=size,
            mesh=run.mesh,
        )
        for estimate in (sgvb.elbo_terms, importance.iwae)
    )
    codes = None  # they are cheap where an encoder gives them without samples
    has_codes = run.config.has_encoder and run.model.recognition.moments is not None
    if has_codes and len(valid) > 1:
        codes = measure.codes_over_rows(run.model, prepared.value, mesh=run.mesh)

    def validate(key: PRNGKey, params: Params) -> dict[str, float]:
        reconstruction, kl = map(_mean, terms(key, params, valid))
        measured = {
            "bound": reconstruction - kl,
            "reconstruction": reconstruction,
            "kl": kl,
        }
        if codes is not None:
            means = codes(jax.random.clone(key), params, valid)
            measured["active_units"] = float(representation.active_units(means))
        if run.config.watch == "importance":
            nats = bounds(jax.random.clone(key), params, valid)
            measured["importance_bound"] = _mean(nats)
        return measured

    return validate


def _mean(nats: jax.Array) -> float:
    return float(np.asarray(nats).mean(dtype=np.float64))
