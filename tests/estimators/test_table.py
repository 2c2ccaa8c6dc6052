"""Every estimator against what is known exactly, a row each."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from tests import estimands, problems, testing
from tests.estimators import cases
from tests.estimators.cases import (
    BINARY,
    NAN,
    NORMAL,
    NORMALS,
    TWO_BITS,
    Case,
)
from vae_jax import bounds, estimators
from vae_jax.estimators import (
    arms,
    disarm,
    enumerated,
    gdreg,
    importance,
    missing_data,
    multiply_weighted,
    rebar,
    regularized,
    relaxed,
    score_function,
    sgvb,
    thermodynamic,
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
ONE = (({"num_samples": 1}, "num_samples .*two or more, got 1"),)
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
        rebar.rebar,
        {"num_samples": 2, "temperature": 0.7, "strength": 0.8},
        BINARY,
        estimands.elbo,
        refused=(*NONE, *WARM),
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


@functools.cache  # rows of one case share what is exact, and its program
def _exactly(bound, make):
    return bound(make())


def _name(row):
    return f"{row.builder.__name__}-{ROWS.index(row)}"


EVERY_ROW = pytest.mark.parametrize("row", ROWS, ids=_name)
SLOW = {True: (pytest.mark.slow,), False: ()}
FIRST = {row.builder: row for row in reversed(ROWS)}


def test_no_estimator_is_left_out_of_the_table():
    results = set()
    for module in pkgutil.iter_modules(estimators.__path__):
        home = importlib.import_module(f"{estimators.__name__}.{module.name}")
        for name, function in inspect.getmembers(home, inspect.isfunction):
            takes = list(inspect.signature(function).parameters)
            returned = inspect.signature(function).return_annotation
            is_builder = returned is ExampleObjective and takes[:1] == ["model"]
            if is_builder and not name.startswith("_"):
                results.add(function)
    assert results == {row.builder for row in ROWS}


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=_name(row), marks=SLOW[row.slow]) for row in ROWS]
)
def test_value_and_gradient_are_unbiased_for_what_is_stated(x64, row):
    problem, x = row.case.make(), jnp.asarray(row.case.xs[0])
    samples = testing.assert_unbiased(
        build(row, problem),
        problem.params,
        x,
        _exactly(row.bound, row.case.make),
        bound_of_phi=row.phi and _exactly(row.phi, row.case.make),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(samples)} == {jnp.dtype("float64")}


@EVERY_ROW
@pytest.mark.slow
def test_jit_agrees_with_eager_and_vmap_with_a_loop(row):
    problem, xs = row.case.make(), jnp.asarray(row.case.xs)
    objective = build(row, problem)
    testing.assert_same_compiled_and_batched(objective, problem.params, xs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=_name(row), marks=SLOW[row is not FIRST[row.builder]])
        for row in ROWS
    ],
)
def test_what_comes_in_single_precision_goes_out_so_where_double_is_allowed(x64, row):
    problem, x = row.case.make(), jnp.asarray(row.case.xs[0], jnp.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), problem.params)
    both = jax.value_and_grad(build(row, problem), argnums=1)
    out = jax.eval_shape(both, jax.random.key(0), params, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {x.dtype}


REFUSALS = [(row, *refusal) for row in ROWS for refusal in row.refused]


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [pytest.param(*case, id=f"{_name(case[0])}-{case[1]}") for case in REFUSALS],
)
def test_what_makes_no_estimator_is_refused_when_built(x64, row, settings, message):
    build(row, row.case.make())
    with pytest.raises(ValueError, match=message):
        build(row, row.case.make(), **settings)


def test_every_estimator_refuses_something():
    assert {row.builder for row, *_ in REFUSALS} == {row.builder for row in ROWS}
