from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import conditional_models, laws
from tests.conditional_models import NUM_CLASSES, X_SIZE
from vae_jax import conditional, likelihoods, networks, posteriors, priors, types, vae
from vae_jax.estimators import importance, sgvb
from vae_jax.types import Batch, Network, per_example

GENERATOR = np.random.default_rng(1)


def test_the_bound_of_a_linear_model_given_c_is_its_log_density(x64):
    at, x = conditional_models.linear(), jnp.asarray(GENERATOR.normal(size=X_SIZE))
    params = at(jnp.zeros(NUM_CLASSES)).init(jax.random.key(0))
    elbo = conditional.of_pairs(partial(sgvb.sgvb_a, num_samples=1), at)
    contexts = jnp.concatenate([jnp.eye(NUM_CLASSES), jnp.ones((1, NUM_CLASSES))])
    for c in contexts:
        bound = elbo(jax.random.key(1), params, (x, c))
        np.testing.assert_allclose(bound, conditional_models.log_p(x, c), rtol=1e-10)


@pytest.mark.slow
def test_pairs_are_a_batch_of_examples(x64):
    at, x = conditional_models.linear(), jnp.asarray(GENERATOR.normal(size=(5, X_SIZE)))
    params = at(jnp.zeros(NUM_CLASSES)).init(jax.random.key(0))
    c = jnp.eye(NUM_CLASSES)[jnp.array([0, 1, 2, 1, 0])]
    elbo: Any = conditional.of_pairs(partial(sgvb.sgvb_a, num_samples=2), at)
    objective = per_example(elbo)
    pairs: Any = (x, c)
    batch = Batch(pairs, jnp.arange(5), jnp.ones(5))
    nats, _, _ = objective.value(jax.random.key(1), params, (), batch)
    np.testing.assert_allclose(
        nats, jax.vmap(conditional_models.log_p)(x, c), rtol=1e-10
    )


@pytest.mark.slow
def test_a_context_of_no_weight_leaves_the_model_as_it_was():
    densities: dict[str, Any] = {
        "posterior": posteriors.diag_normal(2),
        "prior": priors.standard_normal(2),
    }
    observed = likelihoods.bernoulli((5,))
    plain_nets = networks.mlp(5, (4,), 4), networks.mlp(2, (4,), 5)
    plain = vae.model(
        vae.decoder_model(plain_nets[1], densities["prior"], observed),
        vae.encoder_model(plain_nets[0], densities["posterior"]),
    )
    at = conditional.model(
        networks.mlp(5 + 3, (4,), 4),
        networks.mlp(2 + 3, (4,), 5),
        likelihood=observed,
        **densities,
    )
    params = jax.jit(plain.init)(jax.random.key(0))
    wide = jax.tree.map(jnp.copy, params)
    for part in (wide.generative["decoder"], wide.recognition["encoder"]):
        first = part["hidden_0"]
        first["kernel"] = jnp.concatenate([first["kernel"], jnp.zeros((3, 4))])
    x, c = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0]), jnp.array([0.3, -1.0, 2.0])
    elbo = partial(sgvb.sgvb_b, num_samples=1)
    of_pair = conditional.of_pairs(elbo, at)(jax.random.key(1), wide, (x, c))
    np.testing.assert_allclose(of_pair, elbo(plain)(jax.random.key(1), params, x))


@pytest.mark.slow
def test_a_prior_given_c_has_its_kl_in_closed_form_and_is_drawn_from(x64):
    """p(z | c) = N(c, (1 + |c|)^2) by hand."""
    of_c = Network(
        lambda key: (), lambda p, c: jnp.concatenate([c, jnp.log1p(jnp.abs(c))])
    )
    at = conditional.model(
        networks.mlp(3 + 2, (), 4),
        networks.mlp(2 + 2, (), 3),
        posterior=posteriors.diag_normal(2),
        prior=posteriors.diag_normal(2),
        likelihood=likelihoods.bernoulli((3,)),
        prior_network=of_c,
    )
    c, x = jnp.array([0.5, -1.0]), jnp.array([1.0, 0.0, 1.0])
    model = at(c)
    params = laws.jiggled(model.init(jax.random.key(0)))
    z = jax.vmap(lambda key: model.generative.sample_prior(key, params))(
        jax.random.split(jax.random.key(1), 4000)
    )
    error = (z.mean(0) - c) / (z.std(0) / np.sqrt(4000))
    assert np.abs(error).max() < 5.0
    np.testing.assert_allclose(z.std(0), 1.0 + np.abs(c), rtol=0.1)
    h = model.recognition.encode(params, x)
    assert model.kl is not None

    def log_ratio(key):
        z, log_q = model.recognition.sample_and_log_prob(key, params, h)
        return log_q - model.generative.log_prior(params, z)

    log_ratios = jax.vmap(log_ratio)(jax.random.split(jax.random.key(2), 4000))
    error = log_ratios.mean() - model.kl(params, h).sum()
    assert abs(error) < 5.0 * log_ratios.std() / np.sqrt(4000)
    transport, eps = model.generative.transport, jnp.array([0.5, -2.0])
    assert transport is not None
    mapped = transport.forward(params, eps)
    np.testing.assert_allclose(mapped, c + (1.0 + jnp.abs(c)) * eps)
    np.testing.assert_allclose(transport.inverse(params, mapped), eps)
    rows = conditional.of_rows(at, (3,), num_context=2)  # whose z has no row to read
    assert rows.kl is not None
    assert np.isnan(rows.generative.log_prior(params, z[0]))
    assert np.isnan(rows.kl(params, h)).all()


def test_a_conditional_prior_without_a_network_is_refused():
    with pytest.raises(ValueError, match="reads h of 4 entries: give a prior_network"):
        conditional.model(
            networks.mlp(4, (), 4),
            networks.mlp(3, (), 3),
            posterior=posteriors.diag_normal(2),
            prior=posteriors.diag_normal(2),
            likelihood=likelihoods.bernoulli((3,)),
        )


@pytest.mark.slow
def test_a_model_of_rows_is_the_model_at_each_rows_context(x64):
    at, x = conditional_models.linear(), jnp.asarray(GENERATOR.normal(size=X_SIZE))
    model = conditional.of_rows(at, (X_SIZE,), num_context=NUM_CLASSES)
    params = model.init(jax.random.key(0))
    for c in jnp.eye(NUM_CLASSES):
        row = jnp.concatenate([x, c])
        for bound in (importance.iwae, sgvb.sgvb_a):
            nats = bound(model, num_samples=3)(jax.random.key(1), params, row)
            np.testing.assert_allclose(nats, conditional_models.log_p(x, c), rtol=1e-10)
        z = model.generative.sample_prior(jax.random.key(2), params)
        log_joint = types.log_joint(model.generative, params, row, z)
        expected = types.log_joint(at(c).generative, params, x, z)
        np.testing.assert_allclose(log_joint, expected, rtol=1e-12)
    # All that is of z alone, and what log p is, are the model's own.
    alone = at(jnp.zeros(NUM_CLASSES))
    rows = conditional.of_rows(lambda c: alone, (X_SIZE,), num_context=NUM_CLASSES)
    of_x = {"log_likelihood_terms", "sample_observation", "mean_observation", "encode"}
    of_x.add("quantity")
    for ours, theirs in zip(rows[:2], alone[:2], strict=True):
        for name in {*theirs._fields} - of_x:
            assert getattr(ours, name) is getattr(theirs, name), name
    observed = likelihoods.bernoulli((X_SIZE,))
    decoder = networks.linear(1, X_SIZE)
    of_bits = vae.decoder_model(decoder, priors.standard_normal(1), observed)
    bits = vae.model(of_bits, alone.recognition)
    rows = conditional.of_rows(lambda c: bits, (X_SIZE,), num_context=NUM_CLASSES)
    assert rows.generative.quantity is not None
    beside = np.concatenate([np.ones((2, X_SIZE)), np.full((2, NUM_CLASSES), -0.5)], 1)
    assert rows.generative.quantity(beside) == "log-likelihood"  # c is no bit
    with pytest.raises(ValueError, match="x is drawn given a context c"):
        types.sample_joint(jax.random.key(1), model.generative, params)


def test_images_have_a_context_as_constant_planes_behind_their_channels():
    x, c = jnp.asarray(GENERATOR.normal(size=(2, 3))), jnp.array([5.0, 7.0])
    seen = Network(lambda key: "own", lambda params, image: image)
    network = conditional.as_planes(seen, (2, 3))
    image = network.apply((), (x, c))
    np.testing.assert_array_equal(image[..., 0], x)
    np.testing.assert_array_equal(image[..., 1:], np.broadcast_to(c, (2, 3, 2)))
    of_colors = conditional.as_planes(seen, (1, 2, 3))
    image = of_colors.apply((), (jnp.arange(6.0), jnp.arange(6.0, 8.0)))
    np.testing.assert_array_equal(image, [[[0, 1, 2, 6, 7], [3, 4, 5, 6, 7]]])
