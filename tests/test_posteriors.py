import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special, stats

from tests import testing
from vae_jax import flows, networks, posteriors

MEAN, LOG_STD = np.array([0.3, -1.2]), np.array([-0.5, 0.7])
H = np.concatenate([MEAN, LOG_STD])


def _draws(num):
    keys = jax.random.split(jax.random.key(0), num)
    sample = posteriors.diag_normal(2).sample
    return jax.vmap(sample, in_axes=(0, None, None))(keys, (), jnp.asarray(H))


def test_diag_normal_log_prob_matches_scipy(x64):
    z = np.array([0.9, -4.0])
    expected = stats.norm.logpdf(z, MEAN, np.exp(LOG_STD)).sum()
    got = posteriors.diag_normal(2).log_prob((), jnp.asarray(H), jnp.asarray(z))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_diag_normal_samples_have_its_moments_and_its_entropy(x64):
    z = _draws(20_000)
    testing.assert_mean_equals(z, MEAN)
    centered = np.asarray(z) - MEAN
    testing.assert_mean_equals(
        centered[:, :, None] * centered[:, None, :], np.diag(np.exp(2 * LOG_STD))
    )
    density = posteriors.diag_normal(2)
    log_q = jax.vmap(lambda z: density.log_prob((), jnp.asarray(H), z))(z)
    entropy = stats.norm.entropy(MEAN, np.exp(LOG_STD)).sum()
    testing.assert_mean_equals(log_q, -entropy)


def test_samples_carry_the_gradient_to_mean_and_log_std(x64):
    density, key = posteriors.diag_normal(2), jax.random.key(3)

    def sample(h):
        return density.sample(jax.random.clone(key), (), h)

    jacobian = jax.jacobian(sample)(jnp.asarray(H))
    displacement = np.asarray(sample(jnp.asarray(H))) - MEAN  # std * eps
    expected = np.concatenate([np.eye(2), np.diag(displacement)], axis=1)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-9, atol=1e-15)


def test_pathwise_gradient_of_a_square_has_variance_4_std_squared(x64):
    # d/dmu (mu + s eps)^2 = 2 (mu + s eps): mean 2 mu, variance 4 s^2.
    density, mean, log_std = posteriors.diag_normal(1), 0.7, -0.3
    keys = jax.random.split(jax.random.key(4), 20_000)

    def square(key, h):
        return density.sample(key, (), h)[0] ** 2

    grads = jax.vmap(jax.grad(square, 1), in_axes=(0, None))
    slopes = grads(keys, jnp.array([mean, log_std]))[:, 0]
    testing.assert_mean_equals(slopes, 2 * mean)
    testing.assert_mean_equals((slopes - 2 * mean) ** 2, 4 * np.exp(2 * log_std))


def test_log_prob_gradients_agree_with_finite_differences(x64):
    log_prob = posteriors.diag_normal(2).log_prob
    arguments = jnp.asarray(H), jnp.array([0.9, -4.0])
    check_grads(lambda h, z: log_prob((), h, z), arguments, order=2, modes=("rev",))


def test_log_prob_stays_finite_where_the_variance_underflows():
    h = jnp.array([1.0, -80.0])  # exp(-160) is 0 in float32
    got = posteriors.diag_normal(1).log_prob((), h, jnp.ones(1))
    np.testing.assert_allclose(got, 80.0 - 0.5 * np.log(2 * np.pi), rtol=1e-6)


def test_sample_and_log_prob_are_the_same_under_jit_and_vmap():
    density = posteriors.diag_normal(2)
    hs = jax.random.normal(jax.random.key(1), (3, 4))
    keys = jax.random.split(jax.random.key(2), 3)

    def draw(key, h):
        z = density.sample(key, (), h)
        return z, density.log_prob((), h, z)

    got = jax.jit(jax.vmap(draw))(jax.random.clone(keys), hs)
    for i in range(3):
        z, log_q = draw(keys[i], hs[i])
        np.testing.assert_allclose(got[0][i], z, rtol=1e-6)
        np.testing.assert_allclose(got[1][i], log_q, rtol=1e-5)


def test_h_holds_a_mean_and_a_log_std_for_each_latent():
    density = posteriors.diag_normal(3)
    assert density.width == 6
    assert density.init(jax.random.key(0)) == ()


@pytest.mark.parametrize("num_latents", [0, -2])
def test_a_size_below_one_is_refused(num_latents):
    with pytest.raises(ValueError, match=f"num_latents .*{num_latents}"):
        posteriors.diag_normal(num_latents)


# Full covariance

FULL = posteriors.full_normal(2)
FULL_H = np.array([0.3, -1.2, -0.5, 0.9, 0.4])  # mean, log L_11, L_21, log L_22
TRIANGLE = np.array([[np.exp(-0.5), 0.0], [0.9, np.exp(0.4)]])
COVARIANCE = TRIANGLE @ TRIANGLE.T
SCIPY_NORMAL: Any = stats.multivariate_normal  # annotated there with an integer cov


def test_full_normal_log_prob_matches_scipy(x64):
    z = np.array([0.9, -4.0])
    expected = SCIPY_NORMAL.logpdf(z, MEAN, COVARIANCE)
    got = FULL.log_prob((), jnp.asarray(FULL_H), jnp.asarray(z))
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    mean, scale_tril = posteriors.mean_and_scale_tril(jnp.asarray(FULL_H), 2)
    np.testing.assert_allclose(mean, MEAN, rtol=1e-12)
    np.testing.assert_allclose(scale_tril, TRIANGLE, rtol=1e-12)


def test_full_normal_with_nothing_below_the_diagonal_is_the_diagonal_normal(x64):
    h = jnp.array([0.3, -1.2, -0.5, 0.0, 0.7])
    z = jnp.array([0.9, -4.0])
    expected = posteriors.diag_normal(2).log_prob((), jnp.asarray(H), z)
    np.testing.assert_allclose(FULL.log_prob((), h, z), expected, rtol=1e-9)


def test_full_normal_samples_have_its_mean_covariance_and_entropy(x64):
    h = jnp.asarray(FULL_H)

    @jax.jit
    @jax.vmap
    def draw(key):
        z = FULL.sample(key, (), h)
        return z, FULL.log_prob((), h, z)

    z, log_q = draw(jax.random.split(jax.random.key(0), 20_000))
    testing.assert_mean_equals(z, MEAN)
    centered = np.asarray(z) - MEAN
    outer = centered[:, :, None] * centered[:, None, :]
    testing.assert_mean_equals(outer, COVARIANCE)
    entropy = SCIPY_NORMAL.entropy(MEAN, COVARIANCE)
    testing.assert_mean_equals(log_q, -entropy)


@pytest.mark.slow
def test_full_normal_gradients_agree_with_finite_differences(x64):
    key = jax.random.key(3)

    @jax.jit
    def both(h, z):
        return FULL.sample(jax.random.clone(key), (), h), FULL.log_prob((), h, z)

    arguments = jnp.asarray(FULL_H), jnp.array([0.9, -4.0])
    check_grads(both, arguments, order=1, modes=("rev",))


@pytest.mark.slow
def test_full_normal_log_prob_is_the_same_under_jit_and_vmap():
    hs = jax.random.normal(jax.random.key(1), (2, 5))
    zs = jax.random.normal(jax.random.key(2), (2, 2))
    got = jax.jit(jax.vmap(lambda h, z: FULL.log_prob((), h, z)))(hs, zs)
    expected = [FULL.log_prob((), h, z) for h, z in zip(hs, zs, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_full_normal_log_prob_stays_finite_where_the_variance_underflows():
    h = jnp.array([1.0, -80.0])  # exp(-160) is 0 in float32
    got = posteriors.full_normal(1).log_prob((), h, jnp.ones(1))
    np.testing.assert_allclose(got, 80.0 - 0.5 * np.log(2 * np.pi), rtol=1e-6)


def test_full_normal_refuses_a_size_below_one_and_an_h_of_another_length():
    assert FULL.width == 5
    assert FULL.init(jax.random.key(0)) == ()
    with pytest.raises(ValueError, match="num_latents must be positive, got 0"):
        posteriors.full_normal(0)
    with pytest.raises(
        ValueError, match=r"full_normal reads h of 5 entries, got \(6,\)"
    ):
        FULL.log_prob((), jnp.zeros(6), jnp.zeros(2))


# Flows

LAYERS = networks.normal(std=0.7)
FLOW = posteriors.flow(
    posteriors.full_normal(2),
    flows.chain(
        flows.planar(2),
        flows.affine_coupling(networks.linear(1, 2, initializer=LAYERS), 2),
        flows.reverse(2),
        flows.inverse_autoregressive(
            networks.made(2, (4,), num_context=1, initializer=LAYERS),
            2,
            context_width=1,
        ),
    ),
)


def _flow_inputs():
    """Parameters and an h whose planar w . u is below -1."""
    context = [-1.1, 0.6, 1.6, -0.9, 0.3, 0.7]  # u, w, b; of the autoregressive flow
    h = 0.5 * np.concatenate([FULL_H, 2.0 * np.array(context)])
    return jax.jit(FLOW.init)(jax.random.key(0)), jnp.asarray(h)


@pytest.mark.slow
def test_a_flow_has_a_density_that_integrates_to_one(x64):
    params, h = _flow_inputs()
    first, second = jnp.linspace(-1.0, 8.0, 361), jnp.linspace(-7.5, 2.5, 401)
    z = jnp.stack(jnp.meshgrid(first, second), -1).reshape(-1, 2)  # steps of 1/40
    log_q = jax.jit(jax.vmap(lambda z: FLOW.log_prob(params, h, z)))(z)
    np.testing.assert_allclose(np.exp(log_q).sum() / 40**2, 1.0, rtol=1e-5)


@pytest.mark.slow
def test_the_samples_of_a_flow_have_its_density(x64):
    # E_q[p(z) / q(z)] = 1 for a density p that is narrower than q.
    params, h = _flow_inputs()

    @jax.jit
    @jax.vmap
    def draw(key):
        z = FLOW.sample(key, params, h)
        return z, FLOW.log_prob(params, h, z)

    z, log_q = (
        np.asarray(a) for a in draw(jax.random.split(jax.random.key(1), 20_000))
    )
    narrow = SCIPY_NORMAL(np.median(z, axis=0), 0.25 * np.cov(z.T))
    weights = np.exp(narrow.logpdf(z) - log_q)
    assert weights.max() < 100.0
    testing.assert_mean_equals(weights, 1.0)
    testing.assert_mean_equals(weights[:, None] * z, narrow.mean)


@pytest.mark.slow
def test_flow_gradients_agree_with_finite_differences(x64):
    arguments = *_flow_inputs(), jnp.array([0.4, -0.8])
    check_grads(jax.jit(FLOW.log_prob), arguments, order=1, modes=("rev",))


@pytest.mark.slow
def test_a_flow_reads_the_h_of_its_base_and_then_its_context(x64):
    base = posteriors.diag_normal(2)
    planar = posteriors.flow(base, flows.planar(2))
    assert (FLOW.width, planar.width) == (5 + 5 + 1, 4 + 5)
    assert set(_flow_inputs()[0]) == {"base", "flow"}
    still = jnp.concatenate([jnp.asarray(H), jnp.zeros(5)])  # the identity
    z, key = jnp.array([0.9, -4.0]), jax.random.key(0)
    alone = planar.init(jax.random.key(1))
    expected = base.log_prob((), jnp.asarray(H), z)
    np.testing.assert_allclose(planar.log_prob(alone, still, z), expected, rtol=1e-12)
    samples = planar.sample(jax.random.clone(key), alone, still)
    np.testing.assert_allclose(
        samples, base.sample(key, (), jnp.asarray(H)), rtol=1e-12
    )
    with pytest.raises(ValueError, match=r"flow reads h of 9 entries, got \(10,\)"):
        planar.log_prob(alone, jnp.zeros(10), z)


# Discrete

LOGITS = np.array([[0.4, -1.1, 2.0], [-0.3, 0.0, 0.7]])


def test_bernoulli_log_prob_matches_scipy_and_sums_to_one(x64):
    h, zs = LOGITS[0], np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    log_prob = jax.vmap(posteriors.bernoulli(3).log_prob, in_axes=(None, None, 0))
    got = log_prob((), jnp.asarray(h), jnp.asarray(zs))
    expected = stats.bernoulli.logpmf(zs, special.expit(h)).sum(1)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(np.exp(got).sum(), 1.0, rtol=1e-9)


def test_categorical_log_prob_matches_scipy_and_sums_to_one(x64):
    choices = np.array(list(itertools.product(range(3), repeat=2)))
    density = posteriors.categorical(2, 3)
    log_prob = jax.vmap(density.log_prob, in_axes=(None, None, 0))
    got = log_prob((), jnp.asarray(LOGITS.ravel()), jnp.asarray(np.eye(3)[choices]))
    p = special.softmax(LOGITS, axis=1)
    expected = np.sum(stats.multinomial.logpmf(np.eye(3)[choices], 1, p), axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(np.exp(got).sum(), 1.0, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("density", "h", "mean"),
    [
        (posteriors.bernoulli(3), LOGITS[0], special.expit(LOGITS[0])),
        (posteriors.categorical(2, 3), LOGITS.ravel(), special.softmax(LOGITS, axis=1)),
    ],
)
def test_discrete_samples_have_their_probabilities_and_no_gradient(density, h, mean):
    h = jnp.asarray(h, jnp.float32)
    keys = jax.random.split(jax.random.key(5), 20_000)
    sample = jax.vmap(density.sample, in_axes=(0, None, None))
    z = jax.jit(sample)(jax.random.clone(keys), (), h)
    assert z.dtype == h.dtype
    assert set(np.unique(z)) == {0.0, 1.0}
    testing.assert_mean_equals(z, mean)
    slope = jax.grad(lambda h: sample(keys[:4], (), h).sum())(h)
    np.testing.assert_array_equal(slope, np.zeros(h.shape))
    if mean.ndim == 2:
        np.testing.assert_array_equal(z.sum(-1), 1.0)
    else:  # the bits are independent
        centered = np.asarray(z) - mean
        outer = centered[:, :, None] * centered[:, None, :]
        testing.assert_mean_equals(outer, np.diag(mean * (1 - mean)))


@pytest.mark.parametrize("size", [-200.0, 200.0])
def test_discrete_log_prob_is_finite_for_any_finite_logits(size):
    h, one_hot = size * jnp.array([1.0, -1.0, 0.5]), jnp.array([[1.0, 0.0, 0.0]])
    bits = jax.value_and_grad(posteriors.bernoulli(3).log_prob, 1)((), h, one_hot[0])
    choice = jax.value_and_grad(posteriors.categorical(1, 3).log_prob, 1)(
        (), h, one_hot
    )
    chex.assert_tree_all_finite((bits, choice))


def test_h_of_discrete_latents_holds_their_logits():
    assert posteriors.bernoulli(3).width == 3
    assert posteriors.categorical(2, 3).width == 6
    assert posteriors.bernoulli(3).init(jax.random.key(0)) == ()
    assert posteriors.categorical(2, 3).init(jax.random.key(0)) == ()


@pytest.mark.parametrize("size", [0, -2])
def test_discrete_sizes_too_small_are_refused(size):
    for build in (posteriors.bernoulli, lambda d: posteriors.categorical(d, 3)):
        with pytest.raises(ValueError, match=f"num_latents .*{size}"):
            build(size)
    with pytest.raises(ValueError, match=f"num_classes .*{size + 1}"):
        posteriors.categorical(2, size + 1)


# A bounded scale


def test_a_bounded_normal_is_the_free_one_at_the_scale_that_its_bound_leaves(x64):
    bounded, free = (
        posteriors.diag_normal(2, max_log_std=3.0),
        posteriors.diag_normal(2),
    )
    h, key = jnp.array([0.4, -1.0, 0.9, -40.0]), jax.random.key(0)
    log_std = 3.0 * np.tanh(np.array([0.9, -40.0]) / 3.0)
    at = jnp.concatenate([h[:2], jnp.asarray(log_std)])
    z, nats = bounded.sample_and_log_prob(jax.random.clone(key), (), h)
    expected, density = free.sample_and_log_prob(key, (), at)
    np.testing.assert_allclose(z, expected, rtol=1e-12)
    np.testing.assert_allclose(nats, density, rtol=1e-12)
    assert bounded.family.parameters is not None
    np.testing.assert_allclose(bounded.family.parameters((), h)[1], log_std)
    assert float(np.abs(log_std).max()) <= 3.0


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan")])
def test_a_bound_of_the_scale_that_is_none_is_refused(number):
    with pytest.raises(ValueError, match=rf"max_log_std .*\(0, inf\], got {number}"):
        posteriors.diag_normal(2, max_log_std=number)
