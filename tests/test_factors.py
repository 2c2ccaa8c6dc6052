import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from tests import testing
from vae_jax import factors, networks, posteriors, priors
from vae_jax.factors import Factor

NOTHING = jnp.zeros((0,))


def _normal(name, size, parent=None, network=None):
    return Factor(name, posteriors.diag_normal(size), parent=parent, network=network)


def _apply(net, x):
    return np.asarray(x) @ np.asarray(net["output"]["kernel"]) + net["output"]["bias"]


def _scipy_normal(h, z):
    mean, log_std = np.split(np.asarray(h), 2)
    return stats.norm.logpdf(z, mean, np.exp(log_std)).sum()


# The layout


def test_a_vector_is_split_into_its_parts_by_name_and_joined_again():
    layout, z = factors.layout({"b": 1, "a": 3, "c": 2}), jnp.arange(6.0)
    parts = layout.split(z)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "b": [0.0],
        "a": [1.0, 2.0, 3.0],
        "c": [4.0, 5.0],
    }
    np.testing.assert_array_equal(layout.join(dict(reversed(parts.items()))), z)


# Oracle: densities by hand


@pytest.mark.slow
def test_roots_are_a_product_each_at_its_own_part_of_h(x64):
    layout = factors.layout({"a": 2, "b": 3, "c": 1})
    bits = Factor("b", posteriors.bernoulli(3))
    density = factors.joint(layout, [_normal("a", 2), bits, _normal("c", 1)])
    assert density.shape == (6,)
    assert density.width == 4 + 3 + 2
    h = np.random.default_rng(0).normal(size=9)
    z = np.array([0.3, -1.2, 1.0, 0.0, 1.0, 0.7])
    params = density.init(jax.random.key(0))
    assert params == {"a": (), "b": (), "c": ()}
    p = 1.0 / (1.0 + np.exp(-h[4:7]))
    expected = _scipy_normal(h[:4], z[:2]) + _scipy_normal(h[7:], z[5:])
    expected += stats.bernoulli.logpmf(z[2:5], p).sum()
    got = density.log_prob(params, jnp.asarray(h), jnp.asarray(z))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_child_is_given_what_its_network_makes_of_its_parent(x64, order):
    layout = factors.layout({name: {"a": 2, "b": 1}[name] for name in order})
    child = _normal("b", 1, parent="a", network=networks.linear(2, 2))
    density = factors.joint(layout, [_normal("a", 2), child])
    assert density.width == 4
    params = {"a": (), "b_given_a": testing.affine(0, 2, 2), "b": ()}
    shapes = functools.partial(jax.tree.map, jnp.shape)
    assert shapes(density.init(jax.random.key(0))) == shapes(params)
    h, a, b = np.random.default_rng(1).normal(size=4), [0.3, -1.2], [0.7]
    z = jnp.asarray(a + b if order == "ab" else b + a)
    expected = _scipy_normal(h, a) + _scipy_normal(_apply(params["b_given_a"], a), b)
    log_prob = jax.jit(density.log_prob)
    np.testing.assert_allclose(log_prob(params, jnp.asarray(h), z), expected, rtol=1e-9)
    check_grads(log_prob, (params, jnp.asarray(h), z), order=1, modes=("rev",))


def test_two_children_of_one_parent_have_networks_of_their_own(x64):
    layout = factors.layout({"c": 1, "a": 2, "b": 1})
    children = [
        _normal(name, 1, parent="a", network=networks.linear(2, 2)) for name in "bc"
    ]
    density = factors.joint(layout, [_normal("a", 2), *children])
    params = {"a": (), "b": (), "c": ()}
    params |= {
        "b_given_a": testing.affine(0, 2, 2),
        "c_given_a": testing.affine(1, 2, 2),
    }
    h, z = np.random.default_rng(1).normal(size=4), np.array([0.7, 0.3, -1.2, 0.1])
    expected = _scipy_normal(h, z[1:3])
    expected += _scipy_normal(_apply(params["c_given_a"], z[1:3]), z[:1])
    expected += _scipy_normal(_apply(params["b_given_a"], z[1:3]), z[3:])
    got = density.log_prob(params, jnp.asarray(h), jnp.asarray(z))
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    keys = {
        np.asarray(leaf).tobytes()
        for name, leaf in density.init(jax.random.key(0)).items()
        if "given" in name
        for leaf in [leaf["output"]["kernel"]]
    }
    assert len(keys) == 2


# Statistical


def test_samples_of_a_chain_have_the_moments_of_the_joint_normal():
    top = Factor("z2", priors.standard_normal(2))
    below = _normal("z1", 1, parent="z2", network=networks.linear(2, 2))
    prior = factors.joint(factors.layout({"z1": 1, "z2": 2}), [top, below])
    assert prior.width == 0
    net = testing.affine_mean(1, 2, 1)
    params = {"z2": (), "z1_given_z2": net, "z1": ()}
    keys = jax.random.split(jax.random.key(2), 20_000)
    z = jax.jit(jax.vmap(prior.sample, (0, None, None)))(keys, params, NOTHING)
    w = np.asarray(net["output"]["kernel"])[:, :1]
    bias, log_std = np.asarray(net["output"]["bias"])
    testing.assert_mean_equals(z, np.array([bias, 0.0, 0.0]))
    centered = np.asarray(z) - np.array([bias, 0.0, 0.0])
    covariance = np.eye(3)
    covariance[0, 0] = (w**2).sum() + np.exp(2.0 * log_std)
    covariance[0, 1:] = covariance[1:, 0] = w[:, 0]
    testing.assert_mean_equals(centered[:, :, None] * centered[:, None], covariance)


def test_samples_of_roots_are_those_of_their_densities_and_independent():
    layout = factors.layout({"a": 1, "b": 1})
    density = factors.joint(layout, [_normal("a", 1), _normal("b", 1)])
    h = jnp.array([0.3, -0.5, -1.0, 0.2])  # mean and log std of a, then of b
    keys = jax.random.split(jax.random.key(3), 20_000)
    sample = jax.vmap(density.sample, (0, None, None))
    z = jax.jit(sample)(keys, {"a": (), "b": ()}, h)
    testing.assert_mean_equals(z, np.array([0.3, -1.0]))
    centered = np.asarray(z) - np.array([0.3, -1.0])
    covariance = np.diag(np.exp([-1.0, 0.4]))
    testing.assert_mean_equals(centered[:, :, None] * centered[:, None], covariance)


# Edge


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([_normal("a", 2)], r"one for each of \['a', 'b'\], got \['a'\]"),
        ([_normal("a", 2), _normal("a", 2)], "one for each"),
        ([_normal("a", 2), _normal("c", 1)], r"got \['a', 'c'\]"),
        ([_normal("a", 3), _normal("b", 1)], r"of a is of shape \(3,\).* has \[2\]"),
        (
            [_normal("a", 2), _normal("b", 1, parent="a")],
            "parent and network, or neith",
        ),
        (
            [_normal("a", 2), _normal("b", 1, network=networks.linear(2, 2))],
            "b needs parent and network.*parent=None",
        ),
        (
            [
                _normal("b", 1, parent="a", network=networks.linear(2, 2)),
                _normal("a", 2),
            ],
            "b is given 'a', which must stand before it",
        ),
        (
            [
                _normal("a", 2),
                _normal("b", 1, parent="b", network=networks.linear(1, 2)),
            ],
            "b is given 'b', which must stand before it",
        ),
        ([Factor("a", posteriors.categorical(1, 2)), _normal("b", 1)], r"\(1, 2\)"),
    ],
)
def test_factors_that_are_no_density_of_the_layout_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        factors.joint(factors.layout({"a": 2, "b": 1}), changed)


@pytest.mark.parametrize("sizes", [{}, {"a": 0}, {"a": 2, "b": -1}])
def test_a_layout_of_nothing_is_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be positive, at least one, got"):
        factors.layout(sizes)


def test_lengths_that_do_not_fit_are_refused_and_not_broadcast():
    layout = factors.layout({"a": 2, "b": 1})
    product = factors.joint(layout, [_normal("a", 2), _normal("b", 1)])
    params = {"a": (), "b": ()}
    with pytest.raises(ValueError, match=r"of shape \(3,\), got \(2,\)"):
        product.log_prob(params, jnp.zeros(6), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"z must be \[3\] for .*, got \(2,\)"):
        layout.split(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"joint reads h of 6 entries, got \(4,\)"):
        product.sample(jax.random.key(1), params, jnp.zeros(4))
    narrow = _normal("b", 1, parent="a", network=networks.linear(2, 1))
    chain = factors.joint(layout, [_normal("a", 2), narrow])
    params = {"a": (), "b_given_a": testing.affine(0, 2, 1), "b": ()}
    named = r"b_given_a gives \(1,\), but the density of b reads \[2\]"
    with pytest.raises(ValueError, match=named):
        chain.log_prob(params, jnp.zeros(4), jnp.zeros(3))
    with pytest.raises(ValueError, match=named):
        chain.sample(jax.random.key(1), params, jnp.zeros(4))
    with pytest.raises(ValueError, match=named):
        chain.sample_and_log_prob(jax.random.key(1), params, jnp.zeros(4))
