import itertools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from tests import testing
from vae_jax import bounds

LOG_W = np.array([-3.0, 0.5, 2.0, -1.0])
NAMED = {
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
    "renyi": partial(bounds.renyi, alpha=0.5),
    "ciwae": partial(bounds.ciwae, beta=0.3),
    "miwae": lambda log_w: bounds.miwae(log_w.reshape(2, 2)),
    "jackknife": partial(bounds.jackknife, order=2),
}
BOTH = pytest.mark.parametrize("bound", [bounds.elbo, bounds.iwae])


def test_elbo_is_the_mean_log_weight(x64):
    np.testing.assert_allclose(bounds.elbo(jnp.asarray(LOG_W)), LOG_W.mean(), rtol=1e-9)


def test_iwae_is_the_log_of_the_mean_weight(x64):
    expected = np.log(np.exp(LOG_W).mean())
    np.testing.assert_allclose(bounds.iwae(jnp.asarray(LOG_W)), expected, rtol=1e-9)


def test_the_bounds_agree_on_one_weight_and_on_equal_weights(x64):
    for log_w in (jnp.array([-1.3]), jnp.full((5,), -1.3)):
        np.testing.assert_allclose(bounds.elbo(log_w), -1.3, rtol=1e-9)
        np.testing.assert_allclose(bounds.iwae(log_w), -1.3, rtol=1e-9)


def test_iwae_lies_between_the_elbo_and_the_largest_weight():
    rows = 3.0 * jax.random.normal(jax.random.key(0), (200, 6))
    elbo, iwae = jax.vmap(bounds.elbo)(rows), jax.vmap(bounds.iwae)(rows)
    assert (elbo < iwae).all()
    assert (iwae <= rows.max(1)).all()


def test_the_mean_weight_is_unbiased_and_its_log_is_biased_by_the_stated_amount():
    # log w ~ N(-s^2/2, s^2), so p = E[w] = 1 and Var(w) = exp(s^2) - 1.
    num_repeats, num_samples, s = 20_000, 20, 0.5
    eps = jax.random.normal(jax.random.key(1), (num_repeats, num_samples))
    log_p = jax.vmap(bounds.iwae)(s * eps - 0.5 * s**2)
    testing.assert_mean_equals(jnp.exp(log_p), 1.0)
    bias = -np.expm1(s**2) / (2 * num_samples)
    error = log_p.std() / np.sqrt(num_repeats)
    assert log_p.mean() < -5 * error
    np.testing.assert_allclose(log_p.mean(), bias, atol=5 * error + 0.1 * abs(bias))


@BOTH
def test_gradients_agree_with_finite_differences(x64, bound):
    check_grads(bound, (jnp.asarray(LOG_W),), order=2, modes=("rev",))


def test_gradient_weights_are_uniform_for_the_elbo_and_normalized_for_iwae(x64):
    log_w = jnp.asarray(LOG_W)
    np.testing.assert_allclose(jax.grad(bounds.elbo)(log_w), np.full(4, 0.25))
    expected = special.softmax(LOG_W)
    np.testing.assert_allclose(jax.grad(bounds.iwae)(log_w), expected, rtol=1e-9)


@BOTH
def test_jit_and_vmap_agree_with_a_loop(bound):
    rows = jax.random.normal(jax.random.key(0), (4, 3))
    expected = jnp.stack([bound(row) for row in rows])
    np.testing.assert_allclose(jax.jit(jax.vmap(bound))(rows), expected, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_weights_that_are_not_one_axis_of_samples_are_refused(bound, shape):
    with pytest.raises(ValueError, match=re.escape(f"got {shape}")):
        bound(jnp.zeros(shape))


# Renyi


def test_renyi_is_the_log_power_mean(x64):
    for alpha in (-2.0, 0.3, 3.0):
        expected = np.log(np.mean(np.exp(LOG_W) ** (1 - alpha))) / (1 - alpha)
        got = bounds.renyi(jnp.asarray(LOG_W), alpha=alpha)
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_renyi_has_the_named_bounds_at_its_ends(x64):
    log_w = jnp.asarray(LOG_W)
    np.testing.assert_allclose(bounds.renyi(log_w, alpha=0.0), bounds.iwae(log_w))
    np.testing.assert_allclose(bounds.renyi(log_w, alpha=1.0), bounds.elbo(log_w))
    near = bounds.renyi(log_w, alpha=1.0 + 1e-7)
    np.testing.assert_allclose(near, bounds.elbo(log_w), rtol=1e-5)
    np.testing.assert_allclose(bounds.renyi(log_w, alpha=-np.inf), LOG_W.max())
    near = bounds.renyi(log_w, alpha=-1e4)
    np.testing.assert_allclose(near, LOG_W.max(), rtol=1e-3)


def test_renyi_keeps_its_digits_next_to_the_elbo():
    log_w = -100.0 + np.random.default_rng(0).normal(size=50)
    for gap in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        # To second order in the gap: the mean and half the gap times the variance.
        expected = log_w.mean() + 0.5 * gap * log_w.var()
        got = bounds.renyi(jnp.asarray(log_w, jnp.float32), alpha=1.0 - gap)
        np.testing.assert_allclose(got, expected, atol=gap**2 + 3e-5)


@pytest.mark.slow
def test_an_impossible_draw_lowers_renyi_as_it_lowers_iwae():
    log_w = jnp.array([-jnp.inf, 0.0, -1.0])
    np.testing.assert_allclose(
        bounds.renyi(log_w, alpha=0.0), bounds.iwae(log_w), rtol=1e-6
    )
    assert bounds.renyi(log_w, alpha=2.0) == -jnp.inf


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1e20, 1e39, 1e300, -1e20, -1e39, -1e300])
def test_renyi_of_an_order_beyond_the_dtype_is_the_extreme_weight(alpha):
    chosen = np.argmin(LOG_W) if alpha > 0.0 else np.argmax(LOG_W)
    bound = partial(bounds.renyi, alpha=alpha)
    value, slope = jax.value_and_grad(bound)(jnp.asarray(LOG_W, jnp.float32))
    np.testing.assert_allclose(value, LOG_W[chosen], rtol=1e-6)
    np.testing.assert_allclose(slope, np.eye(4)[chosen], atol=1e-6)


def test_renyi_of_a_large_order_keeps_the_least_weight():
    log_w = jnp.array([0.0, 3e20, -2e20])  # (1 - alpha) times this overflows
    got = bounds.renyi(log_w, alpha=1e18 + 1.0)
    np.testing.assert_allclose(got, -2e20, rtol=1e-6)


def test_renyi_does_not_increase_in_alpha():
    rows = 3.0 * jax.random.normal(jax.random.key(0), (50, 6))
    orders = (-np.inf, -2.0, 0.0, 0.5, 1.0, 3.0)

    @jax.jit
    @jax.vmap
    def levels(log_w):
        return jnp.stack([bounds.renyi(log_w, alpha=alpha) for alpha in orders])

    assert (np.diff(levels(rows), axis=1) < 0).all()


# CIWAE and MIWAE


def test_ciwae_mixes_the_elbo_and_iwae(x64):
    log_w = jnp.asarray(LOG_W)
    expected = 0.2 * bounds.elbo(log_w) + 0.8 * bounds.iwae(log_w)
    np.testing.assert_allclose(bounds.ciwae(log_w, beta=0.2), expected, rtol=1e-9)


def test_miwae_takes_logs_of_means_over_the_last_axis(x64):
    log_w = np.random.default_rng(0).normal(size=(2, 5)) * 2.0
    expected = np.log(np.exp(log_w).mean(1)).mean()
    np.testing.assert_allclose(bounds.miwae(jnp.asarray(log_w)), expected, rtol=1e-9)
    other = np.log(np.exp(log_w).mean(0)).mean()
    assert abs(expected - other) > 0.1  # so the axes are told apart


# Jackknife


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_jackknife_is_nowozins_sum_over_subsets(x64, order):
    num_samples, total = len(LOG_W), 0.0
    for j in range(order + 1):
        saved = itertools.combinations(LOG_W, num_samples - j)
        mean = np.mean([np.log(np.mean(np.exp(subset))) for subset in saved])
        scale = math.factorial(j) * math.factorial(order - j)
        total += (-1) ** j * (num_samples - j) ** order / scale * mean
    got = bounds.jackknife(jnp.asarray(LOG_W), order=order)
    np.testing.assert_allclose(got, total, rtol=1e-9)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_jackknife_moves_with_its_weights(x64, order):
    # Its coefficients sum to one, so a factor on all weights is added as its log.
    got = bounds.jackknife(jnp.asarray(LOG_W) + 700.0, order=order)
    expected = bounds.jackknife(jnp.asarray(LOG_W), order=order) + 700.0
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.slow
def test_each_order_of_the_jackknife_has_less_bias(x64):
    # The model of the stated amount above; its K-sample bounds by quadrature.
    s, eps = 0.5, np.linspace(-9.0, 9.0, 801)
    weights = jnp.asarray(np.exp(-0.5 * eps**2) / np.exp(-0.5 * eps**2).sum())
    l8, l7, l6 = (
        testing.expected_log_mean_exp(
            jnp.asarray(s * eps - 0.5 * s**2), weights, num_samples=k
        )
        for k in (8, 7, 6)
    )
    first, second = 8 * l8 - 7 * l7, 32 * l8 - 49 * l7 + 18 * l6
    assert abs(second) < 0.5 * abs(first) < 0.25 * abs(l8)
    rows = s * jax.random.normal(jax.random.key(0), (20_000, 8)) - 0.5 * s**2
    for order, exact in ((1, first), (2, second)):
        draw = jax.jit(jax.vmap(partial(bounds.jackknife, order=order)))
        testing.assert_mean_equals(draw(rows), exact)


# All


ORDERS = [-3.0, 0.5, 1.0, 2.0]


def _without_logs(log_w):
    """Name -> each bound of the weights themselves, in NumPy's extended reals."""
    w = np.exp(log_w)
    with np.errstate(divide="ignore"):
        mean = np.log(w.mean())
        powers = {
            f"renyi {a}": log_w.mean()
            if a == 1.0
            else np.log((w ** (1.0 - a)).mean()) / (1.0 - a)
            for a in ORDERS
        }
        return powers | {
            "elbo": log_w.mean(),
            "iwae": mean,
            "VR-max": log_w.max(),
            "ciwae 0": mean,
            "ciwae 0.3": 0.3 * log_w.mean() + 0.7 * mean,
            "ciwae 1": log_w.mean(),
            "miwae": np.log(w.reshape(2, 2).mean(1)).mean(),
        }


EACH = {
    **{f"renyi {a}": partial(bounds.renyi, alpha=a) for a in ORDERS},
    **{f"ciwae {b:g}": partial(bounds.ciwae, beta=b) for b in (0.0, 0.3, 1.0)},
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
    "VR-max": partial(bounds.renyi, alpha=-np.inf),
    "miwae": NAMED["miwae"],
}


@jax.jit
def _each_and_a_traced_ciwae(log_w, beta):
    each = {name: jax.value_and_grad(bound)(log_w) for name, bound in EACH.items()}
    return each, bounds.ciwae(log_w, beta=beta)


@pytest.mark.parametrize("impossible", [(0,), (0, 1), (0, 2, 3), (0, 1, 2, 3)])
def test_weights_of_zero_leave_every_bound_its_value(x64, impossible):
    log_w = LOG_W.copy()
    log_w[list(impossible)] = -np.inf
    expected = _without_logs(log_w)
    each, traced = _each_and_a_traced_ciwae(jnp.asarray(log_w), 0.0)
    assert expected.keys() == each.keys()
    for name, (value, slope) in each.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, err_msg=name)
        if np.isfinite(expected[name]):
            np.testing.assert_array_equal(slope[np.array(impossible)], 0.0)
            np.testing.assert_allclose(slope.sum(), 1.0, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(traced, expected["iwae"], rtol=1e-9)


JACKKNIFE = [
    jax.jit(jax.value_and_grad(partial(bounds.jackknife, order=order)))
    for order in (0, 1, 2)
]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("num_possible", [0, 1, 2, 3])
def test_the_jackknife_needs_a_weight_in_every_subset(x64, order, num_possible):
    log_w = np.where(np.arange(4) < num_possible, LOG_W, -np.inf)
    value, slope = JACKKNIFE[order](jnp.asarray(log_w))
    if num_possible <= order:
        assert value == -jnp.inf
        return
    total = 0.0
    for j in range(order + 1):
        saved = itertools.combinations(np.exp(log_w), 4 - j)
        mean = np.mean([np.log(np.mean(subset)) for subset in saved])
        scale = math.factorial(j) * math.factorial(order - j)
        total += (-1) ** j * (4 - j) ** order / scale * mean
    np.testing.assert_allclose(value, total, rtol=1e-9)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[num_possible:], 0.0)


@pytest.mark.parametrize("bound", NAMED.values(), ids=NAMED.keys())
@pytest.mark.slow
def test_each_bound_is_finite_and_differentiable_at_extreme_weights(x64, bound):
    check_grads(bound, (jnp.asarray(LOG_W),), order=2, modes=("rev",), rtol=1e-3)
    for log_w in (jnp.array([1e4, -1e4, 3.0, 2.0]), jnp.array([-1e4, -2e4, -1e4, 0.0])):
        value, grad = jax.value_and_grad(bound)(log_w)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("bound", NAMED.values(), ids=NAMED.keys())
def test_each_bound_is_the_weight_where_all_are_equal(x64, bound):
    np.testing.assert_allclose(bound(jnp.full((4,), -1.3)), -1.3, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: bounds.renyi(w, alpha=math.inf), "alpha .*inf"),
        (lambda w: bounds.renyi(w, alpha=math.nan), "alpha .*nan"),
        (lambda w: bounds.ciwae(w, beta=1.1), "beta .*1.1"),
        (lambda w: bounds.miwae(w), r"\[M, K\]"),
        (lambda w: bounds.jackknife(w, order=3), "order .*3"),
        (
            lambda w: bounds.jackknife(w[:2], order=2),
            "num_samples must be above order 2, got 2",
        ),
    ],
)
def test_bad_settings_of_a_bound_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(LOG_W))


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_the_jackknife_loses_no_digits_to_the_size_of_the_weights(order):
    log_w = np.random.default_rng(0).normal(size=50).astype(np.float32)
    far, near = jnp.asarray(log_w - np.float32(1024.0)), jnp.asarray(log_w)
    # The same bits are left of both once the greatest is taken off.
    near = (near - 1024.0) + 1024.0
    got = bounds.jackknife(far, order=order) + 1024.0
    np.testing.assert_allclose(got, bounds.jackknife(near, order=order), atol=2e-3)
