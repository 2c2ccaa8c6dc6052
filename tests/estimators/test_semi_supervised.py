from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import conditional_models, laws
from tests.conditional_models import NUM_CLASSES, STD, X_SIZE
from vae_jax import conditional, likelihoods, networks, posteriors, priors
from vae_jax.estimators import semi_supervised, sgvb
from vae_jax.types import Network

GENERATOR = np.random.default_rng(1)


def test_the_marginal_bound_is_greatest_at_the_softmax_of_the_bounds(x64):
    nats = jnp.asarray(GENERATOR.normal(size=4))
    best = jax.nn.log_softmax(nats)
    value = semi_supervised.marginal(nats, best)
    np.testing.assert_allclose(value, jax.nn.logsumexp(nats), rtol=1e-12)
    slope = jax.grad(
        lambda logits: semi_supervised.marginal(nats, jax.nn.log_softmax(logits))
    )
    np.testing.assert_allclose(slope(best), 0.0, atol=1e-12)
    for _ in range(20):
        other = jax.nn.log_softmax(best + jnp.asarray(GENERATOR.normal(size=4)))
        assert semi_supervised.marginal(nats, other) < value
    certain = semi_supervised.marginal(nats, jnp.array([0.0, *3 * [-jnp.inf]]))
    np.testing.assert_allclose(certain, nats[0])


def test_a_class_without_chance_and_without_likelihood_costs_nothing():
    def marginal(logits):
        nats = jnp.array([-1.0, -jnp.inf])
        return semi_supervised.marginal(nats, jax.nn.log_softmax(logits))

    value, slope = jax.value_and_grad(marginal)(jnp.array([0.0, -200.0]))
    assert value == -1.0
    np.testing.assert_array_equal(slope, 0.0)


def _m2(classify, *, alpha=0.0, at=None):
    network = Network(lambda key: jnp.zeros(NUM_CLASSES), classify)
    at = semi_supervised.with_classifier(at or conditional_models.linear(), network)
    params = at(jnp.zeros(NUM_CLASSES)).init(jax.random.key(0))
    objective = semi_supervised.m2(
        at,
        network,
        num_classes=NUM_CLASSES,
        bound=partial(sgvb.sgvb_a, num_samples=1),
        alpha=alpha,
    )
    return objective, params


def _joint(x):
    """log p(x, y) of every class of the mixture of pPCAs, in closed form."""
    each = jax.vmap(lambda c: conditional_models.log_p(x, c))(jnp.eye(NUM_CLASSES))
    return each - jnp.log(NUM_CLASSES)


@pytest.mark.slow
def test_with_exact_conditionals_u_is_log_p_of_a_mixture_of_ppcas(x64):
    """And L is log p(x, y); with another q(y | x), U is below by its KL."""
    x, none = jnp.asarray(GENERATOR.normal(size=X_SIZE)), jnp.array(-1)
    objective, params = _m2(lambda params, x: params + _joint(x))
    log_p = jax.nn.logsumexp(_joint(x))
    value = objective(jax.random.key(1), params, (x, none))
    np.testing.assert_allclose(value, log_p, rtol=1e-10)
    for y in range(NUM_CLASSES):
        value = objective(jax.random.key(1), params, (x, jnp.array(y)))
        np.testing.assert_allclose(value, _joint(x)[y], rtol=1e-10)
    shift = jnp.array([0.5, -1.0, 0.0])
    other = params._replace(recognition=params.recognition | {"classifier": shift})
    log_q = jax.nn.log_softmax(_joint(x) + shift)
    kl = (jnp.exp(log_q) * (log_q - jax.nn.log_softmax(_joint(x)))).sum()
    value = objective(jax.random.key(1), other, (x, none))
    np.testing.assert_allclose(value, log_p - kl, rtol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_labels_reach_the_classifier_by_alpha_alone_and_the_value_stays_the_bound(
    x64, alpha
):
    x, y = jnp.asarray(GENERATOR.normal(size=X_SIZE)), jnp.array(1)
    objective, params = _m2(lambda params, x: params, alpha=alpha)
    value, slope = jax.value_and_grad(
        lambda params: objective(jax.random.key(1), params, (x, y))
    )(params)
    np.testing.assert_allclose(value, _joint(x)[1], rtol=1e-10)
    # d log softmax at equal logits.
    wanted = alpha * (np.eye(NUM_CLASSES)[1] - 1.0 / NUM_CLASSES)
    np.testing.assert_allclose(slope.recognition["classifier"], wanted, atol=1e-12)


@pytest.mark.slow
def test_a_labeled_rows_gradient_is_that_of_the_model_given_its_label(x64):
    at = conditional.model(
        networks.mlp(X_SIZE + NUM_CLASSES, (3,), 4),
        networks.mlp(2 + NUM_CLASSES, (3,), X_SIZE),
        posterior=posteriors.diag_normal(2),
        prior=priors.standard_normal(2),
        likelihood=likelihoods.normal((X_SIZE,), std=STD),
    )
    objective, params = _m2(lambda params, x: params, at=at)
    params, key = laws.jiggled(params), jax.random.key(1)
    x, y = jnp.asarray(GENERATOR.normal(size=X_SIZE)), jnp.array(2)
    supervised = conditional.of_pairs(partial(sgvb.sgvb_a, num_samples=1), at)
    slope = jax.grad(lambda params: objective(jax.random.clone(key), params, (x, y)))
    wanted = jax.grad(
        lambda params: supervised(key, params, (x, jnp.eye(NUM_CLASSES)[2]))
    )
    chex.assert_trees_all_close(slope(params), wanted(params), rtol=1e-9)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_classes": 1, "alpha": 1.0}, "num_classes must be 2 or more, got 1"),
        ({"num_classes": 3, "alpha": -1.0}, "alpha must"),
    ],
)
def test_wrong_numbers_are_refused(numbers, message):
    network = networks.mlp(4, (), 3)
    with pytest.raises(ValueError, match=message):
        semi_supervised.m2(
            conditional_models.linear(),
            network,
            bound=partial(sgvb.sgvb_a, num_samples=1),
            **numbers,
        )
