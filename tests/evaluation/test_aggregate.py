import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax import divergences, posteriors, vae
from vae_jax.evaluation import aggregate
from vae_jax.types import Params, Recognition

NOTHING = Params((), ())
KL = divergences.diag_normal_to_standard_normal


def with_codes_as_rows(density) -> Recognition:
    """q whose h is the row itself, so that a test chooses the posteriors."""
    return vae.recognition(lambda params, x: x, density)


def normals():
    """Normals of two latents, given by their rows, below a standard normal prior."""
    generative, _ = problems.bernoulli_vae(num_latents=2)
    return vae.model(generative, with_codes_as_rows(posteriors.diag_normal(2)))


@functools.cache
def surgery(num_samples, *, batch_size=64):
    """Normals [mean, log_std] of two latents below a standard normal prior."""
    return aggregate.elbo_surgery(
        normals(), num_samples=num_samples, batch_size=batch_size
    )


def params_of_prior():
    return Params({"prior": ()}, ())


@pytest.mark.slow
def test_equal_posteriors_tell_nothing_of_the_row_and_two_apart_tell_log_two(x64):
    same = jnp.tile(jnp.array([0.4, -0.3, -0.5, 0.2]), (5, 1))
    got = surgery(3)(jax.random.key(0), params_of_prior(), same)
    np.testing.assert_allclose(got.mutual_information, np.zeros((5, 3)), atol=1e-12)
    apart = jnp.array([[-20.0, 0.0, 0.0, 0.0], [20.0, 0.0, 0.0, 0.0]])
    got = surgery(3)(jax.random.key(0), params_of_prior(), apart)
    expected = np.full((2, 3), math.log(2.0))
    np.testing.assert_allclose(got.mutual_information, expected, rtol=1e-9)


@pytest.mark.slow
def test_information_and_marginal_kl_add_up_to_the_mean_kl(x64):
    means, log_stds = jax.random.normal(jax.random.key(1), (2, 50, 2))
    hs = jnp.concatenate([0.8 * means, 0.3 * log_stds - 0.7], axis=1)
    got = surgery(1000)(jax.random.key(2), params_of_prior(), hs)
    exact = jax.vmap(lambda h: KL(*jnp.split(h, 2)))(hs).mean()
    total = got.mutual_information + got.marginal_kl
    error = aggregate.sampling_error(total)
    assert abs(total.mean() - exact) < 5.0 * error
    assert error < 0.01 * exact
    assert 0.0 < got.mutual_information.mean() < math.log(50)
    assert got.marginal_kl.mean() > 0.0


@pytest.mark.slow
def test_bits_have_the_information_of_a_table(x64):
    """q(z | x_n) of two bits: the mixture and both divergences are sums of four."""
    problem = problems.binary_model(num_latents=2, num_pixels=2)
    hs = jnp.array([[0.3, -1.0], [2.0, 0.5], [-1.5, 0.0]])
    model = vae.model(problem.generative, with_codes_as_rows(posteriors.bernoulli(2)))
    run = aggregate.elbo_surgery(model, num_samples=20_000, batch_size=3)
    got = run(jax.random.key(0), problem.params, hs)
    bits = problems.binary_rows(2)
    ones = 1.0 / (1.0 + np.exp(-np.asarray(hs)))[:, None]
    q = np.prod(np.where(bits == 1.0, ones, 1.0 - ones), axis=-1)
    logits = np.asarray(problem.params.generative["prior"]["logits"])
    on = 1.0 / (1.0 + np.exp(-logits))
    p = np.prod(np.where(bits == 1.0, on, 1.0 - on), axis=-1)
    mixture = q.mean(0)
    information = (q * np.log(q / mixture)).sum(1)
    assert got.total_correlation is None
    # Each row's samples are independent: the mean over rows within five errors.
    testing.assert_mean_equals(got.mutual_information.T, information)
    marginal = (q * np.log(mixture / p)).sum(1)
    testing.assert_mean_equals(got.marginal_kl.T, marginal)


@pytest.mark.slow
def test_the_exact_posterior_of_a_linear_model_carries_its_information():
    """I(x; z) = 1/2 log det(I + W^T W / std^2); the rows' information is below it."""
    problem = problems.linear_gaussian(num_latents=1)
    params = problem.params

    def draw(key):
        key_z, key_x = jax.random.split(key)
        z = problem.generative.sample_prior(key_z, params)
        return problem.generative.sample_observation(key_x, params, z)

    xs = jax.vmap(draw)(jax.random.split(jax.random.key(3), 1500))
    model = vae.model(problem.generative, problem.exact)
    run = aggregate.elbo_surgery(model, num_samples=2, batch_size=64)
    got = run(jax.random.key(4), params, xs)
    w = np.asarray(params.generative["decoder"]["output"]["kernel"])
    exact = 0.5 * math.log(1.0 + float((w**2).sum()) / 0.8**2)
    results = float(got.mutual_information.mean())
    # The rows are drawn too: their spread counts beside that of z.
    error = float(got.mutual_information.mean(1).std() / math.sqrt(len(xs)))
    assert abs(results - exact) < 5.0 * error
    assert abs(float(got.marginal_kl.mean())) < 0.02


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch_size_nor_rows_on_how_they_are_stored():
    hs = jax.random.normal(jax.random.key(1), (7, 4))
    first = surgery(2)(jax.random.key(2), params_of_prior(), hs)
    other = surgery(2, batch_size=3)(jax.random.key(2), params_of_prior(), hs)
    a: Any
    b: Any
    for a, b in zip(first, other, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    run = aggregate.elbo_surgery(
        normals(), num_samples=2, batch_size=7, value=lambda raw: raw / 10.0
    )
    scaled = run(jax.random.key(2), params_of_prior(), 10.0 * hs)
    for a, b in zip(first, scaled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_posteriors_far_narrower_than_their_distances_stay_finite():
    hs = jnp.array([[-9.0, 0.0, -30.0, -30.0], [9.0, 0.0, -30.0, -30.0]])
    got = surgery(3)(jax.random.key(0), params_of_prior(), hs)
    assert np.isfinite(got.mutual_information).all()
    assert np.isfinite(got.marginal_kl).all()


def test_the_sampling_error_is_that_of_a_mean_over_strata(x64):
    terms = jnp.array([[1.0, 3.0], [10.0, 10.0]])
    # Variances 2 and 0 of two samples each: sqrt(2 / 2) / 2.
    np.testing.assert_allclose(aggregate.sampling_error(terms), 0.5, rtol=1e-9)
    with pytest.raises(ValueError, match="num_samples must be 2 or more, got 1"):
        aggregate.sampling_error(terms[:, :1])


@pytest.mark.parametrize("changes", [{"num_samples": 0}, {"batch_size": 0}])
def test_numbers_below_one_are_refused(changes):
    numbers = {"num_samples": 1, "batch_size": 1, **changes}
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be positive"):
        aggregate.elbo_surgery(normals(), **numbers)


def test_the_parts_of_the_mean_kl_add_up_and_have_the_errors_of_their_terms():
    keys = jax.random.split(jax.random.key(0), 3)
    terms = aggregate.Surgery(*(jax.random.normal(key, (4, 3)) for key in keys))
    assert terms.total_correlation is not None
    got = aggregate.parts(terms)
    each = {
        "mutual_information": terms.mutual_information,
        "marginal_kl": terms.marginal_kl,
        "mean_kl": terms.mutual_information + terms.marginal_kl,
        "total_correlation": terms.total_correlation,
        "dimension_wise_kl": terms.marginal_kl - terms.total_correlation,
    }
    assert set(got) == {*each, *(f"{name}_error" for name in each)}
    for name, values in each.items():
        np.testing.assert_allclose(got[name], values.mean(), rtol=1e-5)
        error = aggregate.sampling_error(values)
        np.testing.assert_allclose(got[f"{name}_error"], error, rtol=1e-5)
    assert "total_correlation" not in aggregate.parts(
        terms._replace(total_correlation=None)
    )


@pytest.mark.slow
def test_the_three_parts_are_those_of_quadrature_and_sum_to_the_closed_kl(x64):
    """Four rows of two latents, on a grid; the terms are within five errors of it."""
    means, log_stds = jax.random.normal(jax.random.key(1), (2, 4, 2))
    hs = np.asarray(jnp.concatenate([1.5 * means, 0.2 * log_stds - 0.5], axis=1))
    line = np.linspace(-9.0, 9.0, 361)
    z = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)  # [G, G, 2]
    cell = (line[1] - line[0]) ** 2
    scale = np.exp(hs[:, None, None, 2:])
    eps = (z - hs[:, None, None, :2]) / scale
    q = np.exp(-0.5 * eps**2) / (scale * math.sqrt(2.0 * math.pi))  # [4, G, G, 2]
    rows, each = q.prod(-1), np.log(q.mean(0)).sum(-1)
    joint = np.log(rows.mean(0))
    prior = -0.5 * (z**2).sum(-1) - math.log(2.0 * math.pi)

    def mean(log_ratio):
        return (rows * log_ratio).sum((1, 2)).mean() * cell

    exact = {
        "mutual_information": mean(np.log(rows) - joint),
        "total_correlation": mean(joint - each),
        "dimension_wise_kl": mean(each - prior),
    }
    kl = jax.vmap(lambda h: KL(*jnp.split(h, 2)))(jnp.asarray(hs)).mean()
    np.testing.assert_allclose(sum(exact.values()), kl, rtol=1e-8)
    terms = surgery(4000)(jax.random.key(2), params_of_prior(), jnp.asarray(hs))
    got = aggregate.parts(terms)
    for name, value in exact.items():
        assert abs(got[name] - value) < 5.0 * got[f"{name}_error"], name
    assert exact["total_correlation"] > 20.0 * got["total_correlation_error"]
