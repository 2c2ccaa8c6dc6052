"""The scores by name: what measurements each is made of, and which runs have it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.command import cli
from experiments.runs.trained_runs import Trained
from vae_jax.evaluation import anomaly


class Score(NamedTuple):
    """How a score is made.

    Attributes:
        needs: names of `measurements.MEASUREMENTS`.
        value: what was measured of all rows, where the reference rows stand -> [N].
        meaning: of its values, with their unit.
        together: whether it is of all runs, whose measurements are stacked.
    """

    needs: tuple[str, ...]
    value: Callable[[Mapping[str, Any], slice], np.ndarray]
    meaning: str
    together: bool = False


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
