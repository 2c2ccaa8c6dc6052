import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special, stats

from tests import laws, testing
from vae_jax import flows, networks, posteriors, priors

NOTHING = jnp.zeros((0,))


def test_standard_normal_log_prob_matches_scipy(x64):
    z = np.array([0.3, -2.0, 5.0])
    got = priors.standard_normal(3).log_prob((), jnp.zeros(0), jnp.asarray(z))
    np.testing.assert_allclose(got, stats.norm.logpdf(z).sum(), rtol=1e-9)


def test_standard_normal_samples_have_its_moments_and_its_entropy():
    prior = priors.standard_normal(2)
    keys = jax.random.split(jax.random.key(0), 20_000)
    z = jax.vmap(prior.sample, in_axes=(0, None, None))(keys, (), NOTHING)
    testing.assert_mean_equals(z, np.zeros(2))
    testing.assert_mean_equals(z[:, :, None] * z[:, None, :], np.eye(2))
    log_p = jax.vmap(lambda z: prior.log_prob((), NOTHING, z))(z)
    testing.assert_mean_equals(log_p, -2 * stats.norm.entropy())


def test_standard_normal_has_no_parameters_and_no_condition():
    prior = priors.standard_normal(2)
    assert prior.width == 0
    assert prior.init(jax.random.key(0)) == ()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_standard_normal_draws_in_the_dtype_of_h(x64, dtype):
    prior, h = priors.standard_normal(2), jnp.zeros((0,), dtype)
    z = prior.sample(jax.random.key(0), (), h)
    assert z.dtype == dtype
    assert prior.log_prob((), h, z).dtype == dtype


def test_standard_normal_gradient_is_minus_z(x64):
    prior, z = priors.standard_normal(2), jnp.array([0.4, -3.0])
    np.testing.assert_allclose(jax.grad(prior.log_prob, 2)((), NOTHING, z), -z)
    check_grads(lambda z: prior.log_prob((), NOTHING, z), (z,), order=2, modes=("rev",))


@pytest.mark.parametrize("num_latents", [0, -1])
def test_a_size_below_one_is_refused(num_latents):
    with pytest.raises(ValueError, match=f"num_latents .*{num_latents}"):
        priors.standard_normal(num_latents)


# Discrete

LOGITS = np.array([[0.4, -1.1, 2.0], [-0.3, 0.0, 0.7]])


def test_bernoulli_log_prob_matches_scipy_and_sums_to_one(x64):
    params = {"logits": jnp.asarray(LOGITS[0])}
    zs = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    log_prob = jax.vmap(priors.bernoulli(3).log_prob, in_axes=(None, None, 0))
    got = log_prob(params, NOTHING, jnp.asarray(zs))
    expected = stats.bernoulli.logpmf(zs, special.expit(LOGITS[0])).sum(1)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(np.exp(got).sum(), 1.0, rtol=1e-9)


def test_categorical_log_prob_is_the_log_probability_of_each_choice(x64):
    params = {"logits": jnp.asarray(LOGITS)}
    choices = np.array(list(itertools.product(range(3), repeat=2)))
    log_prob = jax.vmap(priors.categorical(2, 3).log_prob, in_axes=(None, None, 0))
    got = log_prob(params, NOTHING, jnp.asarray(np.eye(3)[choices]))
    p = special.softmax(LOGITS, axis=1)
    expected = np.log(p[0, choices[:, 0]] * p[1, choices[:, 1]])
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_a_class_that_never_is_costs_nothing_where_it_is_not_chosen():
    logits, z = jnp.array([[0.0, -jnp.inf, 0.0]]), jnp.array([[1.0, 0.0, 0.0]])
    of_prior = priors.categorical(1, 3).log_prob({"logits": logits}, NOTHING, z)
    of_q = posteriors.categorical(1, 3).log_prob((), logits.ravel(), z)
    np.testing.assert_allclose([of_prior, of_q], -np.log(2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("prior", "logits", "mean"),
    [
        (priors.bernoulli(3), LOGITS[0], special.expit(LOGITS[0])),
        (priors.categorical(2, 3), LOGITS, special.softmax(LOGITS, axis=1)),
    ],
)
def test_discrete_samples_have_their_probabilities(prior, logits, mean):
    params = {"logits": jnp.asarray(logits, jnp.float32)}
    keys = jax.random.split(jax.random.key(1), 20_000)
    sample = jax.jit(jax.vmap(prior.sample, in_axes=(0, None, None)))
    z = sample(keys, params, NOTHING)
    assert z.dtype == jnp.float32
    assert set(np.unique(z)) == {0.0, 1.0}
    testing.assert_mean_equals(z, mean)


def test_discrete_priors_start_uniform_and_are_learned():
    key, bits, choices = (
        jax.random.key(0),
        priors.bernoulli(2),
        priors.categorical(2, 4),
    )
    assert bits.width == choices.width == 0
    start = bits.init(key)
    np.testing.assert_array_equal(start["logits"], np.zeros(2))
    got = bits.log_prob(start, NOTHING, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(got, -2 * np.log(2.0), rtol=1e-6)
    start = choices.init(key)
    np.testing.assert_array_equal(start["logits"], np.zeros((2, 4)))
    got = choices.log_prob(start, NOTHING, jnp.eye(4)[:2])
    np.testing.assert_allclose(got, -2 * np.log(4.0), rtol=1e-6)
    slope = jax.grad(bits.log_prob)(bits.init(key), NOTHING, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(slope["logits"], [0.5, -0.5], rtol=1e-6)


@pytest.mark.parametrize("size", [0, -2])
def test_discrete_sizes_too_small_are_refused(size):
    for build in (priors.bernoulli, lambda d: priors.categorical(d, 3)):
        with pytest.raises(ValueError, match=f"num_latents .*{size}"):
            build(size)
    with pytest.raises(ValueError, match=f"num_classes .*{size + 1}"):
        priors.categorical(2, size + 1)


# Mixtures

NUM_COMPONENTS, NUM_LATENTS = 3, 2


def _mixture_parameters():
    rng = np.random.default_rng(0)
    mean, log_std = rng.normal(size=(2, NUM_COMPONENTS, NUM_LATENTS))
    return {"logits": rng.normal(size=NUM_COMPONENTS), "mean": mean, "log_std": log_std}


def _mixture_moments(weights, mean, std):
    """Mean [D] and second moment [D, D] of a mixture of diagonal normals."""
    second = mean[:, :, None] * mean[:, None] + std[:, :, None] ** 2 * np.eye(2)
    return weights @ mean, np.einsum("c,cij->ij", weights, second)


def _assert_moments(z, mean, second):
    testing.assert_mean_equals(z, mean)
    testing.assert_mean_equals(z[:, :, None] * z[:, None, :], second)


def test_normal_mixture_log_prob_matches_scipy_with_its_gradient(x64):
    values, z = _mixture_parameters(), np.array([0.3, -1.4])
    params = jax.tree.map(jnp.asarray, values)
    log_prob = jax.jit(priors.normal_mixture(2, 3).log_prob)
    each = stats.norm.logpdf(z, values["mean"], np.exp(values["log_std"])).sum(1)
    weights = special.softmax(values["logits"])
    expected = np.log(weights @ np.exp(each))
    got = log_prob(params, jnp.zeros(0), jnp.asarray(z))
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    check_grads(
        lambda params, z: log_prob(params, jnp.zeros(0), z),
        (params, jnp.asarray(z)),
        order=2,
        modes=("rev",),
    )


def test_normal_mixture_samples_have_its_moments():
    values = _mixture_parameters()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), values)
    sample = jax.vmap(priors.normal_mixture(2, 3).sample, in_axes=(0, None, None))
    keys = jax.random.split(jax.random.key(2), 20_000)
    z = jax.jit(sample)(keys, params, NOTHING)
    assert z.dtype == jnp.float32
    weights = special.softmax(values["logits"])
    std = np.exp(values["log_std"])
    _assert_moments(z, *_mixture_moments(weights, values["mean"], std))


def test_normal_mixture_starts_with_equal_weights_and_components_that_differ():
    prior = priors.normal_mixture(2, 3)
    start = prior.init(jax.random.key(0))
    assert prior.width == 0
    np.testing.assert_array_equal(start["logits"], np.zeros(3))
    np.testing.assert_array_equal(start["log_std"], np.zeros((3, 2)))
    assert len(np.unique(start["mean"])) == 6


def test_one_component_at_the_origin_is_the_standard_normal(x64):
    z = jnp.array([0.3, -1.4])
    params = {"logits": jnp.array([7.0]), "mean": jnp.zeros((1, 2))}
    params["log_std"] = jnp.zeros((1, 2))
    got = priors.normal_mixture(2, 1).log_prob(params, NOTHING, z)
    expected = priors.standard_normal(2).log_prob((), NOTHING, z)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_normal_mixture_is_finite_where_every_component_underflows():
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32), _mixture_parameters()
    )
    log_prob = priors.normal_mixture(2, 3).log_prob
    z = jnp.array([80.0, -90.0])
    value, slopes = jax.value_and_grad(log_prob, (0, 2))(params, NOTHING, z)
    assert np.isfinite(value)
    assert value < -100.0  # its density is 0 in float32
    chex.assert_tree_all_finite(slopes)


def test_equal_mixture_is_the_mean_of_its_components_densities(x64):
    mixture = priors.equal_mixture(posteriors.diag_normal(2))
    h = np.random.default_rng(1).normal(size=(3, 4))
    z = np.array([0.3, -1.4])
    each = stats.norm.logpdf(z, h[:, :2], np.exp(h[:, 2:])).sum(1)
    got = mixture.log_prob((), jnp.asarray(h), jnp.asarray(z))
    np.testing.assert_allclose(got, np.log(np.exp(each).mean()), rtol=1e-9)
    assert mixture.width == 4
    assert mixture.init(jax.random.key(0)) == ()


def test_equal_mixture_samples_have_its_moments():
    mixture = priors.equal_mixture(posteriors.diag_normal(2))
    h = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 20_000)
    z = jax.jit(jax.vmap(mixture.sample, (0, None, None)))(keys, (), jnp.asarray(h))
    _assert_moments(z, *_mixture_moments(np.full(3, 1 / 3), h[:, :2], np.exp(h[:, 2:])))


def test_mixtures_of_nothing_are_refused():
    with pytest.raises(ValueError, match="num_latents must be positive, got 0"):
        priors.normal_mixture(0, 3)
    with pytest.raises(ValueError, match="num_components must be positive, got 0"):
        priors.normal_mixture(2, 0)


# Flows as priors


def _coupling_prior(num_latents, *, zero=False, num_layers=2):
    passed = num_latents // 2
    network = networks.mlp(passed, (8,), 2 * (num_latents - passed))
    if zero:
        network = networks.from_zero(network)
    layers = [
        flows.affine_coupling(network, num_latents, flip=i % 2 == 1)
        for i in range(num_layers)
    ]
    return posteriors.flow(priors.standard_normal(num_latents), flows.chain(*layers))


def _autoregressive_prior(num_latents):
    network = networks.made(num_latents, (8,), initializer=networks.normal(std=0.5))
    flow = flows.inverse_autoregressive(network, num_latents)
    both = flows.chain(flow, flows.reverse(num_latents), flow)
    return posteriors.flow(priors.standard_normal(num_latents), flows.inverted(both))


FLOW_PRIORS = {"coupling": _coupling_prior, "autoregressive": _autoregressive_prior}


@pytest.mark.slow
@pytest.mark.parametrize("build", FLOW_PRIORS.values(), ids=FLOW_PRIORS)
def test_the_density_of_a_flow_prior_integrates_to_one(build, x64):
    prior = build(2)
    params = laws.jiggled(prior.init(jax.random.key(1)), std=0.2)
    z, step = np.linspace(-12.0, 12.0, 400, retstep=True)
    grid = jnp.asarray(np.stack(np.meshgrid(z, z), -1).reshape(-1, 2))
    density = jax.jit(jax.vmap(prior.log_prob, (None, None, 0)))
    total = np.exp(density(params, jnp.zeros(0), grid)).sum() * step**2
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("build", FLOW_PRIORS.values(), ids=FLOW_PRIORS)
def test_samples_of_a_flow_prior_have_the_moments_of_its_density(build):
    """The density's by a sum over a grid of two latents."""
    prior = build(2)
    params = laws.jiggled(prior.init(jax.random.key(1)), std=0.2)
    params = jax.tree.map(lambda leaf: 0.5 * leaf, params)  # tails within the grid
    axis = np.linspace(-12.0, 12.0, 400, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    density = jax.jit(jax.vmap(prior.log_prob, (None, None, 0)))
    log_p = np.asarray(density(params, NOTHING, jnp.asarray(grid)), np.float64)
    weight = np.exp(log_p) * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(weight.sum(), 1.0, atol=1e-4)
    keys = jax.random.split(jax.random.key(2), 20_000)
    z = jax.jit(jax.vmap(prior.sample, (0, None, None)))(keys, params, NOTHING)
    _assert_moments(z, weight @ grid, np.einsum("n,ni,nj->ij", weight, grid, grid))
    assert np.abs(weight @ grid).max() > 0.05  # N(0, I) would not do


@pytest.mark.slow
def test_a_coupling_prior_from_zero_is_standard_normal_bit_for_bit():
    prior, plain = _coupling_prior(5, zero=True), priors.standard_normal(5)
    params, key = prior.init(jax.random.key(0)), jax.random.key(3)
    z = prior.sample(key, params, NOTHING)
    np.testing.assert_array_equal(z, plain.sample(jax.random.clone(key), (), NOTHING))
    log_p = prior.log_prob(params, NOTHING, z)
    np.testing.assert_array_equal(log_p, plain.log_prob((), NOTHING, z))


@pytest.mark.slow
def test_an_autoregressive_prior_is_a_posterior_pushed_back(x64):
    """Chen et al. 2017 (arXiv:1611.02731) section 3.2: equal log weights, per sample.

    A prior z = f(eps) with q(z | x) and decoder g is the prior N(0, I) on eps with
    f^{-1} of q and decoder g(f(eps)).
    """
    size, x, h = 3, jnp.asarray(1.2), jnp.array([0.3, -0.5, 0.2, -1.0, -0.4, 0.1])
    prior, normal = _autoregressive_prior(size), priors.standard_normal(size)
    params = prior.init(jax.random.key(0))
    network = networks.made(size, (8,), initializer=networks.normal(std=0.5))
    flow = flows.inverse_autoregressive(network, size)
    back = flows.chain(flow, flows.reverse(size), flow)
    q = posteriors.diag_normal(size)
    pushed = posteriors.flow(q, back)
    pushed_params = {"base": (), "flow": params["flow"]}

    nothing = jnp.zeros(0)

    def log_likelihood(z):
        return -0.5 * (x - jnp.sin(z).sum()) ** 2

    for seed in range(5):
        z, log_q = q.sample_and_log_prob(jax.random.key(seed), (), h)
        log_w = log_likelihood(z) + prior.log_prob(params, nothing, z) - log_q
        eps, log_q_eps = pushed.sample_and_log_prob(
            jax.random.key(seed), pushed_params, h
        )
        again, _ = back.inverse(params["flow"], nothing, eps)
        same = log_likelihood(again) + normal.log_prob((), nothing, eps) - log_q_eps
        np.testing.assert_allclose(log_w, same, rtol=1e-9)
