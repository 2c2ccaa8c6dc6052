import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import ladders, testing
from vae_jax import layer_forms, priors, vae
from vae_jax.evaluation import ablation

PAIR = np.array([0.8, -1.3])
OTHERS = np.array([[0.8, -1.3], [-2.0, 1.0], [0.0, 3.0]])
SUBSETS = np.array(list(itertools.product([True, False], repeat=3)))  # what q draws
STD_X = 0.7  # of the chain's x
NORMAL = layer_forms.residual_normal(max_log_std=ladders.MAX_LOG_STD)


@functools.cache
def _chain():
    return ladders.chain(3, form="residual")


@functools.cache
def _conditionals(x):
    """(offset, slope, std) of p and of q of z_1, z_2, z_3 given the layer above."""
    model, params = _chain().model, _chain().params
    h_top, features = model.recognition.encode(params, jnp.asarray(x))
    of_p, of_q = [], []
    for i, feature in enumerate(features, 1):
        of_layer = params.generative[f"layer_{i}"], params.recognition[f"layer_{i}"]
        ends = []
        for z in (0.0, 1.0):
            a = ladders.apply(of_layer[0], jnp.array([z]))
            seen = jnp.concatenate([a, feature])
            b = ladders.apply(of_layer[1]["posterior"], seen)
            ends.append((NORMAL.prior(a), NORMAL.posterior(a, b)))
        (p_0, q_0), (p_1, q_1) = ends
        for pair, at_0, at_1 in ((of_p, p_0, p_1), (of_q, q_0, q_1)):
            offset, end = float(at_0[0][0]), float(at_1[0][0])
            assert at_0[1] == pytest.approx(at_1[1])
            pair.append((offset, end - offset, float(np.exp(at_0[1][0]))))
    top = float(h_top[0]), 0.0, float(np.exp(h_top[1]))
    return [*of_p, (0.0, 0.0, 1.0)], [*of_q, top]


def _closed(x, from_q):
    """(bound, reconstruction, log of the mean likelihood, KL [3]) of r, all normal."""
    of_p, of_q = _conditionals(tuple(x))
    decoder = _chain().params.generative["decoder"]["output"]
    w, v = np.asarray(decoder["kernel"])[0], np.asarray(decoder["bias"])
    mean, variance, kl = 0.0, 0.0, np.zeros(3)  # of the layer above
    for i in (2, 1, 0):
        (m_p, a_p, s_p), (m_q, a_q, s_q) = of_p[i], of_q[i]
        gap = (m_q - m_p + (a_q - a_p) * mean) ** 2 + (a_q - a_p) ** 2 * variance
        ratio = (s_q / s_p) ** 2
        kl[i] = 0.5 * (gap / s_p**2 + ratio - 1.0 - np.log(ratio))
        m, a, s = of_q[i] if from_q[i] else of_p[i]
        mean, variance = m + a * mean, a**2 * variance + s**2
    error = x - w * mean - v
    log_2pi = np.log(2.0 * np.pi)
    squares = (error @ error + variance * w @ w) / STD_X**2
    reconstruction = -0.5 * (squares + 2.0 * log_2pi + 4.0 * np.log(STD_X))
    covariance = variance * np.outer(w, w) + STD_X**2 * np.eye(2)
    log_mean = -0.5 * (
        error @ np.linalg.solve(covariance, error)
        + np.linalg.slogdet(covariance)[1]
        + 2.0 * log_2pi
    )
    return reconstruction - kl[from_q].sum(), reconstruction, log_mean, kl


# The closed forms, by which the statements of the module hold


@pytest.mark.parametrize("x", OTHERS)
def test_the_mean_likelihood_loses_at_most_the_kl_of_what_is_replaced(x64, x):
    bound, reconstruction, _, kl = _closed(x, np.array([True] * 3))
    np.testing.assert_allclose(bound, _chain().log_p(x), rtol=1e-9)  # q is exact
    for from_q in SUBSETS:
        lost = reconstruction - _closed(x, from_q)[2]
        assert lost <= kl[~from_q].sum() + 1e-12


def test_the_bound_may_lose_more_than_the_kl_of_what_is_replaced(x64):
    bound, _, _, kl = _closed(PAIR, np.array([True] * 3))
    lost = np.array(
        [
            bound - _closed(PAIR, from_q)[0]
            for from_q in ablation.without_layers([1] * 3)
        ]
    )
    assert lost[0] == 0.0
    assert (lost > -1e-12).all()  # of an exact q
    assert lost[1] > 2.0 * kl[0]


# The estimates


@pytest.mark.slow
def test_a_ladder_of_normals_gives_what_its_closed_forms_say_of_every_subset(x64):
    evaluate = ablation.ablated(_chain().model, num_samples=4)
    of_subsets = jax.vmap(evaluate, (None, None, None, 0))
    of_keys = jax.jit(jax.vmap(of_subsets, (0, None, None, None)))
    keys = jax.random.split(jax.random.key(0), 4_000)
    estimated = of_keys(keys, _chain().params, jnp.asarray(PAIR), jnp.asarray(SUBSETS))
    for i, from_q in enumerate(SUBSETS):
        bound, reconstruction, log_mean, kl = _closed(PAIR, from_q)
        one = jax.tree.map(lambda leaf, i=i: leaf[:, i], estimated)
        testing.assert_mean_equals(one.bound, bound)
        testing.assert_mean_equals(one.reconstruction, reconstruction)
        testing.assert_mean_equals(jnp.exp(one.log_mean_likelihood - log_mean), 1.0)
        testing.assert_mean_equals(one.kl, kl)


@pytest.mark.slow
def test_the_kl_of_each_group_is_its_mean_over_q(x64):
    estimate = jax.jit(ablation.kl_of_groups(_chain().model, num_samples=4_000))
    got = estimate(jax.random.key(1), _chain().params, jnp.asarray(PAIR))
    *_, expected = _closed(PAIR, np.array([True] * 3))
    np.testing.assert_allclose(got, expected, rtol=0.05)
    np.testing.assert_allclose(got[2], expected[2], rtol=1e-9)  # nothing is above


@pytest.mark.parametrize(("top", "counts"), [("closed", (1, 1, 1)), ("open", (3, 1))])
def test_groups_are_entries_or_all_of_a_top_without_a_closed_kl(x64, top, counts):
    model, params, x = _chain().model, _chain().params, jnp.asarray(PAIR)
    if top == "open":
        mixture = priors.normal_mixture(2, 2)
        model = ladders.normals(NORMAL, sizes=(3, 2), prior=mixture)
        params, x = jax.eval_shape(model.init, jax.random.key(0)), jnp.ones((2, 3))
    assert ablation.group_counts(model, params, x) == counts


# Which groups are replaced


def test_layers_are_replaced_one_by_one():
    expected = [[1, 1, 1], [0, 0, 1], [1, 1, 0]]
    np.testing.assert_array_equal(
        ablation.without_layers((2, 1)), np.array(expected) > 0
    )


@pytest.mark.parametrize(
    ("num_points", "expected"),
    [
        (9, [[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]),
        (3, [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]),
    ],
)
def test_the_pruning_curve_takes_the_least_kl_first(num_points, expected):
    masks = ablation.pruned(np.array([0.2, 0.1, 3.0, 0.5]), num_points=num_points)
    np.testing.assert_array_equal(masks, np.array(expected) > 0)


def test_active_units_are_counted_by_layer():
    kl = np.array([0.02, 0.009, 0.0, 1.0])
    assert ablation.active(kl, (3, 1), (3, 1)) == (1, 1)
    assert ablation.active(kl, (1, 3), (1, 3), threshold=0.0) == (1, 2)
    assert ablation.active(kl, (3, 1), (3, 32)) == (1, None)  # one KL of 32 latents


def test_what_cannot_be_ablated_is_refused():
    with pytest.raises(ValueError, match="num_points must be 2 or more, got 1"):
        ablation.pruned(np.ones(3), num_points=1)
    model = _chain().model
    alone = vae.model(model.generative, model.recognition)
    for build in (ablation.ablated, ablation.kl_of_groups):
        with pytest.raises(ValueError, match="num_samples must be positive"):
            build(model, num_samples=0)
        with pytest.raises(ValueError, match="layers are those of a ladder"):
            build(alone, num_samples=1)
