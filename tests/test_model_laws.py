"""The laws of a `Model`, for every builder of one and of its halves: a row each."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import laws, testing
from tests.model_rows import ROWS, SLOW, own_kl
from vae_jax import (
    divergences,
    types,
)
from vae_jax.types import Generative, Model, Recognition

NUM_DRAWS = 5_000
PARAMS = [
    pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.name in SLOW else [])
    for row in ROWS
]
EVERY_ROW = pytest.mark.parametrize("row", PARAMS)
CLOSED = pytest.mark.parametrize(
    "row", [param for row, param in zip(ROWS, PARAMS, strict=True) if row.groups]
)


def _made(row) -> tuple[Model, Any, jax.Array, Any]:
    """The model, parameters beside their start, x and its h."""
    return _made_once(row.name, jnp.result_type(float))


@functools.cache
def _made_once(name, dtype):
    (row,) = (row for row in ROWS if row.name == name)
    model, x = row.make(), jnp.asarray(row.x, dtype)
    params = laws.jiggled(jax.jit(model.init)(jax.random.key(0)))
    h = jax.jit(model.recognition.encode)(params, x)
    return model, params, x, h


def test_no_builder_of_a_model_or_its_halves_is_left_out():
    assert {row.name for row in ROWS} >= SLOW
    shown = set().union(*(row.builders for row in ROWS))
    assert laws.builders(Model, Generative, Recognition) == shown


@pytest.mark.slow
@EVERY_ROW
def test_a_draw_is_what_the_functions_give_with_its_total_gradient(x64, row):
    model, params, x, h = _made(row)
    generative, recognition, key = (
        model.generative,
        model.recognition,
        jax.random.key(1),
    )

    def fused(params, h):
        sampled = model.draw(jax.random.clone(key), params, x, h)
        return sampled._replace(kl=sampled.kl.sum())

    def composed(params, h):
        z = recognition.sample(jax.random.clone(key), params, h)
        log_q, log_prior = (
            recognition.log_prob(params, h, z),
            generative.log_prior(params, z),
        )
        terms = generative.log_likelihood_terms(params, x, z)
        kl = log_q - log_prior if model.kl is None else model.kl(params, h).sum()
        if row.layers > 1:  # closed given the layers above: its law is the next test's
            kl = model.draw(jax.random.clone(key), params, x, h).kl.sum()
        return types.Draw(z, terms, log_prior, log_q, kl)

    def one_pass(params, h):
        return recognition.sample_and_log_prob(jax.random.clone(key), params, h)

    @jax.jit
    def all_of(params, h):
        both = [laws.value_and_total_gradient(f, params, h) for f in (fused, composed)]
        return *both, one_pass(params, h)

    got, expected, (z, log_q) = all_of(params, h)
    chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-9)
    chex.assert_tree_all_finite(got)
    np.testing.assert_allclose(z, expected[0].z, rtol=1e-9)
    np.testing.assert_allclose(log_q, expected[0].log_posterior, rtol=1e-9)


@pytest.mark.slow
@EVERY_ROW
def test_the_kl_of_a_draw_has_the_mean_of_the_log_ratio(x64, row):
    """Moments of q, where it knows them, on the same draws."""
    model, params, x, h = _made(row)
    keys = jax.random.split(jax.random.key(2), NUM_DRAWS)
    draw = jax.jit(jax.vmap(model.draw, in_axes=(0, None, None, None)))
    sampled = draw(keys, params, x, h)
    groups = row.layers if row.groups is None else row.groups
    assert sampled.kl.shape == (NUM_DRAWS, groups)
    assert (model.kl is None) == (row.groups is None)
    ratio = sampled.log_posterior - sampled.log_prior
    testing.assert_mean_equals(ratio - sampled.kl.sum(1), 0.0)
    if row.groups:
        assert float(sampled.kl.std()) > 0.0 or row.groups == 1
        np.testing.assert_allclose(sampled.kl.std(0), 0.0, atol=1e-9)
    if model.recognition.moments is not None:
        mean, std = model.recognition.moments(params, h)
        testing.assert_mean_equals(sampled.z, mean)
        testing.assert_mean_equals((sampled.z - mean[None]) ** 2, std**2)


@pytest.mark.slow
@CLOSED
def test_the_closed_kl_is_that_of_the_families_parameters(x64, row):
    model, params, _, h = _made(row)
    q, p = model.recognition.family, model.generative.prior_family
    form = divergences.closed_kl(q.name, p.name)
    assert model.kl is not None
    if form is None:  # handed in
        assert row.make is own_kl
        return
    assert q.parameters
    assert p.parameters
    expected = form(*q.parameters(params, h), *p.parameters(params))
    np.testing.assert_allclose(model.kl(params, h), expected, rtol=1e-12)


@pytest.mark.slow
def test_every_closed_form_is_that_of_some_row():
    shown = set()
    for row in ROWS:
        model = row.make()
        shown.add((model.recognition.family.name, model.generative.prior_family.name))
    assert set(divergences._FACTORIZED) | set(divergences._JOINT) <= shown


def test_closed_forms_of_groups_are_those_of_each_latent_by_itself(x64):
    model, params, x, h = _made(ROWS[0])
    del x
    assert model.kl is not None
    mean, log_std = jnp.split(h, 2)
    each = [
        divergences.diag_normal_to_standard_normal(mean[i : i + 1], log_std[i : i + 1])
        for i in range(2)
    ]
    np.testing.assert_allclose(model.kl(params, h), each, rtol=1e-12)
