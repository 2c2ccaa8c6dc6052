"""The scores by name, and what they are made of: measurements of rows side by side."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.anomaly.rows import REFERENCE, Rows
from experiments.command import cli
from experiments.measures import measure, stored_values
from experiments.runs.trained_runs import Trained
from vae_jax import posteriors
from vae_jax.data import codecs
from vae_jax.evaluation import anomaly, gaps, weights
from vae_jax.types import PRNGKey

NORMAL = {"diag_normal": posteriors.diag_normal, "full_normal": posteriors.full_normal}
ROWS_AT_ONCE = 20  # of the search for the best q
SEARCH_SAMPLES = 10  # of a step of that search


class Sizes(NamedTuple):
    """What the measurements are made with.

    Attributes:
        eval_samples: of the bound.
        importance_samples: of log p(x).
        regret_steps: of a round of the search for the best q.
        regret_rounds: of that, at most.
        regret_rate: where a round's rate of Adam starts.
        codec: one of `codecs.CODECS`.
        background: the model that the likelihood ratio is to.
    """

    eval_samples: int
    importance_samples: int
    regret_steps: int
    regret_rounds: int
    regret_rate: float
    codec: str
    background: Trained | None = None


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


Measurement: TypeAlias = Callable[[PRNGKey, Trained, Rows, Sizes], Any]


class Score(NamedTuple):
    """How a score is made.

    Attributes:
        needs: names of MEASUREMENTS.
        value: what was measured of all rows, where the reference rows stand -> [N].
        meaning: of its values, with their unit.
        together: whether it is of all runs, whose measurements are stacked.
    """

    needs: tuple[str, ...]
    value: Callable[[Mapping[str, Any], slice], np.ndarray]
    meaning: str
    together: bool = False


def _bound(key: PRNGKey, trained: Trained, rows: Rows, sizes: Sizes) -> Any:
    number = sizes.eval_samples
    estimate = anomaly.bound_scores(trained.model, num_samples=number)
    return measure.of_rows(key, trained, estimate, rows.raw, num_decoded=number)


def _log_p(key: PRNGKey, trained: Trained, rows: Rows, sizes: Sizes) -> Any:
    number = sizes.importance_samples
    estimate = measure.log_evidence(trained.model, num_samples=number)
    return measure.of_rows(key, trained, estimate, rows.raw, num_decoded=number)


def _background(key: PRNGKey, trained: Trained, rows: Rows, sizes: Sizes) -> Any:
    """log p(x) under the background model, which reads x as the trained one does.

    Raises:
        ValueError: if there is none, or its x is another.
    """
    other = sizes.background
    if other is None:
        raise ValueError("--scores=ratio needs a model to compare with: --background")
    wanted, there = (
        (one.data.x_shape, one.config.settled.binarization, one.data.quantity)
        for one in (trained, other)
    )
    if there != wanted:
        raise ValueError(
            f"--background={other.config.workdir} has x of {there[0]}, binarization "
            f"{there[1]}, a {there[2]}, and {trained.config.workdir} of {wanted[0]}, "
            f"{wanted[1]}, a {wanted[2]}"
        )
    read = other._replace(data=trained.data)
    return _log_p(key, read, rows, sizes)


def _bits(key: PRNGKey, trained: Trained, rows: Rows, sizes: Sizes) -> np.ndarray:
    """Bits of each row as a file of its own."""
    del key
    symbols = stored_values.symbols(trained, rows.raw)
    largest = symbols.max(initial=0)
    if largest > np.iinfo(np.uint8).max:
        raise ValueError(
            "--scores=complexity is of files of bytes, and some entry of these rows is "
            f"value {largest}: leave it out"
        )
    symbols = symbols.astype(np.uint8)
    shape = trained.data.x_shape
    images = symbols.reshape(len(symbols), *(shape if trained.is_image else (1, -1)))
    return 8.0 * codecs.sizes(images, sizes.codec)


def _codes(key: PRNGKey, trained: Trained, rows: Rows, sizes: Sizes) -> np.ndarray:
    del sizes
    return measure.codes(key, trained, rows.raw)


def _regret(key: PRNGKey, trained: Trained, rows: Rows, sizes: Sizes) -> Array:
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
        num_steps=sizes.regret_steps,
        learning_rate=sizes.regret_rate,
        max_rounds=sizes.regret_rounds,
        num_evaluated=-(-sizes.eval_samples // SEARCH_SAMPLES) * SEARCH_SAMPLES,
    )
    estimate = anomaly.likelihood_regret(
        trained.model, fit, num_samples=sizes.eval_samples
    )
    start = rows.parts[REFERENCE].stop  # the reference rows are the first
    regret = measure.of_rows(
        key,
        trained,
        estimate,
        rows.raw[start:],
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


def _of_log_p(values: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(values["log_p"].log_p, np.float64)


def _distance(values: Mapping[str, Any], reference: slice) -> np.ndarray:
    codes = np.asarray(values["codes"], np.float64)
    return anomaly.mahalanobis(codes, anomaly.normal_of_codes(codes[reference]))


SCORES: dict[str, Score] = {
    "elbo": Score(("bound",), lambda v, _: v["bound"].elbo, "minus the ELBO, nats"),
    "log_p": Score(("log_p",), lambda v, _: -_of_log_p(v), "-log p(x), nats"),
    "reconstruction": Score(
        ("bound",), lambda v, _: v["bound"].reconstruction, "-E_q[log p(x | z)], nats"
    ),
    "kl": Score(("bound",), lambda v, _: v["bound"].kl, "KL(q(z | x) || p(z)), nats"),
    "regret": Score(
        ("regret",),
        lambda v, _: v["regret"],
        "what a q of its own adds to the ELBO, nats",
    ),
    "ratio": Score(
        ("log_p", "background"),
        lambda v, _: anomaly.likelihood_ratio(_of_log_p(v), v["background"].log_p),
        "log p(x) of the background less the run's, nats",
    ),
    "complexity": Score(
        ("log_p", "bits"),
        lambda v, _: anomaly.input_complexity(_of_log_p(v), v["bits"]),
        "-log2 p(x) less the bits of a file of it",
    ),
    "waic": Score(
        ("log_p",),
        lambda v, _: anomaly.waic(_of_log_p(v)),
        "Var log p(x) - E log p(x) over the runs, nats",
        together=True,
    ),
    "typicality": Score(
        ("log_p",),
        lambda v, at: anomaly.typicality(_of_log_p(v), _of_log_p(v)[at]),
        "|-log p(x) - its mean in reference rows|, nats",
    ),
    "mahalanobis": Score(
        ("codes",), _distance, "of codes from their mean, in standard deviations"
    ),
}


def check(names: Sequence[str], runs: Sequence[Trained]) -> None:
    """Refuses scores that these runs do not have.

    Raises:
        UsageError: naming the score.
    """
    first = runs[0]
    for name in names:
        if SCORES[name].together and len(runs) < 2:
            raise cli.UsageError(
                f"--scores={name} is of runs that trained together (--num_seeds), and "
                f"this is one of {first.config.workdir}: leave it out, or --member"
            )
        why = _without_log_p(first) if "log_p" in SCORES[name].needs else ""
        if why:
            others = [n for n in names if "log_p" not in SCORES[n].needs] or ["elbo"]
            raise cli.UsageError(
                f"--scores={name} needs log p(x), and {why}: give "
                f"--scores={','.join(others)}"
            )


def _without_log_p(trained: Trained) -> str:
    """Why a run has no log p(x), if it has none."""
    if trained.data.quantity == "cross-entropy":
        return f"a cross-entropy of {trained.config.observation} is none"
    if trained.has_point_mass:
        return f"its q ({trained.model.recognition.family.name}) is a point mass"
    return ""


def of_rows(
    key: PRNGKey,
    runs: Sequence[Trained],
    run_names: Sequence[str],
    rows: Rows,
    names: Sequence[str],
    sizes: Sizes,
) -> tuple[list[Scored], list[str]]:
    """Every score of every run, and what speaks against log p-hat.

    Noise depends on the measurement alone: it is the same for all runs, and whatever
    other scores are asked for.

    Raises:
        ValueError: for a score that these rows do not have.
    """
    needed = [m for m in MEASUREMENTS if any(m in SCORES[n].needs for n in names)]
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
            results = MEASUREMENTS[name](one_key, run, rows, sizes)
            of_run[name] = jax.tree.map(np.asarray, results)
            seconds[name] += time.perf_counter() - started
        measured.append(of_run)
    reference, scored = rows.parts[REFERENCE], []
    for name in names:
        score = SCORES[name]
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
