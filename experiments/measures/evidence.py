"""Estimates of log p(x) of a trained model, by several methods on the same images."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.command import cli
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax.evaluation import annealed, annealing, examples, hmc_density, weights
from vae_jax.types import Params, PRNGKey, PyTree

METHODS = ("is", "ais", "bdmc", "hmc_density")
SCHEDULES = {"linear": annealing.linear, "sigmoid": annealing.sigmoid}
CHAINS_AT_ONCE = 320  # all decoded side by side


class Settings(NamedTuple):
    """What the methods are run with."""

    importance_samples: int
    num_temperatures: int
    num_chains: int
    num_leapfrog: int
    schedule: str
    base: str  # prior, or q
    num_simulated: int
    hmc_samples: int


class Estimated(NamedTuple):
    """One method's figures, and log p-hat of each image where it has them."""

    figures: dict[str, Any]
    log_p: np.ndarray | None


def parse(names: str) -> tuple[str, ...]:
    """The methods named in a comma-separated list, in that order.

    Raises:
        ValueError: if one is unknown.
    """
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in chosen:
        if name not in METHODS:
            raise ValueError(
                f"--evidence has no method {name!r}: choose from {', '.join(METHODS)}"
            )
    return chosen


def check(trained: trained_runs.Trained, methods: tuple[str, ...]) -> None:
    """Refuses a method that the model's latents do not allow.

    Raises:
        UsageError: naming both.
    """
    if "hmc_density" in methods and trained.config.posterior == "bernoulli":
        raise cli.UsageError(
            "--evidence=hmc_density needs real latents, and --posterior=bernoulli has "
            "binary ones; is, ais and bdmc do"
        )


def side_by_side(
    keys: Sequence[PRNGKey],
    trained: trained_runs.Trained,
    settings: Settings,
    methods: tuple[str, ...],
    *,
    split: str,
    num_images: int = 0,
) -> dict[str, dict[str, Any]]:
    """Figures of each method on the same rows, those of a difference to `is` paired.

    keys are those of METHODS, so a method's figures do not depend on the others asked.
    """
    check(trained, methods)
    data = trained_runs.spread_rows(trained, split=split, num_images=num_images)
    found: dict[str, Estimated] = {}
    for name in methods:
        key = keys[METHODS.index(name)]
        start = time.perf_counter()
        found[name] = _BY_NAME[name](key, trained, settings, data)
        found[name].figures["seconds"] = time.perf_counter() - start
    if "is" in found:
        for name, estimated in found.items():
            if name != "is" and estimated.log_p is not None:
                difference = estimated.log_p - found["is"].log_p
                estimated.figures["above_is"] = float(difference.mean())
                error = measure.standard_error(difference)
                estimated.figures["above_is_standard_error"] = error
    return {name: estimated.figures for name, estimated in found.items()}


def table(evidence: dict[str, dict[str, Any]]) -> list[str]:
    """A line of figures for each method, then what speaks against them."""
    lines = [
        "log p(x), nats: mean over images, its standard error, the part of it that is",
        "sampling, the least effective sample size, the largest k-hat, the acceptance",
    ]
    for name, figures in evidence.items():
        if name == "bdmc":
            lines.append(
                f"  {name:<12} on {figures['num_simulated']} simulated images: lower "
                f"{figures['lower']:.3f}, upper {figures['upper']:.3f}, gap "
                f"{figures['gap']:.3f} +- {figures['gap_standard_error']:.3f}, "
                f"acceptance {figures['acceptance']:.2f} ({figures['seconds']:.0f} s)"
            )
            continue
        numbers = "".join(
            f"{figures[field]:10.3f}" if field in figures else " " * 9 + "-"
            for field in (
                *("log_p", "log_p_standard_error", "log_p_sampling_error"),
                *("smallest_effective_sample_size", "largest_pareto_k", "acceptance"),
            )
        )
        lines.append(f"  {name:<12}{numbers} ({figures['seconds']:.0f} s)")
        if "above_is" in figures:
            lines.append(
                f"  {'':<12}above is by {figures['above_is']:.3f} +- "
                f"{figures['above_is_standard_error']:.3f}, paired"
            )
    for name, figures in evidence.items():
        lines.extend(f"  warning, {name}: {doubt}" for doubt in figures["doubts"])
    return lines


def importance_sampling(
    key: PRNGKey, trained: trained_runs.Trained, data: Array, *, num_samples: int
) -> Estimated:
    """log p-hat of rows by importance samples from q."""
    evaluate = measure.evidence_over_examples(
        trained.model,
        num_samples=num_samples,
        value=trained.data.prepared.value,
        mesh=trained.mesh,
    )
    drawn = evaluate(key, trained.params, data)
    return _summarized(drawn, doubts=weights.doubts(drawn))


def _importance(
    key: PRNGKey, trained: trained_runs.Trained, settings: Settings, data: Array
) -> Estimated:
    number = settings.importance_samples
    return importance_sampling(key, trained, data, num_samples=number)


def annealed_importance_sampling(
    key: PRNGKey, trained: trained_runs.Trained, settings: Settings, data: Array
) -> Estimated:
    """log p-hat of rows by chains from the prior, or from q, to the posterior.

    Raises:
        UsageError: if the chains never accept, or weights overflow.
    """
    estimator = annealed.ais(
        trained.model.generative,
        _chains(trained, settings),
        recognition=trained.model.recognition if settings.base == "q" else None,
    )
    drawn = _over(trained, settings, estimator)(key, trained.params, data)
    _check(drawn)
    return _summarized(drawn, doubts=[])


def _bidirectional(
    key: PRNGKey, trained: trained_runs.Trained, settings: Settings, data: Array
) -> Estimated:
    """On images that the model draws, where an exact posterior draw is at hand."""
    del data
    both = annealed.bidirectional(
        trained.model.generative,
        _chains(trained, settings),
        recognition=trained.model.recognition if settings.base == "q" else None,
    )

    def estimator(key: PRNGKey, params: Params, index: Array) -> annealed.Sandwich:
        del index
        return both(key, params)

    evaluate = examples.over_examples(
        estimator, batch_size=_images_at_once(settings), mesh=trained.mesh
    )
    found = evaluate(key, trained.params, jnp.arange(settings.num_simulated))
    _check(found.lower)
    _check(found.upper)
    lower, upper = (
        np.asarray(side.log_p, np.float64) for side in (found.lower, found.upper)
    )
    figures = {
        "lower": float(lower.mean()),
        "upper": float(upper.mean()),
        "gap": float((upper - lower).mean()),
        "gap_standard_error": measure.standard_error(upper - lower),
        "num_simulated": settings.num_simulated,
        "acceptance": float(np.asarray(found.lower.acceptance).mean()),
        "doubts": [],
    }
    return Estimated(figures, None)


def _posterior_density(
    key: PRNGKey, trained: trained_runs.Trained, settings: Settings, data: Array
) -> Estimated:
    generative = trained.model.generative
    z = jax.eval_shape(generative.sample_prior, key, trained.params)
    estimator = hmc_density.hmc_density(
        generative,
        num_latents=z.shape[0],
        num_samples=settings.hmc_samples,
        num_warmup=settings.hmc_samples,
        num_leapfrog=settings.num_leapfrog,
    )
    drawn = examples.over_examples(
        estimator,
        batch_size=CHAINS_AT_ONCE,
        value=trained.data.prepared.value,
        mesh=trained.mesh,
    )(key, trained.params, data)
    _check(drawn)
    doubts = []
    if z.shape[0] > 4:
        doubts.append(
            f"appendix D is good below about five latents, and here are {z.shape[0]}"
        )
    return _summarized(drawn, doubts=doubts)


_BY_NAME: dict[
    str, Callable[[PRNGKey, trained_runs.Trained, Settings, Array], Estimated]
] = {
    "is": _importance,
    "ais": annealed_importance_sampling,
    "bdmc": _bidirectional,
    "hmc_density": _posterior_density,
}


def _chains(trained: trained_runs.Trained, settings: Settings) -> annealing.Chains:
    temperatures = SCHEDULES[settings.schedule](settings.num_temperatures)
    common = {"temperatures": temperatures, "num_chains": settings.num_chains}
    if trained.config.posterior == "bernoulli":
        sweep = annealing.gibbs_kernel(num_updates=trained.config.num_latents)
        return annealing.chains(kernel=sweep, num_pilot=0, **common)
    kernel = annealing.hmc_kernel(num_leapfrog=settings.num_leapfrog)
    num_pilot = min(200, settings.num_temperatures)
    return annealing.chains(kernel=kernel, num_pilot=num_pilot, **common)


def _images_at_once(settings: Settings) -> int:
    return max(1, CHAINS_AT_ONCE // settings.num_chains)


def _over(
    trained: trained_runs.Trained,
    settings: Settings,
    estimator: Callable[[PRNGKey, Params, Array], PyTree],
) -> Callable[[PRNGKey, Params, Array], PyTree]:
    return examples.over_examples(
        estimator,
        batch_size=_images_at_once(settings),
        value=trained.data.prepared.value,
        mesh=trained.mesh,
    )


def _check(drawn: Any) -> None:
    with cli.user_errors():
        annealed.check_finite(np.asarray(drawn.log_p))
        annealed.check_accepted(
            np.asarray(drawn.acceptance), np.asarray(drawn.step_size)
        )


def _summarized(drawn: Any, *, doubts: list[str]) -> Estimated:
    """Means over the images, and the worst of the diagnostics."""
    log_p = np.asarray(drawn.log_p, np.float64)
    error = np.asarray(drawn.standard_error, np.float64)
    size = np.asarray(drawn.effective_sample_size, np.float64)
    shape = np.asarray(drawn.pareto_k, np.float64)
    figures: dict[str, Any] = {
        "log_p": float(log_p.mean()),
        "log_p_standard_error": measure.standard_error(log_p),
        "log_p_sampling_error": float(np.sqrt((error**2).sum()) / len(error)),
        "effective_sample_size": float(np.median(size)),
        "smallest_effective_sample_size": float(size.min()),
        "doubts": doubts,
    }
    if np.isfinite(shape).any():
        figures["largest_pareto_k"] = float(np.nanmax(shape))
    if hasattr(drawn, "acceptance"):
        figures["acceptance"] = float(np.asarray(drawn.acceptance).mean())
    return Estimated(figures, log_p)
