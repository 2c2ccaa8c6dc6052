"""A file's length is the evidence, and every nat of KL(q || p(z | x)) is paid for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from vae_jax import (
    flows,
    likelihoods,
    networks,
    posteriors,
    priors,
    vae,
)
from vae_jax.coding import bits_back, rans, tables
from vae_jax.types import sample_joint

LANES = 40


def _start(num_words=4000, lanes=LANES):
    rng = np.random.default_rng(5)
    words = rng.integers(0, 2**32, 2 * lanes + num_words, dtype=np.uint32)
    return rans.start(words, num_lanes=lanes)


@functools.cache
def _binary():
    """A model of 5 bits, rows that it draws, and -log2 of its tables at each row."""
    problem = problems.binary_model()
    keys = jax.random.split(jax.random.key(2), 1030)
    draw = jax.vmap(sample_joint, in_axes=(0, None, None))
    _, x = jax.jit(draw, static_argnums=1)(keys, problem.generative, problem.params)
    of_rows = jax.jit(jax.vmap(problem.table, in_axes=(None, 0)))
    z, q, joint = (np.asarray(a, np.float64) for a in of_rows(problem.params, x))
    return problem, np.asarray(x, int), z[0].astype(int), q, joint


def _of_tables(rows, probabilities):
    """Codes of a single symbol, the number of z in the table of them all."""
    _, x, _, _, joint = _binary()
    which = {tuple(row): n for n, row in enumerate(x)}
    values = problems.binary_rows(5).astype(int)
    at = np.array([which.get(tuple(value), -1) for value in values])
    assert (at >= 0).all(), "every x is among the rows"
    log_x = np.log(joint[at] / joint[at].sum(axis=0))  # [2^5, Z]: log p(x | z)
    log_z = np.log(joint[at].sum(axis=0))  # [Z]
    place = {tuple(value): n for n, value in enumerate(values)}

    def build(size):
        def posterior(symbols):
            of_rows = np.array([probabilities[at[n]] for n in symbols[:, 0]])
            return tables.categorical(np.log(of_rows)[:, None])

        def likelihood(symbols):
            return tables.categorical(log_x.T[symbols[:, 0]][:, None])

        prior = tables.categorical(np.tile(log_z, (size, 1, 1)))
        return bits_back.Coder(prior, posterior, likelihood)

    return build, np.array([[place[tuple(row)]] for row in rows])


def _compressed(build, symbols, *, lanes=LANES):
    """Bits that the rows cost, and that the bound says of each; they come back too.

    With a lane for each row every z is of random bits alone. Later ones are of what was
    pushed before, which is random where the model and its q are right.
    """
    start = _start(lanes=lanes)
    stack, bits = bits_back.encode(build, start, symbols, num_lanes=lanes)
    paid = rans.num_bits(stack) - rans.num_bits(start)
    stack = rans.from_words(rans.to_words(stack), num_lanes=lanes)
    rows, end = bits_back.decode(build, stack, num_rows=len(symbols), num_lanes=lanes)
    np.testing.assert_array_equal(rows, symbols)
    np.testing.assert_array_equal(rans.to_words(end), rans.to_words(start))
    return paid, bits


def test_with_the_exact_posterior_the_file_is_the_evidence():
    _, x, _, _, joint = _binary()
    build, symbols = _of_tables(x, joint / joint.sum(axis=1, keepdims=True))
    paid, bits = _compressed(build, symbols)
    evidence = -np.log2(joint.sum(axis=1))
    np.testing.assert_allclose(bits, evidence, rtol=1e-5)
    assert abs(paid - evidence.sum()) < 64 + len(x) / 1024


def test_another_q_costs_its_divergence_from_the_posterior():
    _, x, _, q, joint = _binary()
    build, symbols = _of_tables(x, q)
    paid, bits = _compressed(build, symbols, lanes=len(x))
    assert abs(paid - bits.sum()) < 64 + len(x) / 1024
    evidence = joint.sum(axis=1)
    excess = bits + np.log2(evidence)
    divergence = (q * np.log2(q / (joint / evidence[:, None]))).sum(axis=1)
    assert divergence.mean() > 0.05
    error = (excess - divergence).std() / np.sqrt(len(x))
    assert abs((excess - divergence).mean()) < 5.0 * error


def test_a_models_own_draws_cost_its_entropy():
    problem, x, _, _, joint = _binary()
    evidence = -np.log2(joint.sum(axis=1))
    every = jnp.asarray(problems.binary_rows(5), jnp.float32)
    log_p = np.asarray(jax.vmap(problem.log_p, (None, 0))(problem.params, every))
    entropy = -(np.exp(log_p) * log_p).sum() / np.log(2.0)
    build, symbols = _of_tables(x, joint / joint.sum(axis=1, keepdims=True))
    paid, _ = _compressed(build, symbols)
    assert abs(paid / len(x) - entropy) < 5.0 * evidence.std() / np.sqrt(len(x))


def test_a_model_of_bits_costs_minus_its_bound_at_the_z_that_it_takes():
    problem, x, _, q, joint = _binary()
    build = _build(problem.model, problem.params, (5,))
    paid, bits = _compressed(build, x, lanes=len(x))
    assert abs(paid - bits.sum()) < 64 + len(x) / 1024
    elbo = (q * np.log2(joint / q)).sum(axis=1)
    error = (bits + elbo).std() / np.sqrt(len(x))
    assert abs((bits + elbo).mean()) < 5.0 * error


def _build(model, params, x_shape, num_values=2):
    return lambda size: bits_back.coder(
        model, params, x_shape=x_shape, num_values=num_values, num_lanes=size
    )


def _vae(likelihood, x_shape, prior=None, posterior=None):
    size, prior = 3, prior or priors.standard_normal(3)
    posterior = posterior or posteriors.diag_normal(size)
    observed = likelihood(x_shape)
    num_pixels = int(np.prod(x_shape))
    decoder = networks.mlp(size, (6,), observed.width)
    encoder = networks.mlp(num_pixels, (6,), posterior.width)
    return vae.model(
        vae.decoder_model(decoder, prior, observed),
        vae.encoder_model(encoder, posterior),
    )


@pytest.mark.slow
def test_real_latents_cost_minus_the_bound_of_the_model():
    model = _vae(likelihoods.bernoulli, (2, 3))
    params = model.init(jax.random.key(0))
    rows = np.random.default_rng(0).integers(0, 2, (230, 6))
    build = _build(model, params, (2, 3))
    paid, bits = _compressed(build, rows)
    assert abs(paid / bits.sum() - 1.0) < 0.005

    def weights(key, row):
        h = model.recognition.encode(params, row)
        draw = model.draw(key, params, row, h)
        log_p = draw.log_prior + draw.log_likelihood.sum()
        return (log_p - draw.log_posterior) / jnp.log(2.0)

    x = jnp.asarray(rows, jnp.float32).reshape(-1, 2, 3)
    keys = jax.random.split(jax.random.key(1), (100, len(x)))
    elbo = np.asarray(jax.jit(jax.vmap(jax.vmap(weights), (0, None)))(keys, x))
    _, bits = _compressed(build, rows, lanes=len(rows))
    error = np.hypot(bits.std(), elbo.mean(0).std()) / np.sqrt(len(x))
    assert abs(bits.mean() + elbo.mean()) < 5.0 * error


@pytest.mark.slow
def test_a_latent_that_the_prior_has_no_place_for_comes_back():
    model = _vae(likelihoods.bernoulli, (4,))
    params = model.init(jax.random.key(0))
    encoder = jax.tree.map(lambda leaf: 200.0 * leaf, params.recognition)
    params = params._replace(recognition=encoder)  # means far beyond the last bin
    rows = np.random.default_rng(0).integers(0, 2, (45, 4))
    _, bits = _compressed(_build(model, params, (4,)), rows)
    assert np.isfinite(bits).all()


def test_a_stack_without_bits_to_take_z_from_is_an_error():
    model = _vae(likelihoods.bernoulli, (4,))
    params = model.init(jax.random.key(0))
    words = np.random.default_rng(0).integers(0, 2**32, 2, dtype=np.uint32)
    with pytest.raises(rans.Exhausted):
        bits_back.encode(
            _build(model, params, (4,)),
            rans.start(words, num_lanes=1),
            np.ones((9, 4), int),
            num_lanes=1,
        )


def _flow_posterior():
    return posteriors.flow(posteriors.diag_normal(3), flows.planar(3))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: _vae(likelihoods.normal_learned_std, (4,)), "density on real x"),
        (
            lambda: _vae(likelihoods.bernoulli, (4,), posterior=_flow_posterior()),
            "has no code",
        ),
        (
            lambda: _vae(
                likelihoods.bernoulli,
                (4,),
                prior=priors.normal_mixture(3, num_components=2),
            ),
            "normal_mixture has no code",
        ),
    ],
)
def test_a_model_without_a_code_is_refused_when_it_is_built(build, said):
    model = build()
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=said):
        _build(model, params, (4,))(2)
