"""Every estimator against what is known exactly, a row of `rows` each."""

import functools
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import pytest

from tests import testing
from tests.estimators.rows import ROWS, build
from vae_jax import estimators
from vae_jax.types import ExampleObjective


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


@pytest.mark.slow
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


@pytest.mark.slow
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
