"""What programs cost, by the compiler's own count of floating-point operations.

Nothing is run and nothing timed: a machine's load cannot change the numbers.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from vae_jax import (
    factors,
    flows,
    ladder,
    layer_forms,
    likelihoods,
    networks,
    posteriors,
    priors,
    types,
    vae,
)
from vae_jax.estimators import importance, sgvb
from vae_jax.factors import Factor

NUM_ROWS, SIDE, Z1, Z2, HIDDEN = 20, 8, 16, 8, 64
SLOW = pytest.mark.slow


def _flops(function, *shapes):
    counted = jax.jit(function).lower(*shapes).compile().cost_analysis()
    assert counted is not None
    return counted["flops"]


def _keys(num):
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num))


# A model of two stochastic layers


def _two_layers():
    """The model of `factors`, its networks with two hidden layers each."""
    layout = factors.layout({"z1": Z1, "z2": Z2})
    net = networks.mlp
    up = net(Z1, (HIDDEN, HIDDEN), 2 * Z2)
    down = net(Z2, (HIDDEN, HIDDEN), 2 * Z1)
    read = net(Z1, (HIDDEN, HIDDEN), SIDE**2)
    posterior = factors.joint(
        layout,
        [
            Factor("z1", posteriors.diag_normal(Z1)),
            Factor("z2", posteriors.diag_normal(Z2), parent="z1", network=up),
        ],
    )
    prior = factors.joint(
        layout,
        [
            Factor("z2", priors.standard_normal(Z2)),
            Factor("z1", posteriors.diag_normal(Z1), parent="z2", network=down),
        ],
    )
    decoder = read._replace(
        apply=lambda params, z: read.apply(params, layout.split(z)["z1"])
    )
    encoder = net(SIDE**2, (HIDDEN, HIDDEN), 2 * Z1)
    return vae.model(
        vae.decoder_model(decoder, prior, likelihoods.bernoulli((SIDE, SIDE))),
        vae.encoder_model(encoder, posterior),
    )


def _products():
    """Multiplications and additions of one pass of every network, for one row."""
    sizes = [(SIDE**2, 2 * Z1), (Z1, 2 * Z2), (Z2, 2 * Z1), (Z1, SIDE**2)]
    widths = [(first, HIDDEN, HIDDEN, last) for first, last in sizes]
    return 2 * sum(a * b for net in widths for a, b in itertools.pairwise(net))


def _of_batch(model, build):
    each = types.each_example(build(model, num_samples=1))
    params = jax.eval_shape(model.init, jax.random.key(0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    x = jax.ShapeDtypeStruct((NUM_ROWS, SIDE, SIDE), jnp.float32)

    def mean(key, params, x):
        return each(key, params, x).mean()

    return mean, (key, params, x)


@pytest.mark.parametrize(
    "build",
    [sgvb.elbo, sgvb.sgvb_a, importance.iwae],
)
@pytest.mark.slow
def test_the_gradient_of_a_two_layer_elbo_costs_little_more_than_two_forwards(build):
    objective, shapes = _of_batch(_two_layers(), build)
    forward = _flops(objective, *shapes)
    both = _flops(jax.value_and_grad(objective, 1), *shapes)
    assert 2.0 * forward < both <= 3.3 * forward
    # Each network is applied once, and goes back once: the compiler merges a second
    # pass of the same network forward, but not its gradients.
    products = NUM_ROWS * _products()
    assert products < forward < 1.1 * products
    assert both < 3.2 * products


# A ladder of any depth


@pytest.mark.slow
@pytest.mark.parametrize(
    "depth", [2, 3, pytest.param(5, marks=SLOW), pytest.param(10, marks=SLOW)]
)
def test_the_gradient_of_a_ladder_costs_little_more_than_two_forwards(depth):
    sizes = [16] * depth
    model = ladder.mlp(
        sizes,
        (SIDE, SIDE),
        hidden=[(HIDDEN, HIDDEN)] * depth,
        form=layer_forms.residual_normal(),
        posterior=posteriors.diag_normal(16, max_log_std=5.0),
        prior=priors.standard_normal(16),
        likelihood=likelihoods.bernoulli((SIDE, SIDE)),
    )
    objective, shapes = _of_batch(model, sgvb.elbo)
    forward = _flops(objective, *shapes)
    both = _flops(jax.value_and_grad(objective, 1), *shapes)
    assert 2.0 * forward < both <= 3.3 * forward
    # The four functions apart run the pass forward once, as the compiler sees it, and
    # backward three times.
    apart = vae.model(model.generative, model.recognition)
    composed, _ = _of_batch(apart, sgvb.elbo)
    assert _flops(jax.value_and_grad(composed, 1), *shapes) > 1.2 * both


# An inverse autoregressive flow


NUM_LATENTS, NUM_LAYERS = 20, 4


def _iaf():
    layers = []
    for _ in range(NUM_LAYERS):
        net = networks.made(NUM_LATENTS, (24,))
        layers += [
            flows.inverse_autoregressive(net, NUM_LATENTS),
            flows.reverse(NUM_LATENTS),
        ]
    return posteriors.flow(posteriors.diag_normal(NUM_LATENTS), flows.chain(*layers))


def _training_flops(density, draw):
    """Of the gradient of E[log p(z) - log q(z)] with the score, in params and h."""
    params = jax.eval_shape(density.init, jax.random.key(0))
    h = jax.ShapeDtypeStruct((2, density.width), jnp.float32)

    def mean(keys, params, h):
        z, nats = jax.vmap(draw, (0, None, 0))(keys, params, h)
        return (-0.5 * (z**2).sum(1) - nats).mean()

    return _flops(jax.grad(mean, (1, 2)), _keys(2), params, h)


@pytest.mark.slow
def test_training_an_iaf_costs_a_fraction_of_sampling_and_inverting_it(monkeypatch):
    density, scan = _iaf(), jax.lax.scan

    def composed(key, params, h):
        z = density.sample(key, params, h)
        return z, density.log_prob(params, h, z)

    # The compiler counts the body of a loop once. Each turn of the D that invert a
    # layer costs the same, so what a second one in the body adds is added D - 1 times.
    counts = []
    for unroll in (1, 2):
        monkeypatch.setattr(jax.lax, "scan", functools.partial(scan, unroll=unroll))
        counts.append(_training_flops(density, composed))
    whole = counts[0] + (NUM_LATENTS - 1) * (counts[1] - counts[0])
    monkeypatch.setattr(jax.lax, "scan", _no_loop)
    fused = _training_flops(density, density.sample_and_log_prob)
    assert fused <= 0.3 * whole


def _no_loop(*arguments, **keywords):
    raise AssertionError(f"a loop in the fused form: {arguments}, {keywords}")
