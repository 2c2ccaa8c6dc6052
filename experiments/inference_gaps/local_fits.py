"""The best q of every row by itself, of two families, and log p(x) sampled from it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.choices import models
from experiments.choices.config import Config
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax import flows, networks, posteriors, vae
from vae_jax.evaluation import examples, gaps, marginal
from vae_jax.types import Conditional, Params, PRNGKey, Recognition

ROWS_AT_ONCE = 20
START_SCALE = 0.1  # of a fresh flow's parameters: near the identity, not at a saddle


class Settings(NamedTuple):
    """Of the search, and of what is measured at its end."""

    eval_samples: int
    importance_samples: int
    local_samples: int
    local_steps: int
    local_rounds: int
    local_rate: float
    flow_rate: float
    tolerance: float
    flow_layers: int


class Fitted(NamedTuple):
    """One family's q* of one row, or stacked on many."""

    bound: Array  # nats
    log_p: Array  # by importance samples from q*, nats
    converged: Array


def check(config: Config) -> None:
    """Refuses a run whose q has no diagonal normal to start from.

    Raises:
        ValueError: naming the flags.
    """
    if config.top_latents or config.algorithm not in ("aevb", "wake_sleep", "rws"):
        raise ValueError(
            "local fits need one layer of latents and an encoder: --top_latents="
            f"{config.top_latents} --algorithm={config.algorithm} do not fit"
        )


def over_rows(
    trained: trained_runs.Trained, settings: Settings
) -> Callable[[PRNGKey, Params, Array], dict[str, Fitted]]:
    """Compiles (key, params, rows [N, *X]) -> q* of each row: diagonal, and a flow.

    The flow's networks are the row's own. Where the model's q is that flow, the search
    starts at the encoder's; else at the diagonal q* and near the identity.
    """
    config = trained.config
    size = config.num_latents
    amortized = models.posterior(config)
    diagonal = posteriors.diag_normal(size)
    has_flow = config.posterior != "diag_normal"
    flow = amortized if has_flow else _fresh_flow(config, settings.flow_layers)
    # Steps that are right for a fresh flow throw trained networks off.
    rate = settings.flow_rate if has_flow else settings.local_rate
    families = {
        "diagonal": _searched(
            trained, diagonal, settings, learning_rate=settings.local_rate
        ),
        "flow": _searched(
            trained, gaps.with_parameters_in_h(flow), settings, learning_rate=rate
        ),
    }

    def fit(key: PRNGKey, params: Params, x: Array) -> dict[str, Fitted]:
        key_diagonal, key_flow, key_start = jax.random.split(key, 3)
        h = trained.model.recognition.encode(params, x)
        at_diagonal, found = families["diagonal"](
            key_diagonal, params, x, h[: 2 * size]
        )
        if has_flow:
            own = params.recognition["posterior"]
        else:
            own = jax.tree.map(lambda leaf: START_SCALE * leaf, flow.init(key_start))
            context = jnp.zeros((flow.width - 2 * size,), h.dtype)
            h = jnp.concatenate([at_diagonal, context])
        start = gaps.parameters_into_h(own, h)
        return {
            "diagonal": found,
            "flow": families["flow"](key_flow, params, x, start)[1],
        }

    return examples.over_examples(
        fit, batch_size=ROWS_AT_ONCE, value=trained.data.prepared.value
    )


def _fresh_flow(config: Config, num_layers: int) -> Conditional:
    """Couplings without a context: a row's own networks need none."""
    size, passed = config.num_latents, config.num_latents // 2

    def layer(i: int) -> flows.Flow:
        network = networks.mlp(passed, config.hidden[:1], 2 * (size - passed))
        return flows.affine_coupling(network, size, flip=i % 2 == 1)

    layers = flows.chain(*(layer(i) for i in range(num_layers)))
    return posteriors.flow(posteriors.diag_normal(size), layers)


def _searched(
    trained: trained_runs.Trained,
    family: Conditional,
    settings: Settings,
    *,
    learning_rate: float,
) -> Callable[[PRNGKey, Params, Array, Array], tuple[Array, Fitted]]:
    generative = trained.model.generative
    search = gaps.fit_local(
        generative,
        family,
        num_samples=settings.local_samples,
        num_steps=settings.local_steps,
        learning_rate=learning_rate,
        tolerance=settings.tolerance,
        max_rounds=settings.local_rounds,
        num_evaluated=settings.eval_samples,
    )

    def fit(
        key: PRNGKey, params: Params, x: Array, start: Array
    ) -> tuple[Array, Fitted]:
        key_search, key_evidence = jax.random.split(key)
        found = search(key_search, params, x, start)
        evidence = marginal.importance_sampling(
            vae.model(generative, _at(family, found.h)),
            num_samples=settings.importance_samples,
            chunk_size=min(measure.IMPORTANCE_CHUNK, settings.importance_samples),
        )(key_evidence, params, x)
        return found.h, Fitted(found.bound, evidence.log_p, found.converged)

    return fit


def _at(family: Conditional, h: Array) -> Recognition:
    """q(z | h) whatever x is."""
    return vae.recognition(lambda params, x: h, family)
