"""What scores are made of: measurements of rows, side by side over runs."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.anomaly import scores
from experiments.anomaly.config import Config
from experiments.anomaly.rows import REFERENCE, Rows
from experiments.measures import measure, stored_values
from experiments.runs.trained_runs import Trained
from vae_jax import posteriors
from vae_jax.data import codecs
from vae_jax.evaluation import anomaly, gaps, weights
from vae_jax.types import PRNGKey

NORMAL = {"diag_normal": posteriors.diag_normal, "full_normal": posteriors.full_normal}
ROWS_AT_ONCE = 20  # of the search for the best q
SEARCH_SAMPLES = 10  # of a step of that search


class Asked(NamedTuple):
    """What is scored, and how.

    Attributes:
        rows: those of reference first.
        config: the command's flags.
        background: what --scores=ratio compares with.
    """

    rows: Rows
    config: Config
    background: Trained | None


Measurement: TypeAlias = Callable[[PRNGKey, Trained, Asked], Any]
"""(key, run, what is asked) -> what is measured"""


class Scored(NamedTuple):
    """One score of one run, or of all together.

    Attributes:
        name: of the score.
        run: of the run; "" for all, or a run alone.
        values: [N].
        seconds: that its measurements took; what scores share counts for each.
    """

    name: str
    run: str
    values: np.ndarray
    seconds: float


def _bound(key: PRNGKey, trained: Trained, asked: Asked) -> Any:
    number = asked.config.eval_samples
    estimate = anomaly.bound_scores(trained.model, num_samples=number)
    return measure.of_rows(key, trained, estimate, asked.rows.raw, num_decoded=number)


def _log_p(key: PRNGKey, trained: Trained, asked: Asked) -> Any:
    number = asked.config.importance_samples
    estimate = measure.log_evidence(trained.model, num_samples=number)
    return measure.of_rows(key, trained, estimate, asked.rows.raw, num_decoded=number)


def _background(key: PRNGKey, trained: Trained, asked: Asked) -> Any:
    """log p(x) under the background model, which reads x as the trained one does.

    Raises:
        ValueError: if there is none, or its x is another.
    """
    background = asked.background
    if background is None:
        raise ValueError("--scores=ratio needs a model to compare with: --background")
    wanted, there = (
        (one.data.x_shape, one.config.settled.binarization, one.data.quantity)
        for one in (trained, background)
    )
    if there != wanted:
        raise ValueError(
            f"--background={background.config.workdir} has x of {there[0]}, "
            f"binarization {there[1]}, a {there[2]}, and {trained.config.workdir} of "
            f"{wanted[0]}, {wanted[1]}, a {wanted[2]}"
        )
    read = background._replace(data=trained.data)
    return _log_p(key, read, asked)


def _bits(key: PRNGKey, trained: Trained, asked: Asked) -> np.ndarray:
    """Bits of each row as a file of its own."""
    del key
    symbols = stored_values.symbols(trained, asked.rows.raw)
    largest = symbols.max(initial=0)
    if largest > np.iinfo(np.uint8).max:
        raise ValueError(
            "--scores=complexity is of files of bytes, and some entry of these rows is "
            f"value {largest}: leave it out"
        )
    symbols = symbols.astype(np.uint8)
    shape = trained.data.x_shape
    images = symbols.reshape(len(symbols), *(shape if trained.is_image else (1, -1)))
    return 8.0 * codecs.sizes(images, asked.config.codec)


def _codes(key: PRNGKey, trained: Trained, asked: Asked) -> np.ndarray:
    return measure.codes(key, trained, asked.rows.raw)


def _regret(key: PRNGKey, trained: Trained, asked: Asked) -> Array:
    """The amortization gap of each row but those of reference, which are NaN.

    Raises:
        ValueError: for a q that is no normal.
    """
    family = trained.model.recognition.family.name
    if family not in NORMAL:
        raise ValueError(
            f"--scores=regret searches a normal q of each row, and q(z | x) is {family}"
        )
    fit = gaps.fit_local(
        trained.model.generative,
        NORMAL[family](trained.num_latents),
        num_samples=SEARCH_SAMPLES,
        num_steps=asked.config.regret_steps,
        learning_rate=asked.config.regret_rate,
        max_rounds=asked.config.regret_rounds,
        num_evaluated=-(-asked.config.eval_samples // SEARCH_SAMPLES) * SEARCH_SAMPLES,
    )
    estimate = anomaly.likelihood_regret(
        trained.model, fit, num_samples=asked.config.eval_samples
    )
    start = asked.rows.parts[REFERENCE].stop  # the reference rows are the first
    regret = measure.of_rows(
        key,
        trained,
        estimate,
        asked.rows.raw[start:],
        num_decoded=1,
        at_once=ROWS_AT_ONCE,
    )
    return jnp.concatenate([jnp.full((start,), jnp.nan, regret.dtype), regret])


MEASUREMENTS: dict[str, Measurement] = {  # those that may refuse come first
    "bits": _bits,
    "regret": _regret,
    "background": _background,
    "bound": _bound,
    "log_p": _log_p,
    "codes": _codes,
}
SHARED = ("background", "bits")  # the same for all runs
NOISE_OF = {"background": "log_p"}  # two models that are compared meet the same noise


def of_rows(
    key: PRNGKey,
    runs: Sequence[Trained],
    run_names: Sequence[str],
    asked: Asked,
) -> tuple[list[Scored], list[str]]:
    """Every score of every run, and what speaks against log p-hat.

    Noise depends on the measurement alone: it is the same for all runs, and whatever
    other scores are asked for.

    Raises:
        ValueError: for a score that these rows do not have.
    """
    table = [scores.SCORES[name] for name in asked.config.scores]
    needed = [m for m in MEASUREMENTS if any(m in score.needs for score in table)]
    keys = dict(
        zip(MEASUREMENTS, jax.random.split(key, len(MEASUREMENTS)), strict=True)
    )
    seconds = dict.fromkeys(needed, 0.0)
    measured: list[dict[str, Any]] = []
    for run in runs:
        of_run: dict[str, Any] = {}
        for name in needed:
            if name in SHARED and measured:
                of_run[name] = measured[0][name]
                continue
            started = time.perf_counter()
            one_key = jax.random.clone(keys[NOISE_OF.get(name, name)])
            results = MEASUREMENTS[name](one_key, run, asked)
            of_run[name] = jax.tree.map(np.asarray, results)
            seconds[name] += time.perf_counter() - started
        measured.append(of_run)
    reference, scored = asked.rows.parts[REFERENCE], []
    for name, score in zip(asked.config.scores, table, strict=True):
        took = sum(seconds[m] for m in score.needs)
        if score.together:
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *measured)
            pairs = [("", stacked)]
        else:
            pairs = zip(run_names, measured, strict=True)
        for run_name, values in pairs:
            value = np.asarray(score.value(values, reference), np.float64)
            scored.append(Scored(name, run_name, value, took))
    doubts = []
    for run_name, of_run in zip(run_names, measured, strict=True):
        reasons = weights.doubts(of_run["log_p"]) if "log_p" in of_run else []
        doubts.extend(": ".join(filter(None, (run_name, r))) for r in reasons)
    return scored, doubts
