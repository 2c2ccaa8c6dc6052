"""Every estimator beside what it is unbiased for and what it refuses, a row each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from tests import estimands, problems
from tests.estimators import cases
from tests.estimators.cases import (
    BINARY,
    NAN,
    NORMAL,
    NORMALS,
    TWO_BITS,
    Case,
)
from vae_jax import bounds
from vae_jax.estimators import (
    arms,
    disarm,
    enumerated,
    gdreg,
    importance,
    missing_data,
    multiply_weighted,
    ovis,
    rebar,
    regularized,
    relax,
    relaxed,
    score_function,
    sgvb,
    sumo,
    thermodynamic,
    uha,
    wake_sleep,
)
from vae_jax.types import ExampleObjective


class Row(NamedTuple):
    """An estimator, and what it is unbiased for in value and in gradient.

    The value and theta's gradient are unbiased for one bound, always. So is phi's
    gradient, unless the estimator states another objective for phi.
    """

    builder: Callable[..., ExampleObjective]
    settings: dict[str, Any]
    case: Case
    bound: Callable[[Any], Callable]  # problem -> (params, x) -> nats
    phi: Callable[[Any], Callable] | None = None  # likewise; None: phi climbs the bound
    refused: tuple[tuple[dict[str, Any], str], ...] = ()  # settings, message
    slow: bool = False  # its oracle, or kin of a row that stays


def build(row: Row, problem: Any, **changed: Any) -> ExampleObjective:
    """The one place that knows how an estimator is built of a model."""
    return row.builder(problem.model, **row.settings | changed)


def _double(kl):
    return 2.0 * kl.sum()


LESS_KL = estimands.less(lambda kl: 0.3 * kl.sum())
LESS_DOUBLE = estimands.less(_double)


NONE = (({"num_samples": 0}, "num_samples .*0"), ({"num_samples": -3}, "num_.*-3"))
ONE = (({"num_samples": 1}, "num_samples .*2 or more, got 1"),)
OUTER = (*NONE, ({"num_outer": 0}, "num_outer .*0"))
SCALES = (*NONE, ({"scale": 0.0}, r"scale .*0\.0"), ({"scale": -1.0}, r"scale .*-1\.0"))
WARM = tuple(
    ({"temperature": number}, f"temperature .* got {number}")
    for number in (0.0, -1, NAN, float("inf"))
)
ROWS = [
    Row(sgvb.sgvb_a, {"num_samples": 3}, NORMALS, estimands.elbo, refused=NONE),
    Row(
        sgvb.sgvb_a,
        {"num_samples": 2, "beta": 0.3},
        NORMALS,
        estimands.elbo,
        phi=LESS_KL,
        refused=(*NONE, ({"beta": -0.5}, r"beta .*-0\.5")),
    ),
    Row(
        sgvb.sgvb_b,
        {"num_samples": 1, "beta": 0.3},
        NORMALS,
        estimands.elbo,
        phi=LESS_KL,
        refused=(
            *NONE,
            ({"beta": -0.5}, r"beta .*-0\.5"),
            ({"beta": NAN}, "beta.*nan"),
        ),
    ),
    Row(sgvb.sgvb_b, {"num_samples": 1}, NORMALS, estimands.elbo, slow=True),
    Row(
        sgvb.balanced,
        {"num_samples": 1, "penalty": lambda kl: 2.0 * kl},
        NORMALS,
        estimands.elbo,
        phi=LESS_DOUBLE,
        refused=NONE,
        slow=True,
    ),
    Row(
        sgvb.closed_elbo,
        {"num_samples": 1, "penalty": _double},
        NORMALS,
        estimands.elbo,
        phi=LESS_DOUBLE,
        refused=NONE,
    ),
    Row(
        sgvb.elbo,
        {"num_samples": 3},
        cases.SAMPLED_KL,
        estimands.elbo,
        refused=NONE,
        slow=True,
    ),
    Row(
        sgvb.elbo,
        {"num_samples": 1, "penalty": _double},
        cases.SAMPLED_KL,
        estimands.elbo,
        phi=LESS_DOUBLE,
    ),
    Row(
        regularized.free_bits,
        {"num_samples": 1, "min_nats": 2.0},
        NORMALS,
        estimands.elbo,
        phi=estimands.less(lambda kl: jnp.maximum(kl, 2.0).sum()),
        refused=(*NONE, ({"min_nats": -1.0}, "min_nats .*-1")),
    ),
    Row(
        regularized.capacity,
        {"num_samples": 1, "nats": 9.0, "strength": 3.0},
        NORMALS,
        estimands.elbo,
        phi=estimands.less(lambda kl: 3.0 * jnp.abs(kl.sum() - 9.0)),
        refused=(
            *NONE,
            ({"nats": -1.0}, "nats .*-1"),
            ({"strength": -2.0}, "strength .*-2"),
        ),
    ),
    Row(
        importance.of_bound,
        {"num_samples": 3, "bound": bounds.elbo, "with_score": False},
        NORMALS,
        estimands.elbo,
        refused=NONE,
    ),
    Row(importance.iwae, {"num_samples": 3}, NORMAL, estimands.iwae(3), refused=NONE),
    Row(
        importance.stick_the_landing,
        {"num_samples": 1},
        NORMAL,
        estimands.elbo,
        refused=NONE,
    ),
    Row(
        importance.stick_the_landing,
        {"num_samples": 3},
        NORMAL,
        estimands.iwae(3),
        phi=estimands.density_held_fixed(3),
    ),
    Row(importance.dreg, {"num_samples": 3}, NORMAL, estimands.iwae(3), refused=NONE),
    Row(
        importance.ciwae,
        {"num_samples": 3, "beta": 0.3},
        NORMAL,
        estimands.combination((0.3, estimands.elbo), (0.7, estimands.iwae(3))),
        refused=(*NONE, ({"beta": 1.5}, r"beta .*1\.5"), ({"beta": -0.1}, "beta .*-0")),
    ),
    Row(
        importance.renyi,
        {"num_samples": 3, "alpha": 0.5},
        NORMAL,
        estimands.renyi(3, 0.5),
        refused=(
            *NONE,
            ({"alpha": NAN}, "alpha .*nan"),
            ({"alpha": float("inf")}, "alpha .*inf"),
        ),
    ),
    Row(  # Nowozin's coefficients, written out
        importance.jackknife,
        {"num_samples": 5, "order": 2},
        NORMAL,
        estimands.combination(
            (12.5, estimands.iwae(5)),
            (-16.0, estimands.iwae(4)),
            (4.5, estimands.iwae(3)),
        ),
        refused=(
            ({"order": 3}, "order .*3"),
            ({"num_samples": 2}, "num_samples .*2"),
        ),
        slow=True,
    ),
    Row(
        multiply_weighted.miwae,
        {"num_outer": 2, "num_samples": 3},
        NORMAL,
        estimands.iwae(3),
        refused=OUTER,
    ),
    Row(
        multiply_weighted.piwae,
        {"num_outer": 2, "num_samples": 3},
        NORMAL,
        estimands.iwae(6),
        phi=estimands.iwae(3),
        refused=OUTER,
    ),
    Row(
        missing_data.importance_bound,
        {"num_samples": 3},
        cases.HOLES,
        estimands.observed(estimands.iwae(3)),
        refused=(*NONE, ({"fill": NAN}, "fill .*nan")),
    ),
    Row(
        score_function.score_function,
        {"num_samples": 3, "baseline": -4.0, "scale": 2.0},
        BINARY,
        estimands.elbo,
        phi=estimands.combination((0.5, estimands.elbo)),
        refused=SCALES,
    ),
    Row(
        score_function.score_function,
        {"num_samples": 1},
        NORMAL,
        estimands.elbo,
        slow=True,
    ),
    Row(
        score_function.leave_one_out,
        {"num_samples": 3},
        BINARY,
        estimands.elbo,
        refused=ONE,
    ),
    Row(
        score_function.nvil,
        {"num_samples": 2, "network": cases.BASELINE, "baseline": -3.0, "scale": 2.0},
        cases.WITH_BASELINE,
        estimands.elbo,
        phi=estimands.elbo_and_baseline(cases.BASELINE, offset=-3.0, scale=2.0),
        refused=SCALES,
    ),
    Row(
        score_function.vimco, {"num_samples": 3}, BINARY, estimands.iwae(3), refused=ONE
    ),
    Row(
        ovis.ovis,
        {"num_samples": 3},
        BINARY,
        estimands.iwae(3),
        refused=(
            *ONE,
            ({"gamma": -0.1}, r"gamma .*-0\.1"),
            ({"gamma": NAN}, "gamma .*nan"),
        ),
    ),
    Row(  # what the limit of many weights leaves out
        ovis.ovis,
        {"num_samples": 3, "gamma": 0.7},
        BINARY,
        estimands.iwae(3),
        phi=estimands.combination((1.0, estimands.iwae(3)), (0.7, estimands.wake(3))),
    ),
    Row(
        ovis.ovis_monte_carlo,
        {"num_samples": 3, "num_auxiliary": 2},
        BINARY,
        estimands.iwae(3),
        refused=(*ONE, ({"num_auxiliary": 0}, "num_auxiliary .*0")),
    ),
    Row(
        disarm.disarm,
        {"num_samples": 4},
        BINARY,
        estimands.elbo,
        refused=tuple(
            ({"num_samples": number}, f"num_samples .*even.* {number}")
            for number in (-2, 0, 1, 3)
        ),
    ),
    Row(arms.arms, {"num_samples": 4}, BINARY, estimands.elbo, refused=ONE),
    Row(
        thermodynamic.thermodynamic,
        {"num_samples": 3, "num_terms": 3, "first_beta": 0.09},
        TWO_BITS,
        estimands.thermodynamic(3, (0.0, 0.09, 0.3)),
        refused=(
            *ONE,
            ({"num_terms": 0}, "num_terms .*0"),
            ({"first_beta": 1.0}, r"first_beta .*1\.0"),
            ({"first_beta": 0.0}, r"first_beta .*0\.0"),
        ),
    ),
    Row(
        gdreg.gdreg,
        {"num_samples": 3},
        cases.LEARNED_PRIOR,
        estimands.iwae(3),
        refused=NONE,
    ),
    Row(
        sumo.sumo,
        {"num_samples": 1, "max_terms": 2, "baseline": -2.0, "scale": 2.0},
        NORMAL,
        estimands.iwae(3),
        phi=estimands.sumo(baseline=-2.0, scale=2.0),
        refused=(*SCALES, ({"max_terms": 0}, "max_terms .*0")),
    ),
    Row(uha.uha, {"num_samples": 1}, cases.WITH_PATH, estimands.uha, refused=NONE),
    Row(
        rebar.rebar,
        {"num_samples": 2, "temperature": 0.7, "strength": 0.8},
        BINARY,
        estimands.elbo,
        refused=(*NONE, *WARM),
    ),
    Row(
        relax.relax,
        {"num_samples": 2, "network": cases.CONTROL},
        cases.WITH_CONTROL,
        estimands.elbo,
        phi=estimands.elbo_and_control(cases.CONTROL),
        refused=NONE,
    ),
    Row(
        relaxed.straight_through,
        {"num_samples": 2},
        BINARY,
        estimands.elbo,
        phi=estimands.straight_through,
        refused=NONE,
    ),
    Row(
        relaxed.binary_concrete,
        {"num_samples": 2, "temperature": 0.7},
        TWO_BITS,
        estimands.elbo,
        phi=estimands.binary_concrete(0.7),
        refused=(*NONE, *WARM),
        slow=True,
    ),
    Row(
        relaxed.gumbel_softmax,
        {"num_samples": 2, "temperature": 0.7},
        cases.CLASSES,
        estimands.elbo,
        phi=estimands.gumbel_softmax(0.7),
        refused=(*NONE, *WARM),
        slow=True,
    ),
    Row(
        wake_sleep.wake_sleep,
        {"num_samples": 2},
        BINARY,
        estimands.elbo,
        phi=problems.log_q_of_dreams,
        refused=NONE,
    ),
    Row(
        wake_sleep.reweighted_wake_sleep,
        {"num_samples": 3, "sleep_share": 0.25},
        BINARY,
        estimands.iwae(3),
        phi=estimands.combination(
            (0.75, estimands.wake(3)), (0.25, problems.log_q_of_dreams)
        ),
        refused=(*NONE, ({"sleep_share": 1.5}, r"sleep_share .*1\.5")),
    ),
    Row(  # z is held fixed, though it could carry a gradient
        wake_sleep.reweighted_wake_sleep,
        {"num_samples": 3},
        NORMAL,
        estimands.iwae(3),
        phi=estimands.wake(3),
    ),
    Row(
        enumerated.elbo,
        {"num_latents": 4},
        BINARY,
        estimands.elbo,
        refused=(
            ({"num_latents": 0}, "num_latents=0"),
            ({"num_latents": 32, "max_terms": 2**40}, "num_latents=32"),
            ({"max_terms": 8}, "max_terms=8"),
        ),
    ),
]
