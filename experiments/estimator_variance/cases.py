"""The estimators that are compared, and what the gradient of each should be."""

from collections.abc import Callable
from typing import Any, NamedTuple

from vae_jax import bounds
from vae_jax.estimators import (
    arms,
    disarm,
    gdreg,
    importance,
    multiply_weighted,
    ovis,
    rebar,
    relax,
    relaxed,
    score_function,
    sgvb,
    sumo,
    thermodynamic,
    uha,
    wake_sleep,
)
from vae_jax.types import ExampleObjective, Model

BASELINE = "score_function, constant baseline"
LEARNED = (relax.CONTROL, uha.PATH)  # parts of phi that only one estimator reads


class Case(NamedTuple):
    """An estimator, and what its gradients are compared with.

    Attributes:
        build: model, num_samples, numbers -> its function of one example.
        numbers: of its own.
        theta: the bounds whose gradient it should have on average, name -> weight; None
            where no unbiased estimator of it is at hand.
        phi: as theta.
        decodings: what each of its samples costs, so that it has fewer.
        has_baseline: whether it takes the minibatch's ELBO as its baseline.
        takes_learned: whether it takes what training has learned beside p and q.
        extend: model, samples -> the model whose q keeps what the estimator learns, at
            its start; None where the trained q has all.
    """

    build: Callable[..., ExampleObjective]
    numbers: dict[str, Any]
    theta: dict[str, float] | None
    phi: dict[str, float] | None
    decodings: int = 1
    has_baseline: bool = False
    takes_learned: bool = False
    extend: Callable[[Model, int], Model] | None = None


class Table(NamedTuple):
    """What is compared on models of one kind.

    Attributes:
        trained_by: the estimator that the model is trained by.
        unit: the case that variances are relative to.
        references: name of a bound -> an unbiased estimator of it, and the part of the
            samples that it takes.
        cases: by name.
    """

    trained_by: str
    unit: str
    references: dict[str, tuple[Callable[..., ExampleObjective], int]]
    cases: dict[str, Case]


def table(posterior: str, prior: str) -> Table:
    """The table of a q and a prior, as flags name them."""
    if posterior == "bernoulli":
        return Table("relax", "leave_one_out", OF_BITS, ANY | BITS)
    if prior == "standard_normal":
        return Table("sgvb_b", "sgvb_b", OF_NORMALS, ANY | NORMALS)
    references = OF_NORMALS | {"elbo": (sgvb.sgvb_a, 1)}
    learned = {name: case for name, case in NORMALS.items() if name != "sgvb_b"}
    return Table("sgvb_a", "sgvb_a", references, ANY | learned)


def _annealed(model: Model, *, num_samples: int) -> ExampleObjective:
    del num_samples  # they are the steps of one chain
    return uha.uha(model, num_samples=1)


def _with_path(model: Model, num_samples: int) -> Model:
    return uha.with_path(model, num_temperatures=num_samples)


def _roulette(model: Model, *, num_samples: int, baseline: float) -> ExampleObjective:
    """As many samples as the others have, so that its mean is L_K's."""
    return sumo.sumo(model, num_samples=1, max_terms=num_samples - 1, baseline=baseline)


ELBO, L_K, L_HALF = {"elbo": 1.0}, {"l_k": 1.0}, {"l_half": 1.0}
MIXED = {"elbo": 0.5, "l_k": 0.5}
PATH = {"bound": bounds.elbo, "with_score": False}
OF_NORMALS = {
    "elbo": (sgvb.sgvb_b, 1),
    "l_k": (importance.iwae, 1),
    "l_half": (importance.iwae, 2),
}
OF_BITS = {
    "elbo": (score_function.leave_one_out, 1),
    "l_k": (ovis.ovis, 1),
    "l_half": (ovis.ovis, 2),
}
ANY = {
    "score_function": Case(score_function.score_function, {}, ELBO, ELBO),
    BASELINE: Case(score_function.score_function, {}, ELBO, ELBO, has_baseline=True),
    "leave_one_out": Case(score_function.leave_one_out, {}, ELBO, ELBO),
    "vimco": Case(score_function.vimco, {}, L_K, L_K),
    "ovis": Case(ovis.ovis, {}, L_K, L_K),
    "ovis, gamma = 1": Case(ovis.ovis, {"gamma": 1.0}, L_K, None),
    "ovis_monte_carlo": Case(ovis.ovis_monte_carlo, {}, L_HALF, L_HALF, decodings=2),
    "thermodynamic, 4 terms": Case(
        thermodynamic.thermodynamic, {"num_terms": 4}, None, None
    ),
    "reweighted_wake_sleep": Case(wake_sleep.reweighted_wake_sleep, {}, L_K, None),
}
NORMALS = {
    "sgvb_a": Case(sgvb.sgvb_a, {}, ELBO, ELBO),
    "sgvb_b": Case(sgvb.sgvb_b, {}, ELBO, ELBO),
    "sgvb_a, path gradient": Case(importance.of_bound, PATH, ELBO, ELBO),
    "iwae": Case(importance.iwae, {}, L_K, L_K),
    "stick_the_landing": Case(importance.stick_the_landing, {}, L_K, L_K),
    "dreg": Case(importance.dreg, {}, L_K, L_K),
    "gdreg": Case(gdreg.gdreg, {}, L_K, L_K),
    "ciwae, beta = 0.5": Case(importance.ciwae, {"beta": 0.5}, MIXED, MIXED),
    "miwae, M = 2": Case(
        multiply_weighted.miwae, {"num_outer": 2}, L_HALF, L_HALF, decodings=2
    ),
    "piwae, M = 2": Case(
        multiply_weighted.piwae, {"num_outer": 2}, L_K, L_HALF, decodings=2
    ),
    "renyi, alpha = 0.5": Case(importance.renyi, {"alpha": 0.5}, None, None),
    "jackknife, order 1": Case(importance.jackknife, {"order": 1}, None, None),
    "uha": Case(_annealed, {}, None, None, extend=_with_path, decodings=2),
    "sumo": Case(_roulette, {}, L_K, None, has_baseline=True),
}
BITS = {
    "disarm": Case(disarm.disarm, {}, ELBO, ELBO),
    "arms": Case(arms.arms, {}, ELBO, ELBO),
    "rebar": Case(rebar.rebar, {"temperature": 0.5}, ELBO, ELBO, decodings=3),
    "relax": Case(relax.relax, {}, ELBO, ELBO, decodings=3, takes_learned=True),
    "straight_through": Case(relaxed.straight_through, {}, ELBO, ELBO),
    "binary_concrete": Case(
        relaxed.binary_concrete, {"temperature": 0.5}, ELBO, ELBO, decodings=2
    ),
}
