"""The best q of every row by itself, of two families, and log p(x) sampled from it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.choices import models
from experiments.choices.config import Config as TrainConfig
from experiments.inference_gaps.config import Config
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax import flows, networks, posteriors, vae
from vae_jax.evaluation import gaps
from vae_jax.types import Conditional, Params, PRNGKey

ROWS_AT_ONCE = 20
START_SCALE = 0.1  # of a fresh flow's parameters: near the identity, not at a saddle


class LocalQ(NamedTuple):
    """One family's q* of one row, or stacked on many."""

    bound: Array  # nats
    log_p: Array  # by importance samples from q*, nats
    converged: Array


def best(
    trained: trained_runs.Trained, config: Config
) -> Callable[[PRNGKey, Params, Array], dict[str, LocalQ]]:
    """(key, params, x) -> q* of one row: diagonal, and a flow.

    The flow's networks are the row's own. Where the model's q is that flow, the search
    starts at the encoder's; else at the diagonal q* and near the identity.
    """
    size, has_flow = (
        trained.config.num_latents,
        trained.config.posterior != "diag_normal",
    )
    if has_flow:
        flow = models.posterior(trained.config)
    else:
        flow = _fresh_flow(trained.config, config.flow_layers)
    # Steps that are right for a fresh flow throw trained networks off.
    rate = config.flow_rate if has_flow else config.local_rate
    flow_family = gaps.with_parameters_in_h(flow)
    fit_diagonal = _search(
        trained, posteriors.diag_normal(size), config, learning_rate=config.local_rate
    )
    fit_flow = _search(trained, flow_family, config, learning_rate=rate)

    def fit(key: PRNGKey, params: Params, x: Array) -> dict[str, LocalQ]:
        key_diagonal, key_flow, key_start = jax.random.split(key, 3)
        h = trained.model.recognition.encode(params, x)
        best_h, diagonal = fit_diagonal(key_diagonal, params, x, h[: 2 * size])
        if has_flow:
            flow_params = params.recognition["posterior"]
        else:
            fresh = flow.init(key_start)
            flow_params = jax.tree.map(lambda leaf: START_SCALE * leaf, fresh)
            context = jnp.zeros((flow.width - 2 * size,), h.dtype)
            h = jnp.concatenate([best_h, context])
        start = gaps.parameters_into_h(flow_params, h)
        return {"diagonal": diagonal, "flow": fit_flow(key_flow, params, x, start)[1]}

    return fit


def _fresh_flow(config: TrainConfig, num_layers: int) -> Conditional:
    """Couplings without a context: a row's own networks need none."""
    size, passed = config.num_latents, config.num_latents // 2

    def layer(i: int) -> flows.Flow:
        network = networks.mlp(passed, config.hidden[:1], 2 * (size - passed))
        return flows.affine_coupling(network, size, flip=i % 2 == 1)

    layers = flows.chain(*(layer(i) for i in range(num_layers)))
    return posteriors.flow(posteriors.diag_normal(size), layers)


def _search(
    trained: trained_runs.Trained,
    family: Conditional,
    config: Config,
    *,
    learning_rate: float,
) -> Callable[[PRNGKey, Params, Array, Array], tuple[Array, LocalQ]]:
    """(key, params, x, start) -> the h of q*, and what is measured of it."""
    generative = trained.model.generative
    search = gaps.fit_local(
        generative,
        family,
        num_samples=config.local_samples,
        num_steps=config.local_steps,
        learning_rate=learning_rate,
        tolerance=config.tolerance,
        max_rounds=config.local_rounds,
        num_evaluated=config.eval_samples,
    )

    def fit(
        key: PRNGKey, params: Params, x: Array, start: Array
    ) -> tuple[Array, LocalQ]:
        key_search, key_evidence = jax.random.split(key)
        best = search(key_search, params, x, start)
        evidence = measure.log_evidence(
            vae.model(generative, vae.recognition(lambda params, x: best.h, family)),
            num_samples=config.importance_samples,
        )(key_evidence, params, x)
        return best.h, LocalQ(best.bound, evidence.log_p, best.converged)

    return fit
