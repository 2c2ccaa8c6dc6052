import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems, testing
from vae_jax import networks, posteriors, vae
from vae_jax.estimators import batch_penalty, factor
from vae_jax.types import Batch, Network, Params

pytestmark = pytest.mark.uses_optax
TRIL, STD = np.array([[1.0, 0.0], [0.6, 0.8]]), 0.5
COVARIANCE = TRIL @ TRIL.T + STD**2 * np.eye(2)  # of z, where rows are TRIL N(0, I)


def _model():
    """q(z | x) = N(x, STD^2 I) of rows that are codes."""
    generative = problems.linear_gaussian(num_latents=2).generative
    density = posteriors.diag_normal(2)

    def encode(params, x):
        return jnp.concatenate([x, jnp.full(2, math.log(STD))])

    return vae.model(generative, vae.recognition(encode, density))


def _features(z):
    return jnp.stack([z[0] ** 2, z[1] ** 2, z[0] * z[1], jnp.ones(())])


QUADRATIC = Network(
    lambda key: jnp.zeros(4), lambda params, z: (params @ _features(z))[None]
)


@pytest.mark.slow
def test_the_discriminator_at_its_optimum_gives_the_total_correlation():
    """Logistic regression on squares finds log q(z) - sum_d log q(z_d) of a normal."""
    objective = factor.factor(
        _model(),
        QUADRATIC,
        optax.adam(optax.cosine_decay_schedule(0.03, 800)),
        num_samples=1,
        num_data=100_000,
        gamma=1.0,
        start=QUADRATIC.init(jax.random.key(0)),
    )
    params = Params(problems.linear_gaussian(num_latents=2).params.generative, ())

    def step(memory, key):
        key_rows, key_step = jax.random.split(key)
        rows = jax.random.normal(key_rows, (400, 2)) @ jnp.asarray(TRIL.T, jnp.float32)
        batch = Batch(rows, jnp.arange(400), jnp.ones(400))
        _, memory, logged = objective.value(key_step, params, memory, batch)
        return memory, logged["total_correlation_discriminator"]

    keys = jax.random.split(jax.random.key(1), 800)
    start = objective.init(params)
    memory, logged = jax.jit(lambda m: jax.lax.scan(step, m, keys))(start)
    scales = np.sqrt(np.diag(COVARIANCE))
    exact = -0.5 * np.linalg.slogdet(COVARIANCE / np.outer(scales, scales))[1]
    inverse = np.linalg.inv(COVARIANCE)
    optimum = [
        *(-0.5 * (np.diag(inverse) - 1.0 / scales**2)),
        -inverse[0, 1],
        exact,
    ]
    np.testing.assert_allclose(memory.params, optimum, atol=0.05)
    last = np.asarray(logged)[-200:]
    error = last.std(ddof=1) / math.sqrt(len(last))
    assert abs(last.mean() - exact) < 3.0 * error + 0.005


@pytest.mark.slow
def test_permuted_latents_are_of_rows_of_their_own_drawn_by_weight(x64):
    mean = jnp.array([[-1.0, 10.0], [1.0, 30.0], [50.0, 50.0]])
    zeros, weight = jnp.zeros((3, 2)), jnp.array([1.0, 3.0, 0.0])
    z = jnp.zeros((3, 4000, 2))
    log_std = jnp.full((3, 2), math.log(0.1))
    codes = batch_penalty.Codes(z, mean, log_std, zeros[:, :1], weight)
    got = factor.independent_latents(jax.random.key(0), codes).reshape(-1, 2)
    first, second = got[:, 0] > 0.0, got[:, 1] > 20.0
    testing.assert_mean_equals(1.0 * first, 0.75)
    testing.assert_mean_equals(1.0 * second, 0.75)
    testing.assert_mean_equals(1.0 * (first & second), 0.75**2)
    assert float(got.max()) < 31.0
    noise = got - jnp.where(jnp.stack([first, second], 1), mean[None, 1], mean[None, 0])
    testing.assert_mean_equals(noise**2, np.full(2, 0.01))


@pytest.mark.slow
def test_the_codes_climb_the_discriminator_of_the_step_before(x64):
    """And its own step is up its likelihood, on codes without a gradient."""
    params = Params(problems.linear_gaussian(num_latents=2).params.generative, ())
    start = jnp.array([0.1, -0.2, 0.3, 0.0])
    objective = factor.factor(
        _model(),
        QUADRATIC,
        optax.sgd(1.0),
        num_samples=1,
        num_data=9,
        gamma=2.0,
        start=start,
    )
    plain = batch_penalty.penalized(
        _model(), num_samples=1, num_data=9, penalty=lambda *_: (jnp.zeros(()), (), {})
    )
    rows = jnp.array([[0.4, -1.0], [-0.7, 0.2], [1.1, 0.3]])

    def total(objective, rows):
        batch = Batch(rows, jnp.arange(3), jnp.ones(3))
        memory = objective.init(params)
        nats, memory, logged = objective.value(jax.random.key(4), params, memory, batch)
        return nats.sum(), (memory, logged)

    both = jax.jit(
        lambda rows: [
            jax.grad(total, argnums=1, has_aux=True)(each, rows)
            for each in (objective, plain)
        ]
    )
    (slopes, (memory, logged)), (of_elbo, _) = both(rows)
    model, keys = _model(), jax.random.split(jax.random.key(4), 3)
    h = jax.vmap(model.recognition.encode, (None, 0))(params, rows)
    z = jax.vmap(model.recognition.sample, (0, None, 0))(keys, params, h)

    def logit(z):
        return QUADRATIC.apply(start, z)[0]

    expected = of_elbo - 2.0 * jax.vmap(jax.grad(logit))(z)
    np.testing.assert_allclose(slopes, expected, rtol=1e-9)
    mean = jax.vmap(logit)(z).mean()
    np.testing.assert_allclose(logged["total_correlation_discriminator"], mean)
    key = jax.random.fold_in(jax.random.key(4), 2**31)
    weight, log_std = jnp.ones(3), jnp.full((3, 2), math.log(STD))
    codes = batch_penalty.Codes(z[:, None], rows, log_std, z[:, :1], weight)
    others = factor.independent_latents(key, codes)[:, 0]

    def likelihood(of_network):
        f = jax.vmap(lambda z: QUADRATIC.apply(of_network, z)[0])
        true, false = jax.nn.sigmoid(f(z)), 1.0 - jax.nn.sigmoid(f(others))
        return 0.5 * (jnp.log(true) + jnp.log(false)).mean()

    value, slope = jax.value_and_grad(likelihood)(start)
    np.testing.assert_allclose(logged["discriminator"], value, rtol=1e-9)
    np.testing.assert_allclose(memory.params, start + slope, rtol=1e-9)


def test_a_negative_gamma_is_refused():
    network = networks.mlp(2, (4,), 1)
    with pytest.raises(ValueError, match=r"gamma must not be negative, got -1\.0"):
        factor.factor(
            _model(),
            network,
            optax.sgd(1.0),
            num_samples=1,
            num_data=4,
            gamma=-1.0,
            start=network.init(jax.random.key(0)),
        )
