import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from tests import testing
from vae_jax import factors, likelihoods, networks, posteriors, priors, vae
from vae_jax.estimators import importance, sgvb
from vae_jax.factors import Factor
from vae_jax.types import Params

NOTHING = jnp.zeros((0,))


def _normal(name, size):
    return Factor(name, size, posteriors.diag_normal(size))


def _affine(seed, num_inputs, num_outputs, *, scale=0.6):
    """Parameters of `networks.linear` in the default float type."""
    rng, dtype = np.random.default_rng(seed), jnp.result_type(float)
    kernel = scale * rng.normal(size=(num_inputs, num_outputs))
    bias = scale * rng.normal(size=num_outputs)
    layer = {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray(bias, dtype)}
    return {"output": layer}


def _mean_alone(seed, num_inputs, size):
    """As `_affine`, to [mean, log std] of which the log std is constant."""
    layer = _affine(seed, num_inputs, 2 * size)["output"]
    return {"output": layer | {"kernel": layer["kernel"].at[:, size:].set(0.0)}}


def _apply(net, x):
    return np.asarray(x) @ np.asarray(net["output"]["kernel"]) + net["output"]["bias"]


def _scipy_normal(h, z):
    mean, log_std = np.split(np.asarray(h), 2)
    return stats.norm.logpdf(z, mean, np.exp(log_std)).sum()


# Oracle: densities by hand


def test_a_product_is_the_sum_of_its_factors_each_at_its_own_part_of_h(x64):
    bits = Factor("b", 3, posteriors.bernoulli(3))
    density = factors.product([_normal("a", 2), bits, _normal("c", 1)])
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


@pytest.mark.parametrize("first_is_last", [False, True])
def test_a_chain_is_one_part_and_the_other_given_it(x64, first_is_last):
    net = networks.linear(2, 2)
    density = factors.chain(
        _normal("a", 2), net, _normal("b", 1), first_is_last=first_is_last
    )
    assert density.width == 4
    params = {"a": (), "b_given_a": _affine(0, 2, 2), "b": ()}
    shapes = functools.partial(jax.tree.map, jnp.shape)
    assert shapes(density.init(jax.random.key(0))) == shapes(params)
    h, a, b = np.random.default_rng(1).normal(size=4), [0.3, -1.2], [0.7]
    z = jnp.asarray(b + a if first_is_last else a + b)
    expected = _scipy_normal(h, a) + _scipy_normal(_apply(params["b_given_a"], a), b)
    log_prob = jax.jit(density.log_prob)
    np.testing.assert_allclose(log_prob(params, jnp.asarray(h), z), expected, rtol=1e-9)
    check_grads(log_prob, (params, jnp.asarray(h), z), order=1, modes=("rev",))


# Statistical


def test_samples_of_a_chain_have_the_moments_of_the_joint_normal():
    top = Factor("z2", 2, priors.standard_normal(2))
    prior = factors.chain(
        top, networks.linear(2, 2), _normal("z1", 1), first_is_last=True
    )
    assert prior.width == 0
    net = _mean_alone(1, 2, 1)
    params = {"z2": (), "z1_given_z2": net, "z1": ()}
    keys = jax.random.split(jax.random.key(2), 20_000)
    z = jax.jit(jax.vmap(prior.sample, (0, None, None)))(keys, params, NOTHING)
    w = np.asarray(net["output"]["kernel"])[:, :1]
    bias, log_std = np.asarray(net["output"]["bias"])
    testing.assert_mean_equals(z, np.array([bias, 0.0, 0.0]))
    centred = np.asarray(z) - np.array([bias, 0.0, 0.0])
    covariance = np.eye(3)
    covariance[0, 0] = (w**2).sum() + np.exp(2.0 * log_std)
    covariance[0, 1:] = covariance[1:, 0] = w[:, 0]
    testing.assert_mean_equals(centred[:, :, None] * centred[:, None], covariance)


def test_samples_of_a_product_are_those_of_its_factors_and_independent():
    density = factors.product([_normal("a", 1), _normal("b", 1)])
    h = jnp.array([0.3, -0.5, -1.0, 0.2])  # mean and log std of a, then of b
    keys = jax.random.split(jax.random.key(3), 20_000)
    sample = jax.vmap(density.sample, (0, None, None))
    z = jax.jit(sample)(keys, {"a": (), "b": ()}, h)
    testing.assert_mean_equals(z, np.array([0.3, -1.0]))
    centred = np.asarray(z) - np.array([0.3, -1.0])
    covariance = np.diag(np.exp([-1.0, 0.4]))
    testing.assert_mean_equals(centred[:, :, None] * centred[:, None], covariance)


# Linear normal chains: everything known


def _downward(sizes, std):
    """The prior z_L -> ... -> z_1 of normals with affine means, by nesting."""
    *below, last = [_normal(f"z{i + 1}", size) for i, size in enumerate(sizes)]
    given = last._replace(density=priors.standard_normal(last.size))
    params: Any = ()
    layout = [last]
    for factor in reversed(below):
        above = layout[0]
        net = networks.linear(above.size, 2 * factor.size)
        weights = _mean_alone(above.size, above.size, factor.size)
        layer = weights["output"]
        layer["bias"] = layer["bias"].at[factor.size :].set(np.log(std))
        if len(layout) > 1:
            net = factors.reading(above.name, net, layout)
        density = factors.chain(given, net, factor, first_is_last=True)
        link = f"{factor.name}_given_{given.name}"
        params = {given.name: params, link: weights, factor.name: ()}
        layout = [factor, *layout]
        given = Factor("from_" + factor.name, sum(f.size for f in layout), density)
    return given.density, params


def _maps(params, sizes):
    """(W, b) of every z_l given z_{l+1}, from the top down."""
    found = []
    while params:
        (link,) = (name for name in params if "_given_" in name)
        found.append(params[link]["output"])
        (above,) = (n for n in params if n != link and link.endswith("given_" + n))
        params = params[above]
    sizes = sizes[:-1]
    return [
        (np.asarray(net["kernel"])[:, :size].T, np.asarray(net["bias"])[:size])
        for net, size in zip(found, sizes, strict=True)
    ][::-1]


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


@pytest.mark.parametrize("sizes", [(2, 2), (2, 1, 3)])
@pytest.mark.slow
def test_the_log_weight_of_a_chain_is_log_p_where_its_posterior_is_exact(x64, sizes):
    std, noise, num_pixels = 0.7, 0.5, 3
    prior, prior_params = _downward(sizes, std)
    layout = [_normal(f"z{i + 1}", size) for i, size in enumerate(sizes)]
    decoder = factors.reading("z1", networks.linear(sizes[0], num_pixels), layout)
    generative = vae.decoder_model(
        decoder, prior, likelihoods.normal((num_pixels,), std=noise)
    )
    decoder_params = _affine(9, sizes[0], num_pixels)
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

    full = [
        Factor(f"z{i + 1}", size, posteriors.full_normal(size))
        for i, size in enumerate(sizes)
    ]
    *lower, above = full
    params, rest = (), above
    for factor, layer in zip(reversed(lower), reversed(layers), strict=True):
        net = networks.linear(factor.size, rest.density.width)
        density = factors.chain(factor, net, rest)
        link = f"{rest.name}_given_{factor.name}"
        params = {factor.name: (), link: layer, rest.name: params}
        rest = Factor(f"{factor.name}_up", factor.size + rest.size, density)
    recognition = vae.encoder_model(
        networks.linear(num_pixels, rest.density.width), rest.density
    )
    phi = {"encoder": _full_normal_layer(*posterior), "posterior": params}
    assert shapes(jax.jit(recognition.init)(jax.random.key(0))) == shapes(phi)

    draw = importance.log_weights(generative, recognition, num_samples=4)

    @jax.jit
    def log_weights(key, params, x):
        return draw(key, params, x, recognition.encode(params, x))

    log_w = log_weights(jax.random.key(5), Params(theta, phi), jnp.asarray(x))
    np.testing.assert_allclose(log_w, np.full(4, log_p), rtol=1e-9)


X = np.array([0.4, -1.0])
NOISE = 0.6


def _two_layers():
    """z2 -> z1 -> x with one latent each and a q that is not the posterior."""
    z1, z2 = _normal("z1", 1), _normal("z2", 1)
    top = Factor("z2", 1, priors.standard_normal(1))
    prior = factors.chain(top, networks.linear(1, 2), z1, first_is_last=True)
    decoder = factors.reading("z1", networks.linear(1, 2), [z1, z2])
    generative = vae.decoder_model(decoder, prior, likelihoods.normal((2,), std=NOISE))
    posterior = factors.chain(z1, networks.linear(1, 2), z2)
    recognition = vae.encoder_model(networks.linear(2, 2), posterior)
    theta = {
        "decoder": _affine(0, 1, 2),
        "prior": {"z2": (), "z1_given_z2": _mean_alone(1, 1, 1), "z1": ()},
        "likelihood": (),
    }
    phi = {
        "encoder": _mean_alone(2, 2, 1),
        "posterior": {"z1": (), "z2_given_z1": _mean_alone(3, 1, 1), "z2": ()},
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
    objective = build(generative, recognition, num_samples=num_samples)
    testing.assert_unbiased(objective, params, x, bound)
    finer = _exact_bound(num_samples=num_samples, num_nodes=51)
    np.testing.assert_allclose(
        jax.jit(bound)(params, x), jax.jit(finer)(params, x), rtol=1e-6
    )


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
    z1, z2 = _normal("z1", 4), _normal("z2", 2)
    posterior = factors.chain(z1, networks.mlp(4, (5, 5), 4), z2)
    top = Factor("z2", 2, priors.standard_normal(2))
    prior = factors.chain(top, networks.mlp(2, (5, 5), 8), z1, first_is_last=True)
    decoder = factors.reading("z1", networks.mlp(4, (8, 8), 6), (z1, z2))
    generative = vae.decoder_model(decoder, prior, likelihoods.bernoulli((2, 3)))
    recognition = vae.encoder_model(networks.mlp(6, (8, 8), 8), posterior)
    params = Params(
        jax.jit(generative.init)(jax.random.key(1)),
        jax.jit(recognition.init)(jax.random.key(2)),
    )
    objective = importance.iwae(generative, recognition, num_samples=5)
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


# Edge


def test_factors_that_cannot_be_told_apart_are_refused():
    a, net = _normal("a", 2), networks.linear(2, 4)
    for build in (
        lambda: factors.product([a, a]),
        lambda: factors.chain(a, net, a),
        lambda: factors.product([]),
    ):
        with pytest.raises(ValueError, match="named apart, at least one"):
            build()
    with pytest.raises(ValueError, match=r"positive sizes, got \[0\]"):
        factors.product([a._replace(size=0)])
    with pytest.raises(ValueError, match="no factor is named 'c'; there are a, b"):
        factors.reading("c", net, [a, _normal("b", 1)])


def test_lengths_that_do_not_fit_are_refused_and_not_broadcast():
    a, b = _normal("a", 2), _normal("b", 1)
    product = factors.product([a, b])
    params = {"a": (), "b": ()}
    with pytest.raises(ValueError, match=r"z must be \[3\], got \(2,\)"):
        product.log_prob(params, jnp.zeros(6), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"h must be \[6\], got \(4,\)"):
        product.sample(jax.random.key(1), params, jnp.zeros(4))
    chain = factors.chain(a, networks.linear(2, 1), b)
    params = {"a": (), "b_given_a": _affine(0, 2, 1), "b": ()}
    with pytest.raises(ValueError, match=r"b_given_a, must be \[2\], got \(1,\)"):
        chain.log_prob(params, jnp.zeros(4), jnp.zeros(3))
