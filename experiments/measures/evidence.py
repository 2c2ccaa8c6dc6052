"""Estimates of log p(x) of a trained model, by several methods on the same images."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.command import cli, report
from experiments.measures import measure
from experiments.runs import trained_runs
from experiments.runs.trained_runs import Trained
from vae_jax.evaluation import annealed, annealing, hmc_density, weights
from vae_jax.types import PRNGKey

METHODS = ("is", "ais", "bdmc", "hmc_density")
SCHEDULES = {"linear": annealing.linear, "sigmoid": annealing.sigmoid}
READERS = {
    **dict.fromkeys(("num_temperatures", "num_chains"), ("ais", "bdmc")),
    **dict.fromkeys(("schedule", "base"), ("ais", "bdmc")),
    "num_leapfrog": ("ais", "bdmc", "hmc_density"),
    "num_simulated": ("bdmc",),
    "hmc_samples": ("hmc_density",),
}
"""Flags, and the methods that read them."""
CHAINS_AT_ONCE = 320  # all decoded side by side


class ChainFlags(NamedTuple):
    """The chains of annealed importance sampling.

    Attributes:
        num_temperatures: T, transitions of each chain.
        num_chains: of each image.
        num_leapfrog: leapfrog steps of a transition.
        schedule: one of SCHEDULES.
        base: where the chains start, prior or q.
    """

    num_temperatures: int
    num_chains: int
    num_leapfrog: int
    schedule: str = "sigmoid"
    base: str = "prior"


class Estimated(NamedTuple):
    """One method's figures, and log p-hat of each image where it has them."""

    figures: dict[str, Any]
    log_p: np.ndarray | None


def check(trained: Trained, methods: tuple[str, ...]) -> None:
    """Refuses a method that the model's latents do not allow.

    Raises:
        UsageError: naming both.
    """
    family = trained.model.recognition.family.name
    if trained.has_real_latents or set(methods) <= {"is"}:
        return
    if "hmc_density" in methods or family not in ("bernoulli", "layers of bits"):
        instead = "" if trained.has_point_mass else ": give is"
        raise cli.UsageError(
            f"--evidence={','.join(methods)}: hmc_density needs latents that are any "
            "real vector, ais and bdmc such or binary ones, and q(z | x) is "
            f"{family}{instead}"
        )


Method: TypeAlias = Callable[[PRNGKey, Trained, Array], Estimated]
"""(key, model, rows) -> what it says of their log p(x)."""


def side_by_side(
    keys: Sequence[PRNGKey],
    trained: Trained,
    methods: Mapping[str, Method],
    *,
    split: str,
    num_images: int = 0,
) -> dict[str, dict[str, Any]]:
    """Figures of each method on the same rows, those of a difference to `is` paired.

    keys are those of METHODS, so a method's figures do not depend on the others asked.
    A line is printed as soon as a method is done, where there are several.
    """
    check(trained, tuple(methods))
    data = trained_runs.spread_rows(trained, split=split, num_images=num_images)
    estimated: dict[str, Estimated] = {}
    for name, method in methods.items():
        start = time.perf_counter()
        estimated[name] = method(keys[METHODS.index(name)], trained, data)
        figures = estimated[name].figures
        figures |= trained.data.in_bits(figures)
        figures["seconds"] = time.perf_counter() - start
        if len(methods) > 1:
            seconds = estimated[name].figures["seconds"]
            print(f"log p(x) by {name}: done in {seconds:.0f} s", flush=True)
    by_is = estimated["is"].log_p if "is" in estimated else None
    for name, (figures, log_p) in estimated.items():
        if by_is is not None and log_p is not None and name != "is":
            figures["above_is"] = float((log_p - by_is).mean())
            figures["above_is_standard_error"] = measure.standard_error(log_p - by_is)
    return {name: figures for name, (figures, _) in estimated.items()}


COLUMNS = (
    report.field("log p(x), nats", "method", width=14),
    report.field("mean", "log_p", ".3f", 11),
    report.field("bits / dim", "log_p_bits_per_dimension", ".4f", 10),
    report.field("s.e.", "log_p_standard_error", ".3f", 7),
    report.field("sampling", "log_p_sampling_error", ".3f", 8),
    report.field("above is", "above_is", ".3f", 8),
    report.field("s.e.", "above_is_standard_error", ".3f", 7),
    report.field("least ESS", "smallest_effective_sample_size", ".1f", 9),
    report.field("k-hat", "largest_pareto_k", ".2f", 6),
    report.field("accepted", "acceptance", ".2f", 8),
    report.field("seconds", "seconds", ".0f", 7),
)
SANDWICH = (
    report.field("simulated images", "num_simulated", width=16),
    report.field("lower", "lower", ".3f", 11),
    report.field("upper", "upper", ".3f", 11),
    report.field("gap", "gap", ".3f", 8),
    report.field("s.e.", "gap_standard_error", ".3f", 7),
    *COLUMNS[-2:],
)


def table(evidence: dict[str, dict[str, Any]]) -> list[str]:
    """A line of figures for each method, then what speaks against them.

    The mean over the images, its standard error and the part of that which is sampling,
    the paired difference to `is`, the least effective sample size and the largest k-hat
    of an image; of bdmc, both sides on simulated images.
    """
    rows = [
        {"method": name} | figures
        for name, figures in evidence.items()
        if name != "bdmc"
    ]
    lines = [report.table(COLUMNS, rows)] if rows else []
    if "bdmc" in evidence:
        lines.append(report.table(SANDWICH, [evidence["bdmc"]]))
    for name, figures in evidence.items():
        lines.extend(f"  warning, {name}: {doubt}" for doubt in figures["doubts"])
    return lines


def importance_sampling(
    key: PRNGKey, trained: Trained, data: Array, *, num_samples: int
) -> Estimated:
    """log p-hat of rows by importance samples from q."""
    estimate = measure.log_evidence(trained.model, num_samples=num_samples)
    log_p = measure.of_rows(key, trained, estimate, data, num_decoded=num_samples)
    return _summarized(log_p, doubts=weights.doubts(log_p))


def on_test(
    trained: Trained, *, num_samples: int, importance_samples: int
) -> dict[str, float]:
    """ELBO, its parts and log p(x) of all test rows, by noise of fixed keys.

    What trained models are compared by: every one of them meets the same noise.
    """
    key_bound, key_is = jax.random.split(jax.random.key(0))
    bound = measure.bound(key_bound, trained, split="test", num_samples=num_samples)
    data = trained_runs.rows(trained, split="test")
    log_p = importance_sampling(key_is, trained, data, num_samples=importance_samples)
    names = ("log_p", "log_p_standard_error")
    return bound | {name: log_p.figures[name] for name in names}


def annealed_importance_sampling(
    key: PRNGKey, trained: Trained, data: Array, *, chains: ChainFlags
) -> Estimated:
    """log p-hat of rows by chains from the prior, or from q, to the posterior.

    Raises:
        UsageError: if the chains never accept, or weights overflow.
    """
    estimate = _annealed(annealed.ais, trained, chains)
    estimated = measure.of_rows(
        key,
        trained,
        estimate,
        data,
        num_decoded=chains.num_chains,
        at_once=CHAINS_AT_ONCE,
        batches_a_block=1,
    )
    return _summarized(checked(estimated.log_p, estimated), doubts=[])


def bidirectional(
    key: PRNGKey,
    trained: Trained,
    data: Array,
    *,
    chains: ChainFlags,
    num_simulated: int,
) -> Estimated:
    """Both sides of log p(x) on images that the model draws, of which z is known.

    Raises:
        UsageError: as `annealed_importance_sampling`.
    """
    del data
    both = _annealed(annealed.bidirectional, trained, chains)
    sides = measure.of_rows(
        key,
        trained,
        lambda key, params, index: both(key, params),
        jnp.arange(num_simulated),
        num_decoded=chains.num_chains,
        at_once=CHAINS_AT_ONCE,
        batches_a_block=1,
        value=lambda index: index,
    )
    lower, upper = (
        np.asarray(checked(side.log_p, side).log_p, np.float64)
        for side in (sides.lower, sides.upper)
    )
    figures = {
        "lower": float(lower.mean()),
        "upper": float(upper.mean()),
        "gap": float((upper - lower).mean()),
        "gap_standard_error": measure.standard_error(upper - lower),
        "num_simulated": num_simulated,
        "acceptance": float(np.asarray(sides.lower.acceptance).mean()),
        "doubts": [],
    }
    return Estimated(figures, None)


def posterior_density(
    key: PRNGKey,
    trained: Trained,
    data: Array,
    *,
    num_samples: int,
    num_leapfrog: int,
) -> Estimated:
    """log p-hat of rows by a density fitted to HMC's draws: appendix D of AEVB.

    Raises:
        UsageError: if the chains never accept, or weights overflow.
    """
    generative = trained.model.generative
    estimate = hmc_density.hmc_density(
        generative,
        num_latents=trained.num_latents,
        num_samples=num_samples,
        num_warmup=num_samples,
        num_leapfrog=num_leapfrog,
    )
    estimated = measure.of_rows(
        key,
        trained,
        estimate,
        data,
        num_decoded=1,
        at_once=CHAINS_AT_ONCE,
        batches_a_block=1,
    )
    doubts = []
    if trained.num_latents > 4:
        doubts.append(
            "appendix D is good below about five latents, and here are "
            f"{trained.num_latents}"
        )
    return _summarized(checked(estimated.log_p, estimated), doubts=doubts)


def transitions(
    trained: Trained, *, num_leapfrog: int, num_temperatures: int
) -> tuple[annealing.Kernel, int]:
    """What moves the chains of a model's latents, and how long their pilot run is."""
    if not trained.has_real_latents:
        return annealing.gibbs_kernel(num_updates=trained.num_latents), 0
    kernel = annealing.hmc_kernel(num_leapfrog=num_leapfrog)
    return kernel, min(200, num_temperatures)


def checked(log_p: Any, estimated: Any) -> Any:
    """What chains have estimated, with its log p-hat of each image.

    Raises:
        UsageError: as `annealed.check`.
    """
    with cli.user_errors():
        annealed.check(log_p, estimated.acceptance, estimated.step_size)
    return estimated


def _annealed(
    build: Callable[..., Any], trained: Trained, chains: ChainFlags
) -> Callable[..., Any]:
    """An estimate by annealing the model from where the chains start."""
    kernel, num_pilot = transitions(
        trained,
        num_leapfrog=chains.num_leapfrog,
        num_temperatures=chains.num_temperatures,
    )
    annealing_chains = annealing.chains(
        kernel=kernel,
        num_pilot=num_pilot,
        temperatures=SCHEDULES[chains.schedule](chains.num_temperatures),
        num_chains=chains.num_chains,
    )
    recognition = trained.model.recognition if chains.base == "q" else None
    return build(trained.model.generative, annealing_chains, recognition=recognition)


def _summarized(estimated: Any, *, doubts: list[str]) -> Estimated:
    """Means over the images, and the worst of the diagnostics."""
    log_p = np.asarray(estimated.log_p, np.float64)
    error = np.asarray(estimated.standard_error, np.float64)
    size = np.asarray(estimated.effective_sample_size, np.float64)
    shape = np.asarray(estimated.pareto_k, np.float64)
    figures: dict[str, Any] = {
        "log_p": float(log_p.mean()),
        "log_p_standard_error": measure.standard_error(log_p),
        "log_p_sampling_error": float(np.sqrt((error**2).sum()) / len(error)),
        "effective_sample_size": float(np.median(size)),
        "smallest_effective_sample_size": float(size.min()),
        "doubts": doubts,
    }
    if np.isfinite(shape).any():
        figures["largest_pareto_k"] = float(shape[np.isfinite(shape)].max())
    if hasattr(estimated, "acceptance"):
        figures["acceptance"] = float(np.asarray(estimated.acceptance).mean())
    return Estimated(figures, log_p)
