"""Bounds of the validation split, taken while a model trains."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choices.algorithms import ALGORITHMS
from experiments.measures import measure
from experiments.runs import metrics, runs
from experiments.runs.runs import Run, Saved
from vae_jax.evaluation import representation
from vae_jax.types import Params, PRNGKey

Validate: TypeAlias = Callable[[PRNGKey, Params], dict[str, float]]
WATCHED = {"elbo": "valid_bound", "importance": "valid_importance_bound"}


def build(run: Run) -> Validate | None:
    """(key, params) -> bounds of the validation split; None without a split or a q.

    MCEM's q is made of HMC chains, for which an epoch's end is no time.
    """
    prepared, size = run.data.prepared, run.config.valid_samples
    if not len(prepared.valid) or run.config.algorithm == "mcem":
        return None
    valid = jnp.asarray(prepared.valid)
    terms = measure.elbo_over_examples(
        run.model, prepared, num_samples=size, mesh=run.mesh
    )
    importance = measure.importance_bound_over_examples(
        run.model, prepared, num_samples=size, mesh=run.mesh
    )

    codes = None
    if _has_cheap_codes(run) and len(valid) > 1:
        codes = measure.codes_over_examples(run.model, prepared, mesh=run.mesh)

    def validate(key: PRNGKey, params: Params) -> dict[str, float]:
        drawn = terms(key, params, valid)
        reconstruction, kl = (
            float(np.asarray(term).mean(dtype=np.float64)) for term in drawn
        )
        found = {
            "valid_bound": reconstruction - kl,
            "valid_reconstruction": reconstruction,
            "valid_kl": kl,
        }
        if codes is not None:
            means = codes(jax.random.clone(key), params, valid)
            found["valid_active_units"] = float(representation.active_units(means))
        if run.config.watch == "importance":
            nats = importance(jax.random.clone(key), params, valid)
            mean = np.asarray(nats).mean(dtype=np.float64)
            found["valid_importance_bound"] = float(mean)
        return found

    return validate


def update(run: Run, saved: Saved, validate: Validate) -> tuple[Saved, dict[str, Any]]:
    """Takes the validation bounds, and keeps the parameters that are best so far."""
    step, params = saved.run.step, saved.run.inner.params
    keys = runs.fold_in(run.keys.evaluation, step)
    if not keys.ndim:
        found = {name: np.asarray(x) for name, x in validate(keys, params).items()}
    else:  # one by one: validation has its own memory, and is compiled once
        drawn = [validate(keys[i], runs.member(params, i)) for i in range(len(keys))]
        found = {name: np.array([each[name] for each in drawn]) for name in drawn[0]}
    bound = jnp.asarray(found[WATCHED[run.config.watch]], saved.best_bound.dtype)
    better = bound > saved.best_bound

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        of_runs = better.reshape(better.shape + (1,) * (new.ndim - better.ndim))
        return jnp.where(of_runs, new, old)

    saved = Saved(
        saved.run,
        jax.tree.map(chosen, params, saved.best),
        chosen(bound, saved.best_bound),
        chosen(step, saved.best_step),
    )
    row: dict[str, Any] = {}
    for name, values in found.items():
        row |= metrics.over_runs(name, values)
    return saved, row


def _has_cheap_codes(run: Run) -> bool:
    """Whether an encoder gives E_q[z | x] without samples or a search."""
    has_encoder = ALGORITHMS[run.config.algorithm].has_encoder
    return has_encoder and run.model.recognition.moments is not None
