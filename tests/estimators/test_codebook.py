"""Learned codebooks, against k-means and gradients by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems
from vae_jax import codes, likelihoods, networks, vae, vector_quantized
from vae_jax.estimators import codebook, sgvb
from vae_jax.training import gradient
from vae_jax.types import Batch, Network

pytestmark = pytest.mark.uses_optax
POINTS = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)))  # 2 places of 2


def _model(*, num_rows=3, num_levels=1):
    """q quantizes x itself, times a scale: two vectors of two entries."""
    sizes: Any = {"num_rows": num_rows, "width": 2, "num_levels": num_levels}
    decoder = vector_quantized.summed(
        networks.mlp(4, (3,), 4), width=2, num_levels=num_levels
    )
    encoder = Network(lambda key: jnp.ones(()), lambda scale, x: scale * x)
    prior = codes.uniform_prior(vector_quantized.rows(2, **sizes))
    observed, density = (
        likelihoods.normal((4,), std=1.0),
        vector_quantized.posterior(2, **sizes),
    )
    return vae.model(
        vae.decoder_model(decoder, prior, observed),
        vae.encoder_model(encoder, density, read=vector_quantized.read),
    )


def _of_normals():
    problem = problems.linear_gaussian(num_latents=2)
    return vae.model(problem.generative, problem.recognition)


def _batch(x, weight=None):
    weight = jnp.ones(len(x)) if weight is None else jnp.asarray(weight, float)
    return Batch(x, jnp.arange(len(x)), weight)


def _distortion(books, vectors):
    apart = np.asarray(vectors)[:, None] - np.asarray(books)[0][None]
    return float((apart**2).sum(axis=-1).min(axis=1).sum())


@pytest.mark.slow
def test_without_a_past_and_with_all_data_a_step_is_that_of_k_means(x64):
    model = _model()
    objective = codebook.by_averages(model, commitment=0.25, decay=0.0)
    params = model.init(jax.random.key(0))
    weight = np.array([2.0, 0.5, *np.ones(10)])
    vectors = np.asarray(POINTS).reshape(-1, 2)
    of_vectors = weight.repeat(2)
    memory, distortions = objective.init(params), []
    for _ in range(6):
        books = np.asarray(vector_quantized.read(params))
        distortions.append(_distortion(books, vectors[:, :]))
        nearest = ((vectors[:, None] - np.asarray(books[0])) ** 2).sum(-1).argmin(1)
        expected = books[0].copy()
        for k in np.unique(nearest):
            its = nearest == k
            expected[k] = np.average(vectors[its], axis=0, weights=of_vectors[its])
        key, batch = jax.random.key(1), _batch(POINTS, weight)
        _, memory, _ = objective.value(key, params, memory, batch)
        params = objective.project(params, memory)
        np.testing.assert_allclose(
            vector_quantized.read(params)[0], expected, rtol=1e-12
        )
    weighted = _batch(POINTS)
    params = model.init(jax.random.key(0))
    memory, distortions = objective.init(params), []
    for _ in range(6):
        distortions.append(_distortion(vector_quantized.read(params), vectors))
        _, memory, _ = objective.value(jax.random.key(1), params, memory, weighted)
        params = objective.project(params, memory)
    assert (np.diff(distortions) <= 1e-12).all()
    assert distortions[-1] < 0.7 * distortions[0]


@pytest.mark.slow
def test_means_move_as_the_decayed_sums_say_and_an_unused_row_stays(x64):
    model, decay = _model(), 0.8
    objective = codebook.by_averages(model, commitment=0.25, decay=decay)
    params = model.init(jax.random.key(0))
    far = vector_quantized.read(params).at[0, 2].set(jnp.array([50.0, 50.0]))
    params = vector_quantized.with_codebooks(params, far)
    memory = objective.init(params)
    number, total = np.ones((3, 1)), np.asarray(far[0])
    for start in (0, 4, 8):
        x = POINTS[start : start + 4]
        vectors, books = np.asarray(x).reshape(-1, 2), vector_quantized.read(params)
        nearest = ((vectors[:, None] - np.asarray(books[0])) ** 2).sum(-1).argmin(1)
        chosen = np.eye(3)[nearest]
        number = decay * number + (1 - decay) * chosen.sum(0)[:, None]
        total = decay * total + (1 - decay) * chosen.T @ vectors
        key = jax.random.key(start)
        _, memory, logged = objective.value(key, params, memory, _batch(x))
        params = objective.project(params, memory)
        np.testing.assert_allclose(memory.number[0], number[:, 0], rtol=1e-12)
        np.testing.assert_allclose(
            vector_quantized.read(params)[0], total / number, rtol=1e-12
        )
        share = number / number.sum()
        entropy = -(share * np.log(share)).sum()
        np.testing.assert_allclose(logged["codebook_perplexity"], np.exp(entropy))
        assert logged["restarted"] == 0.0
    np.testing.assert_array_equal(vector_quantized.read(params)[0, 2], far[0, 2])
    _, still, _ = objective.value(
        jax.random.key(9), params, memory, _batch(POINTS, np.zeros(12))
    )
    jax.tree.map(np.testing.assert_array_equal, still, memory)


@pytest.mark.parametrize("weight", [0.125, 0.375])
def test_a_row_of_less_than_one_vector_moves_by_its_own_count(weight, x64):
    model, decay = _model(num_rows=2), 0.8
    objective = codebook.by_averages(model, commitment=0.25, decay=decay)
    params = model.init(jax.random.key(0))
    far = vector_quantized.read(params).at[0, 1].set(jnp.array([50.0, 50.0]))
    params = vector_quantized.with_codebooks(params, far)
    row = vector_quantized.read(params)[0, 0]
    vectors = np.asarray(POINTS[0], np.float64).reshape(-1, 2)
    batch = _batch(POINTS[:1], jnp.array([weight]))
    _, memory, _ = objective.value(
        jax.random.key(1), params, objective.init(params), batch
    )
    number = decay + (1 - decay) * 2 * weight
    assert number < 1.0
    total = decay * row + (1 - decay) * weight * vectors.sum(axis=0)
    np.testing.assert_allclose(memory.number[0], [number, decay], rtol=1e-12)
    np.testing.assert_allclose(memory.row[0, 0], total / number, rtol=1e-12)


@pytest.mark.slow
def test_a_row_that_nothing_uses_starts_again_at_a_vector_that_weighs(x64):
    model = _model(num_levels=2)
    objective = codebook.by_averages(model, commitment=0.25, decay=0.5, min_uses=0.4)
    params = model.init(jax.random.key(0))
    far = vector_quantized.read(params).at[:, 2].set(jnp.array([50.0, -50.0]))
    params = vector_quantized.with_codebooks(params, far)
    memory = objective.init(params)
    weight = jnp.zeros(12).at[jnp.array([3, 7])].set(1.0)
    batch = _batch(POINTS, weight)
    for step, restarted in ((0, 0.0), (1, 2.0)):
        before = vector_quantized.quantize  # of each example, at the rows there are
        seen = jax.vmap(lambda x: before(vector_quantized.read(params), x))(POINTS)  # noqa: B023
        _, memory, logged = objective.value(jax.random.key(step), params, memory, batch)
        assert logged["restarted"] == restarted
        params = objective.project(params, memory)
    for level in (0, 1):
        new = vector_quantized.read(params)[level, 2]
        candidates = seen.remainder[jnp.array([3, 7]), :, level].reshape(-1, 2)
        assert (np.abs(candidates - new[None]).max(axis=1) == 0.0).any()
        assert memory.number[level, 2] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("learns", [True, False])
def test_value_and_gradients_are_the_elbo_and_the_two_losses(learns, x64):
    model, gamma = _model(num_levels=2), 0.25
    build = codebook.by_gradient
    if not learns:
        build = lambda model, commitment: codebook.by_averages(  # noqa: E731
            model, commitment=commitment, decay=0.9
        )
    objective, elbo = build(model, commitment=gamma), sgvb.sgvb_a(model, num_samples=1)
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    batch = _batch(POINTS[:3])

    def nats(params):
        memory = objective.init(params)
        return objective.value(jax.random.clone(key), params, memory, batch)[0].sum()

    def bound(params):
        keys = jax.random.split(jax.random.clone(key), 3)
        return jax.vmap(elbo, (0, None, 0))(keys, params, batch.x).sum()

    np.testing.assert_allclose(nats(params), bound(params), rtol=1e-12)
    slope, of_bound = jax.grad(nats)(params), jax.grad(bound)(params)
    np.testing.assert_array_equal(vector_quantized.read(of_bound), 0.0)
    of_decoder = slope.generative["decoder"], of_bound.generative["decoder"]
    jax.tree.map(np.testing.assert_allclose, *of_decoder)
    # By hand: the rows fixed for the encoder's scale, 1, and the reverse.
    books = vector_quantized.read(params)
    of_rows, of_scale = np.zeros(books.shape), 0.0
    for x in np.asarray(batch.x):
        nearest, remainder, row = vector_quantized.quantize(books, jnp.asarray(x))
        apart = np.asarray(remainder - row)
        for n in range(2):
            for level in range(2):
                of_rows[level, nearest[n, level]] += 2.0 * apart[n, level]
                vector = x.reshape(2, 2)[n]
                of_scale -= 2.0 * gamma * (apart[n, level] * vector).sum()
    of_rows = of_rows if learns else np.zeros(books.shape)
    np.testing.assert_allclose(vector_quantized.read(slope), of_rows, rtol=1e-12)
    moved = slope.recognition["encoder"] - of_bound.recognition["encoder"]
    np.testing.assert_allclose(moved, of_scale, rtol=1e-10)


@pytest.mark.slow
def test_an_ascent_ends_each_step_at_the_means():
    model = _model()
    objective = codebook.by_averages(model, commitment=0.25, decay=0.9)
    fit = gradient.ascent(objective, optax.sgd(1e-3), average_decay=0.5)
    state = fit.init(jax.random.key(0), model.init(jax.random.key(1)))
    x = POINTS.astype(jnp.float32)
    state, _ = fit.step(jax.random.key(0), state, _batch(x))
    state, info = fit.step(jax.random.key(1), state, _batch(x))
    books = vector_quantized.read(state.params)
    np.testing.assert_array_equal(books, state.memory.row)
    assert not np.array_equal(books, vector_quantized.read(state.average))
    assert info.monitored["codebook_perplexity"] > 1.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: codebook.by_gradient(m, commitment=-1.0), "commitment must not be"),
        (
            lambda m: codebook.by_averages(m, commitment=0.0, decay=1.0),
            r"decay must lie in \[0, 1\), got 1.0",
        ),
        (
            lambda m: codebook.by_averages(m, commitment=0.0, decay=0.0, min_uses=1.0),
            r"min_uses must lie in \[0, 1\), got 1.0",
        ),
        (
            lambda m: codebook.by_gradient(_of_normals(), commitment=0.0),
            "codebooks are learned for a vector_quantized q, got diag_normal",
        ),
    ],
)
def test_what_is_no_number_or_no_codebook_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(_model())
