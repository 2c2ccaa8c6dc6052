"""The ways to complete images, over many images, and log p of what was hidden."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from experiments.choices.algorithms import ALGORITHMS
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax import vae
from vae_jax.evaluation import completion, examples, marginal, weights
from vae_jax.inference import mcem
from vae_jax.types import Model, Params, PRNGKey

METHODS = ("pseudo_gibbs", "metropolis_within_gibbs", "importance")
PROPOSALS = ("chain", "encoder")
IMAGES_AT_ONCE = 25
CHAINS_AT_ONCE = 4
INFLATION = 1.2  # a proposal with wider tails than the posterior's


class Settings(NamedTuple):
    """What the methods are run with."""

    num_draws: int
    num_warmup: int
    num_burn_in: int
    thin: int
    importance_samples: int
    proposal: str
    chain: int


class Found(NamedTuple):
    """Completions of N images by one method, on the host."""

    x: np.ndarray  # [N, S, *X]
    mean: np.ndarray  # [N, *X]
    acceptance: np.ndarray  # [N]
    score: np.ndarray  # [N], log mean_s p(x_mis | z_s), nats
    evidence: weights.LogEvidence | None  # of log p(x_obs), where the method has it


def parse(names: str) -> tuple[str, ...]:
    """The methods that a comma-separated list names.

    Raises:
        ValueError: for an unknown name, or none.
    """
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    unknown = [name for name in chosen if name not in METHODS]
    if unknown or not chosen:
        raise ValueError(
            f"--methods={names}: name some of {', '.join(METHODS)}, comma-separated"
        )
    return chosen


def fitting(
    methods: tuple[str, ...],
    trained: trained_runs.Trained,
    *,
    proposal: str,
    chain: int,
) -> tuple[str, ...]:
    """The methods, if the model has what they need.

    Raises:
        ValueError: for steps of a model without an encoder, or a fitted normal of
            binary latents or of fewer draws than latents.
    """
    config = trained.config
    if not ALGORITHMS[config.algorithm].has_encoder and (
        methods != ("importance",) or proposal != "chain"
    ):
        raise ValueError(
            f"--algorithm={config.algorithm} has no encoder to step with: give "
            "--methods=importance --proposal=chain"
        )
    if config.posterior == "bernoulli" and proposal == "chain":
        raise ValueError(
            "--proposal=chain fits a normal, and --posterior=bernoulli has binary "
            "latents: give --proposal=encoder"
        )
    num_latents = config.num_latents + config.top_latents
    if proposal == "chain" and chain <= num_latents:
        raise ValueError(
            f"--chain={chain} must be above the {num_latents} latents, for a normal to "
            "be fitted"
        )
    return methods


def run(
    key: PRNGKey,
    trained: trained_runs.Trained,
    partial: Array,
    truth: Array,
    methods: tuple[str, ...],
    settings: Settings,
) -> dict[str, Found]:
    """Completions of partial images [N, *X] by each method.

    Both chains take the same number of steps before and between their draws.
    """
    model = vae.masked(trained.model)
    score = completion.log_likelihood_of_truth(model.generative)
    steps = {"num_draws": settings.num_draws, "thin": settings.thin}
    warmup, burn_in = settings.num_warmup, settings.num_burn_in
    make = {
        "pseudo_gibbs": lambda: completion.pseudo_gibbs(
            model, num_warmup=warmup + burn_in, **steps
        ),
        "metropolis_within_gibbs": lambda: completion.metropolis_within_gibbs(
            model, num_warmup=warmup, num_burn_in=burn_in, **steps
        ),
        "importance": lambda: completion.importance(
            _proposal(trained, settings),
            num_samples=settings.importance_samples,
            num_draws=settings.num_draws,
            chunk_size=min(measure.IMPORTANCE_CHUNK, settings.importance_samples),
        ),
    }
    found = {}
    for name in methods:
        method: Any = make[name]()

        def one(key: PRNGKey, params: Params, x: Array, method: Any = method) -> tuple:
            made = method(key, params, x[0])
            drawn, evidence = (
                made if isinstance(made, completion.Weighted) else (made, None)
            )
            of_truth = score(params, x[0], x[1], drawn.z)
            return drawn.x, drawn.mean, drawn.acceptance, of_truth, evidence

        at_once = CHAINS_AT_ONCE if name == "importance" else IMAGES_AT_ONCE
        over = examples.over_examples(one, batch_size=at_once)
        both = jax.numpy.stack([partial, truth], axis=1)
        key_method = jax.random.fold_in(key, METHODS.index(name))
        parts = over(key_method, trained.params, both)
        found[name] = Found(*jax.tree.map(np.asarray, parts))
    return found


def log_likelihood(
    key: PRNGKey,
    trained: trained_runs.Trained,
    partial: Array,
    truth: Array,
    found: dict[str, Found],
    settings: Settings,
) -> dict[str, Any]:
    """log p(x_mis | x_obs) = log p(x) - log p(x_obs), by two importance estimates.

    In nats per image, with the sampling error of the mean over these images and its
    standard error as a mean over images of their kind, and what speaks against them.
    The same proposal for both.
    """
    estimate = marginal.importance_sampling(
        _proposal(trained, settings),
        num_samples=settings.importance_samples,
        chunk_size=min(measure.IMPORTANCE_CHUNK, settings.importance_samples),
    )
    over = examples.over_examples(estimate, batch_size=CHAINS_AT_ONCE)
    key_whole, key_partial = jax.random.split(key)
    whole = over(key_whole, trained.params, truth)
    part = found["importance"].evidence if "importance" in found else None
    if part is None:
        part = over(key_partial, trained.params, partial)
    difference = np.asarray(whole.log_p, np.float64) - np.asarray(part.log_p)
    errors = np.hypot(np.asarray(whole.standard_error), np.asarray(part.standard_error))
    sizes = np.stack([whole.effective_sample_size, part.effective_sample_size])
    shapes = np.stack([whole.pareto_k, part.pareto_k])
    result = {
        "log_p_x": float(np.mean(whole.log_p)),
        "log_p_observed": float(np.mean(part.log_p)),
        "log_p_missing_given_observed": float(difference.mean()),
        "sampling_error": float(np.sqrt((errors**2).sum()) / len(errors)),
        "standard_error": measure.standard_error(difference),
        "smallest_effective_sample_size": float(sizes.min()),
        "doubts": [
            f"{what}: {doubt}"
            for what, e in (("log p(x)", whole), ("log p(x_obs)", part))
            for doubt in weights.doubts(e)
        ],
    }
    if np.isfinite(shapes).any():
        result["largest_pareto_k"] = float(np.nanmax(shapes))
    return result


def _proposal(trained: trained_runs.Trained, settings: Settings) -> Model:
    """The joint of partial x, and the q that importance sampling draws from."""
    masked = vae.masked(trained.model)
    if settings.proposal == "encoder":
        return masked
    config = trained.config
    fitted = mcem.fitted_normal(
        jax.random.key(config.seed),
        masked.generative,
        num_latents=config.num_latents + config.top_latents,
        num_samples=settings.chain,
        num_warmup=settings.chain,
        num_leapfrog=10,
        num_starts=1000,
        inflation=INFLATION,
    )
    return vae.model(masked.generative, fitted)
