"""Several stochastic layers of `factors`: chains whose every number is known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import testing
from vae_jax import factors, likelihoods, networks, posteriors, priors, vae
from vae_jax.estimators import importance, sgvb
from vae_jax.factors import Factor
from vae_jax.types import Params

NOTHING = jnp.zeros((0,))


def _normal(name, size, parent=None, network=None):
    return Factor(name, posteriors.diag_normal(size), parent=parent, network=network)


# Linear normal chains: everything known


def _layout(sizes):
    return factors.layout({f"z{i + 1}": size for i, size in enumerate(sizes)})


def _downward(sizes, std):
    """The prior z_L -> ... -> z_1 of normals with affine means, and its parameters."""
    top = f"z{len(sizes)}"
    chain, params = [Factor(top, priors.standard_normal(sizes[-1]))], {top: ()}
    for i in reversed(range(len(sizes) - 1)):
        size, above = sizes[i], sizes[i + 1]
        net = networks.linear(above, 2 * size)
        chain.append(_normal(f"z{i + 1}", size, parent=f"z{i + 2}", network=net))
        layer = testing.affine_mean(above, above, size)["output"]
        layer["bias"] = layer["bias"].at[size:].set(np.log(std))
        params |= {f"z{i + 1}_given_z{i + 2}": {"output": layer}, f"z{i + 1}": ()}
    return factors.joint(_layout(sizes), chain), params


def _maps(params, sizes):
    """(W, b) of every z_l given z_{l+1}, from the top down."""
    for i in reversed(range(len(sizes) - 1)):
        net = params[f"z{i + 1}_given_z{i + 2}"]["output"]
        kernel, bias = np.asarray(net["kernel"]), np.asarray(net["bias"])
        yield kernel[:, : sizes[i]].T, bias[: sizes[i]]


def _conditioned(mean, cov, w, b, noise):
    """y ~ N(mean, cov) given v = W y + b + noise e: gain K, offset, covariance.

    And the mean and covariance of v.
    """
    mean_v, cov_v = w @ mean + b, w @ cov @ w.T + noise**2 * np.eye(len(b))
    gain = cov @ w.T @ np.linalg.inv(cov_v)
    return (gain, mean - gain @ mean_v, cov - gain @ w @ cov), mean_v, cov_v


def _full_normal_layer(gain, offset, covariance):
    """Affine network from v to the h of `posteriors.full_normal`."""
    lower = np.linalg.cholesky(covariance)
    packed = np.tril(lower, -1) + np.diag(np.log(np.diag(lower)))
    packed = packed[np.tril_indices(len(lower))]
    kernel = np.concatenate([gain.T, np.zeros((gain.shape[1], len(packed)))], 1)
    bias = np.concatenate([offset, packed])
    return {"output": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}


def _reading_z1(layout, network):
    """A decoder of the first layer alone."""
    return network._replace(
        apply=lambda params, z: network.apply(params, layout.split(z)["z1"])
    )


@pytest.mark.parametrize("sizes", [(2, 2), (2, 1, 3)])
@pytest.mark.slow
def test_the_log_weight_of_a_chain_is_log_p_where_its_posterior_is_exact(x64, sizes):
    std, noise, num_pixels = 0.7, 0.5, 3
    prior, prior_params = _downward(sizes, std)
    decoder = _reading_z1(_layout(sizes), networks.linear(sizes[0], num_pixels))
    generative = vae.decoder_model(
        decoder, prior, likelihoods.normal((num_pixels,), std=noise)
    )
    decoder_params = testing.affine(9, sizes[0], num_pixels)
    theta = {"decoder": decoder_params, "prior": prior_params, "likelihood": ()}
    shapes = functools.partial(jax.tree.map, jnp.shape)
    assert shapes(jax.jit(generative.init)(jax.random.key(0))) == shapes(theta)

    mean, cov, layers = np.zeros(sizes[-1]), np.eye(sizes[-1]), []
    for w, b in _maps(prior_params, sizes):
        posterior, mean, cov = _conditioned(mean, cov, w, b, std)
        layers.insert(0, _full_normal_layer(*posterior))
    w, b = (np.asarray(decoder_params["output"][k]) for k in ("kernel", "bias"))
    cov_x: Any
    posterior, mean_x, cov_x = _conditioned(mean, cov, w.T, b, noise)
    x = np.random.default_rng(4).normal(size=num_pixels)
    log_p = stats.multivariate_normal(mean_x, cov_x).logpdf(x)

    full = [posteriors.full_normal(size) for size in sizes]
    chain, params = [Factor("z1", full[0])], {"z1": ()}
    for i, layer in enumerate(layers):
        name, parent = f"z{i + 2}", f"z{i + 1}"
        net = networks.linear(sizes[i], full[i + 1].width)
        chain.append(Factor(name, full[i + 1], parent=parent, network=net))
        params |= {f"{name}_given_{parent}": layer, name: ()}
    density = factors.joint(_layout(sizes), chain)
    recognition = vae.encoder_model(networks.linear(num_pixels, density.width), density)
    phi = {"encoder": _full_normal_layer(*posterior), "posterior": params}
    assert shapes(jax.jit(recognition.init)(jax.random.key(0))) == shapes(phi)

    model = vae.model(generative, recognition)
    draw = importance.log_weights(model, num_samples=4)

    @jax.jit
    def log_weights(key, params, x):
        return draw(key, params, x, recognition.encode(params, x))

    log_w = log_weights(jax.random.key(5), Params(theta, phi), jnp.asarray(x))
    np.testing.assert_allclose(log_w, np.full(4, log_p), rtol=1e-9)


X = np.array([0.4, -1.0])
NOISE = 0.6


def _two_layers():
    """z2 -> z1 -> x with one latent each and a q that is not the posterior."""
    layout = _layout((1, 1))
    top = Factor("z2", priors.standard_normal(1))
    below = _normal("z1", 1, parent="z2", network=networks.linear(1, 2))
    decoder = _reading_z1(layout, networks.linear(1, 2))
    generative = vae.decoder_model(
        decoder,
        factors.joint(layout, [top, below]),
        likelihoods.normal((2,), std=NOISE),
    )
    above = _normal("z2", 1, parent="z1", network=networks.linear(1, 2))
    posterior = factors.joint(layout, [_normal("z1", 1), above])
    recognition = vae.encoder_model(networks.linear(2, 2), posterior)
    theta = {
        "decoder": testing.affine(0, 1, 2),
        "prior": {"z2": (), "z1_given_z2": testing.affine_mean(1, 1, 1), "z1": ()},
        "likelihood": (),
    }
    phi = {
        "encoder": testing.affine_mean(2, 2, 1),
        "posterior": {"z1": (), "z2_given_z1": testing.affine_mean(3, 1, 1), "z2": ()},
    }
    for layer in (phi["encoder"], phi["posterior"]["z2_given_z1"]):
        # Wider than the posterior, so that the weights are bounded.
        layer["output"]["bias"] = layer["output"]["bias"].at[1].set(0.3)
    return generative, recognition, Params(theta, phi)


def _exact_bound(*, num_samples, num_nodes=41):
    """(params, x) -> E[L_K] by quadrature over the noise of q, densities by hand."""
    grid = np.linspace(-7.0, 7.0, num_nodes)
    eps = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    weights = np.exp(-0.5 * (eps**2).sum(1))
    weights = jnp.asarray(weights / weights.sum())

    def affine(net, v):
        return v @ net["output"]["kernel"] + net["output"]["bias"]

    def log_normal(v, mean, log_std):
        scaled = (v - mean) * jnp.exp(-log_std)
        return -0.5 * scaled**2 - log_std - 0.5 * np.log(2.0 * np.pi)

    def log_weight(params, x, eps):
        theta, phi = params
        h1 = affine(phi["encoder"], x)
        z1 = h1[0] + jnp.exp(h1[1]) * eps[0]
        h2 = affine(phi["posterior"]["z2_given_z1"], z1[None])
        z2 = h2[0] + jnp.exp(h2[1]) * eps[1]
        log_q = log_normal(z1, *h1) + log_normal(z2, *h2)
        below = affine(theta["prior"]["z1_given_z2"], z2[None])
        log_p = log_normal(z2, 0.0, jnp.zeros(())) + log_normal(z1, *below)
        log_std = jnp.full((2,), np.log(NOISE))
        terms = log_normal(x, affine(theta["decoder"], z1[None]), log_std)
        return log_p + terms.sum() - log_q

    def bound(params, x):
        log_w = jax.vmap(log_weight, (None, None, 0))(params, x, jnp.asarray(eps))
        if num_samples == 1:
            return weights @ log_w
        return testing.expected_log_mean_exp(
            log_w, weights, num_samples=num_samples, num_nodes=1500
        )

    return bound


@pytest.mark.parametrize("num_samples", [1, 5])
@pytest.mark.slow
def test_estimators_of_a_chain_are_unbiased_for_the_bound_and_its_gradient(
    x64, num_samples
):
    generative, recognition, params = _two_layers()
    x, bound = jnp.asarray(X), _exact_bound(num_samples=num_samples)
    build = sgvb.sgvb_a if num_samples == 1 else importance.iwae
    model = vae.model(generative, recognition)
    objective = build(model, num_samples=num_samples)
    testing.assert_unbiased(objective, params, x, bound)
    finer = _exact_bound(num_samples=num_samples, num_nodes=51)
    np.testing.assert_allclose(
        jax.jit(bound)(params, x), jax.jit(finer)(params, x), rtol=1e-6
    )


@pytest.mark.slow
def test_a_chain_compiled_and_batched_is_a_loop():
    _, recognition, params = _two_layers()
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 3)

    def one(key, x):
        h = recognition.encode(params, x)
        z = recognition.sample(key, params, h)
        return z, recognition.log_prob(params, h, z)

    got = jax.jit(jax.vmap(one))(jax.random.clone(keys), xs)
    assert all(leaf.dtype == jnp.float32 for leaf in got)
    for i in range(3):
        for a, b in zip(got, one(keys[i], xs[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


# The model of Burda et al. 2016


@pytest.mark.slow
def test_two_stochastic_layers_can_be_written_with_the_records():
    # x-8-8-z1(4)-5-5-z2(2), for their x-200-200-100-100-100-50.
    layout = _layout((4, 2))
    above = _normal("z2", 2, parent="z1", network=networks.mlp(4, (5, 5), 4))
    posterior = factors.joint(layout, [_normal("z1", 4), above])
    top = Factor("z2", priors.standard_normal(2))
    below = _normal("z1", 4, parent="z2", network=networks.mlp(2, (5, 5), 8))
    prior = factors.joint(layout, [top, below])
    decoder = _reading_z1(layout, networks.mlp(4, (8, 8), 6))
    generative = vae.decoder_model(decoder, prior, likelihoods.bernoulli((2, 3)))
    recognition = vae.encoder_model(networks.mlp(6, (8, 8), 8), posterior)
    params = Params(
        jax.jit(generative.init)(jax.random.key(1)),
        jax.jit(recognition.init)(jax.random.key(2)),
    )
    objective = importance.iwae(vae.model(generative, recognition), num_samples=5)
    x = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    slopes = jax.jit(jax.grad(objective, 1))(jax.random.key(4), params, x)
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all()
        assert np.any(leaf)  # reparameterized: every layer is reached

    @jax.jit
    def of_z(key):
        def log_likelihood(z):
            return generative.log_likelihood_terms(params, x, z).sum()

        z = generative.sample_prior(key, params)
        prior = jax.grad(lambda z: generative.log_prior(params, z))(z)
        return prior, jax.grad(log_likelihood)(z)

    slope_of_prior, slope = of_z(jax.random.key(5))
    assert slope_of_prior.shape == (6,)
    assert np.all(slope_of_prior)
    assert np.all(slope[:4])
    np.testing.assert_array_equal(slope[4:], np.zeros(2))  # it reads z1 alone
