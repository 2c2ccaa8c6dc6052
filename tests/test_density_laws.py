"""The laws of a `Conditional`, for every builder of one: a row each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import laws, testing
from vae_jax import (
    codes,
    conditional,
    factors,
    finite_scalar,
    flows,
    networks,
    posteriors,
    power_spherical,
    priors,
    types,
    vector_quantized,
)
from vae_jax.evaluation import gaps
from vae_jax.factors import Factor
from vae_jax.latent_models import gmm
from vae_jax.types import Conditional

NUM_DRAWS = 20_000


class Row(NamedTuple):
    """A builder and a density that it made."""

    builder: Callable[..., Conditional]
    make: Callable[[], Conditional]
    rows_of_h: tuple[int, ...] = ()  # axes of h before its width
    moments: bool = False  # whether it knows its own


def _iaf(num_latents, num_layers):
    """Layers that read a context, with the order reversed in between."""
    start = networks.normal(std=0.5)
    layers = []
    for _ in range(num_layers):
        net = networks.made(num_latents, (4,), num_context=2, initializer=start)
        layers += [
            flows.inverse_autoregressive(net, num_latents, context_width=2),
            flows.reverse(num_latents),
        ]
    return posteriors.flow(posteriors.diag_normal(num_latents), flows.chain(*layers))


def _planar():
    return posteriors.flow(posteriors.full_normal(2), flows.planar(2))


def _coupling():
    net = networks.linear(1, 2, initializer=networks.normal(std=0.5))
    return posteriors.flow(posteriors.diag_normal(2), flows.affine_coupling(net, 2))


def _up():
    """q(z1) q(z2 | z1) q(b), whose z2 lies before the rest."""
    layout = factors.layout({"z2": 2, "z1": 3, "b": 2})
    net = networks.linear(3, 4, initializer=networks.normal(std=0.5))
    return factors.joint(
        layout,
        [
            Factor("z1", posteriors.diag_normal(3)),
            Factor("b", posteriors.bernoulli(2)),
            Factor("z2", posteriors.diag_normal(2), parent="z1", network=net),
        ],
    )


def _down():
    """p(z2) p(z1 | z2), unconditional."""
    layout = factors.layout({"z1": 3, "z2": 2})
    net = networks.linear(2, 6, initializer=networks.normal(std=0.5))
    return factors.joint(
        layout,
        [
            Factor("z2", priors.standard_normal(2)),
            Factor("z1", posteriors.diag_normal(3), parent="z2", network=net),
        ],
    )


def _conditioned():
    """p(z | c) at one c."""
    net = networks.linear(2, 4, initializer=networks.normal(std=0.5))

    def of_c(params, c):
        return net.apply(params, c.astype(jax.tree.leaves(params)[0].dtype))

    network, c = types.Network(net.init, of_c), jnp.array([0.3, -1.2])
    return conditional._at(posteriors.diag_normal(2), network, c)


LEVELS = (2, 3, 5)


def _codes():
    start = networks.normal(std=0.5)
    net = networks.made(3, (4,), outputs_per_input=5, initializer=start)
    return codes.autoregressive_prior(finite_scalar.grid(LEVELS), net)


def _quantizer():
    return vector_quantized.posterior(2, num_rows=4, width=3, num_levels=2, rotate=True)


ROWS = [
    Row(posteriors.diag_normal, lambda: posteriors.diag_normal(3), moments=True),
    Row(posteriors.full_normal, lambda: posteriors.full_normal(3), moments=True),
    Row(posteriors.bernoulli, lambda: posteriors.bernoulli(3), moments=True),
    Row(posteriors.categorical, lambda: posteriors.categorical(2, 3), moments=True),
    Row(posteriors.flow, lambda: _iaf(3, 2)),
    Row(posteriors.flow, _planar),
    Row(posteriors.flow, _coupling),
    Row(priors.standard_normal, lambda: priors.standard_normal(3), moments=True),
    Row(priors.bernoulli, lambda: priors.bernoulli(3)),
    Row(priors.categorical, lambda: priors.categorical(2, 3)),
    Row(priors.normal_mixture, lambda: priors.normal_mixture(2, 3)),
    Row(
        priors.equal_mixture,
        lambda: priors.equal_mixture(posteriors.diag_normal(2)),
        rows_of_h=(3,),
    ),
    Row(factors.joint, _up),
    Row(factors.joint, _down),
    Row(gaps.with_parameters_in_h, lambda: gaps.with_parameters_in_h(_coupling())),
    Row(conditional._at, _conditioned),
    Row(finite_scalar.posterior, lambda: finite_scalar.posterior(LEVELS), moments=True),
    Row(power_spherical.posterior, lambda: power_spherical.posterior(4), moments=True),
    Row(power_spherical.uniform_prior, lambda: power_spherical.uniform_prior(3)),
    Row(codes.point_mass, lambda: finite_scalar.posterior(LEVELS), moments=True),
    Row(vector_quantized.posterior, _quantizer, moments=True),
    Row(codes.uniform_prior, lambda: codes.uniform_prior(finite_scalar.grid(LEVELS))),
    Row(codes.autoregressive_prior, _codes),
    Row(gmm._one_of, lambda: gmm._one_of(3), moments=True),
    Row(gmm._one_of, lambda: gmm._one_of(1)),
]
KIN = {_coupling, _down}  # of `with_parameters_in_h` and of `_up`
SAID_IN_DOUBLE = {posteriors.flow, factors.joint, gaps.with_parameters_in_h}
EVERY_ROW = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[pytest.mark.slow] if row.make in KIN else [])
        for row in ROWS
    ],
    ids=lambda row: f"{row.builder.__name__}-{ROWS.index(row)}",
)


def _made(row, dtype=None) -> tuple[Conditional, Any, jax.Array]:
    """The density, parameters beside their start, and an h."""
    default = jnp.result_type(float)
    return _made_once(row, dtype or default, default)


@functools.cache
def _made_once(row, dtype, default):
    del default  # of the key of the cache alone: the start is drawn in it
    density = row.make()
    params = laws.jiggled(jax.jit(density.init)(jax.random.key(0)))
    h = 0.7 * np.random.default_rng(2).normal(size=(*row.rows_of_h, density.width))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return density, params, jnp.asarray(h, dtype)


def _samples(density, params, h, num=NUM_DRAWS):
    keys = jax.random.split(jax.random.key(3), num)
    sample = jax.vmap(density.sample, in_axes=(0, None, None))
    return jax.jit(sample)(keys, params, h)


def test_no_builder_of_a_density_is_left_out():
    # `conditional` makes any of them, and enumerated.posterior and sigmoid_belief their
    # own inside a Recognition: those are rows of test_model_laws.
    assert laws.builders(Conditional) - {types.conditional} == {
        row.builder for row in ROWS
    }


@pytest.mark.slow
@EVERY_ROW
def test_one_pass_gives_the_sample_and_its_density_with_their_total_gradient(x64, row):
    density, params, h = _made(row)
    _assert_one_pass(density, params, h, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, marks=[pytest.mark.slow] if row.builder in SAID_IN_DOUBLE else []
        )
        for row in ROWS
    ],
    ids=lambda row: f"{row.builder.__name__}-{ROWS.index(row)}",
)
def test_one_pass_gives_the_same_in_single_precision(row):
    density, params, h = _made(row)
    _assert_one_pass(density, params, h, atol=1e-6)


def _assert_one_pass(density, params, h, *, atol):
    key = jax.random.key(1)

    def composed(params, h):
        y = density.sample(jax.random.clone(key), params, h)
        return y, density.log_prob(params, h, y)

    def fused(params, h):
        return density.sample_and_log_prob(jax.random.clone(key), params, h)

    @jax.jit
    def both(params, h):
        return [laws.value_and_total_gradient(f, params, h) for f in (fused, composed)]

    got, expected = both(params, h)
    chex.assert_trees_all_close(got, expected, rtol=atol, atol=atol)
    (y, nats), _ = got
    assert y.shape == density.shape
    assert nats.shape == ()


@pytest.mark.slow
@EVERY_ROW
def test_every_result_has_the_dtype_of_h(x64, row):
    density, params, h = _made(row, jnp.float32)
    y = jax.eval_shape(density.sample, jax.random.key(0), params, h)
    assert (y.shape, y.dtype) == (density.shape, h.dtype)
    assert jax.eval_shape(density.log_prob, params, h, y).dtype == h.dtype
    both = jax.eval_shape(density.sample_and_log_prob, jax.random.key(0), params, h)
    assert {leaf.dtype for leaf in both} == {h.dtype}


@pytest.mark.slow
@EVERY_ROW
def test_moments_are_the_mean_and_the_standard_deviation_of_the_samples(x64, row):
    density, params, h = _made(row)
    assert (density.moments is not None) == row.moments
    if density.moments is None:
        return
    mean, std = density.moments(params, h)
    assert mean.shape == std.shape == density.shape
    y = _samples(density, params, h)
    testing.assert_mean_equals(y, mean)
    testing.assert_mean_equals((y - mean[None]) ** 2, std**2)


@pytest.mark.slow
@EVERY_ROW
def test_a_map_of_noise_is_the_density_with_its_inverse(x64, row):
    density, params, h = _made(row)
    has_map = {"standard_normal", "diag_normal", "full_normal", "flow"}
    assert (density.transport is not None) == (density.family.name in has_map)
    if density.transport is None:
        return
    forward, inverse = density.transport
    eps = jnp.asarray(np.random.default_rng(3).normal(size=density.shape))
    y = forward(params, h, eps)
    np.testing.assert_allclose(inverse(params, h, y), eps, rtol=1e-7, atol=1e-7)
    slope = jax.jit(jax.jacobian(forward, 2))(params, h, eps)
    log_det = jnp.linalg.slogdet(slope)[1]
    nats = -0.5 * (eps**2).sum() - 0.5 * eps.size * np.log(2.0 * np.pi) - log_det
    np.testing.assert_allclose(density.log_prob(params, h, y), nats, rtol=1e-7)


@pytest.mark.slow
@EVERY_ROW
def test_the_score_of_the_samples_has_mean_zero(x64, row):
    """In every parameter and all of h: so the density is the samples' own."""
    density, params, h = _made(row)
    y = _samples(density, params, h)
    score = jax.vmap(jax.grad(density.log_prob, (0, 1)), in_axes=(None, None, 0))
    slopes = jax.jit(score)(params, h, y)
    testing.assert_mean_equals(
        slopes, jax.tree.map(lambda s: jnp.zeros(s.shape[1:]), slopes)
    )


@pytest.mark.slow
@EVERY_ROW
def test_an_h_or_a_sample_of_another_size_is_refused_with_both_sizes(row):
    density, params, h = _made(row)
    name, key, wrong = density.family.name, jax.random.key(0), (*h.shape[:-1], 17)
    message = rf"density {name} reads h of {density.width} entries, got .*17"
    y = jnp.zeros(density.shape)
    for call in (
        lambda h: density.sample(key, params, h),
        lambda h: density.sample_and_log_prob(key, params, h),
        lambda h: density.log_prob(params, h, y),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call, jnp.zeros(wrong))
    longer = (density.shape[0] + 1, *density.shape[1:])
    for shape in ((), longer, (1, *density.shape)):
        with pytest.raises(ValueError, match=f"density {name} is of events of shape"):
            jax.eval_shape(density.log_prob, params, h, jnp.zeros(shape))
