import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import codes, likelihoods, networks, vae, vector_quantized
from vae_jax.estimators import sgvb
from vae_jax.types import Network, log_joint

SIZES = {"num_rows": 5, "width": 3, "num_levels": 2}
H = np.array([0.9, -0.3, 0.2, -0.5, 0.1, 1.1])  # two vectors of three


def _codebooks(**changes):
    values = vector_quantized.rows(2, **SIZES | changes)
    return values, values.init(jax.random.key(3))


def test_each_level_takes_the_nearest_row_to_what_is_left(x64):
    _, codebooks = _codebooks()
    nearest, remainder, row = vector_quantized.quantize(codebooks, jnp.asarray(H))
    for n, vector in enumerate(np.asarray(H).reshape(2, 3)):
        for level, codebook in enumerate(np.asarray(codebooks)):
            distance = ((codebook - vector) ** 2).sum(axis=1)
            np.testing.assert_allclose(remainder[n, level], vector, rtol=1e-12)
            assert nearest[n, level] == distance.argmin()
            np.testing.assert_array_equal(row[n, level], codebook[distance.argmin()])
            vector = vector - codebook[distance.argmin()]


def test_the_nearest_row_is_so_far_from_zero_too():
    rows = np.array([1000.0, 1000.02, 1000.04], np.float32)
    codebooks = jnp.asarray(rows).reshape(1, 3, 1)
    h = np.array([1000.041, 1000.019, 999.0], np.float32)
    exact = np.abs(h.astype(np.float64)[:, None] - rows).argmin(axis=1)
    nearest = vector_quantized.quantize(codebooks, jnp.asarray(h)).nearest
    np.testing.assert_array_equal(nearest[:, 0], exact)


@pytest.mark.slow
def test_symbols_and_values_are_one_to_one():
    values, codebooks = _codebooks(num_rows=3)
    every = jnp.asarray(list(itertools.product(range(3), repeat=4)))
    z = jax.vmap(lambda k: values.value(codebooks, k, jnp.dtype("float32")))(every)
    assert len({tuple(row) for row in np.asarray(z)}) == 81
    seen = jax.vmap(lambda z: values.symbols(codebooks, z))(z)
    np.testing.assert_array_equal(seen, every)


@pytest.mark.slow
@pytest.mark.parametrize("rotate", [False, True])
def test_z_is_the_rows_and_its_sums_gradient_is_the_vectors(rotate, x64):
    q = vector_quantized.posterior(2, rotate=rotate, **SIZES)
    codebooks = q.init(jax.random.key(3))
    rows = vector_quantized.quantize(codebooks, jnp.asarray(H)).row
    key = jax.random.key(0)
    z, log_q = q.sample_and_log_prob(key, codebooks, jnp.asarray(H))
    np.testing.assert_array_equal(z, rows.ravel())
    assert log_q == q.log_prob(codebooks, jnp.asarray(H), z) == 0.0
    assert q.log_prob(codebooks, jnp.asarray(H), z.at[0].add(9.0)) == -jnp.inf
    up = jnp.array([[0.4, -1.0, 0.3], [2.0, 0.1, -0.7]])

    def sums(codebooks, h):
        z = q.sample(jax.random.clone(key), codebooks, h)
        return (z.reshape(2, 2, 3).sum(axis=1) * up).sum()

    to_codebooks, to_h = jax.grad(sums, (0, 1))(codebooks, jnp.asarray(H))
    np.testing.assert_array_equal(to_codebooks, 0.0)
    if not rotate:
        np.testing.assert_allclose(to_h, up.ravel(), rtol=1e-12)
        return
    # The ratio of norms times the gradient, and its angle to q becomes that to h.
    total, to_h, h = rows.sum(axis=1), to_h.reshape(2, 3), H.reshape(2, 3)
    norm = jnp.linalg.norm
    ratio = norm(total, axis=1) / norm(h, axis=1)
    np.testing.assert_allclose(norm(to_h, axis=1), ratio * norm(up, axis=1), rtol=1e-12)
    np.testing.assert_allclose((to_h * h).sum(1), (up * total).sum(1), rtol=1e-12)


@pytest.mark.slow
def test_a_rotated_vector_is_the_row_exactly_at_the_edges_too(x64):
    h = jnp.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [3.0, -1.0], [1.0, 1.0]])
    q = jnp.array([[-3.0, 0.5], [-2.0, -4.0], [1.0, 1.0], [3.0, -1.0], [0.0, 0.0]])
    moved = vector_quantized.rotated(h, q)
    expected = q.at[2].set(0.0)  # from zero there is no direction to turn
    np.testing.assert_allclose(moved, expected, atol=1e-12)
    slope = jax.grad(lambda h: vector_quantized.rotated(h, q).sum())(h)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[2], 1.0)


def _model(prior_of, *, num_places=2, num_rows=4, width=2, x_size=3):
    values = vector_quantized.rows(num_places, num_rows=num_rows, width=width)
    q = vector_quantized.posterior(num_places, num_rows=num_rows, width=width)
    size = num_places * width
    observed = likelihoods.bernoulli((x_size,))
    decoder = networks.mlp(size, (5,), x_size)
    encoder = networks.mlp(x_size, (5,), size)
    return vae.model(
        vae.decoder_model(decoder, prior_of(values), observed),
        vae.encoder_model(encoder, q, read=vector_quantized.read),
    ), values


@pytest.mark.slow
def test_the_bound_is_exact_and_below_log_p_by_enumeration(x64):
    """4^2 codes; the codes of p are those of q, wherever the codebook moves."""

    def prior_of(values):
        made = networks.made(2, (6,), outputs_per_input=4, width=2)
        return codes.autoregressive_prior(values, made)

    model, values = _model(prior_of)
    params = model.init(jax.random.key(0))
    assert set(params.recognition) == {"encoder"}
    books = 2.0 * vector_quantized.read(params) + 0.1
    params = vector_quantized.with_codebooks(params, books)
    every = jnp.asarray(list(itertools.product(range(4), repeat=2)))
    z = jax.vmap(lambda k: values.value(books, k, jnp.dtype(float)))(every)
    for x in (jnp.zeros(3), jnp.array([1.0, 0.0, 1.0])):
        each = jax.vmap(lambda z, x=x: log_joint(model.generative, params, x, z))(z)
        h = model.recognition.encode(params, x)
        rows = books[0][vector_quantized.quantize(books, h).nearest[:, 0]]
        at = np.flatnonzero((np.asarray(z) == np.asarray(rows).ravel()).all(axis=1))
        elbo = sgvb.sgvb_a(model, num_samples=1)(jax.random.key(1), params, x)
        np.testing.assert_allclose(elbo, each[at[0]], rtol=1e-12)
        assert elbo < jax.nn.logsumexp(each)
    log_p = jax.vmap(lambda z: model.generative.log_prior(params, z))(z)
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1.0, rtol=1e-12)
    assert np.ptp(log_p) > 0.1


@pytest.mark.slow
def test_the_symbol_of_a_place_depends_on_the_places_before_alone(x64):
    values = vector_quantized.rows(3, num_rows=4, width=2)
    network = networks.made(3, (8, 8), outputs_per_input=4, width=2)
    params, z = network.init(jax.random.key(0)), jnp.linspace(-1.0, 1.0, 6)
    slope = jax.jacobian(lambda z: network.apply(params, z).reshape(4, 3))(z)
    reads = (jnp.abs(slope.reshape(4, 3, 3, 2)) > 0.0).any(axis=(0, 3))
    np.testing.assert_array_equal(reads, np.tri(3, k=-1, dtype=bool))
    assert codes.log_probs(values, network)(params, z).shape == (3, 4)


def test_a_decoder_reads_the_sum_over_levels():
    plain = Network(lambda key: (), lambda params, z: 2.0 * z)
    summed = vector_quantized.summed(plain, width=3, num_levels=2)
    z = jnp.arange(12.0)
    expected = 2.0 * z.reshape(2, 2, 3).sum(axis=1).ravel()
    np.testing.assert_array_equal(summed.apply((), z), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": 1}, "num_rows must be 2 or more, got 1"),
        ({"width": 0}, "width must be positive"),
        ({"num_levels": 0}, "num_levels must be positive"),
    ],
)
def test_sizes_that_are_none_are_refused(changes, message):
    for build in (vector_quantized.rows, vector_quantized.posterior):
        with pytest.raises(ValueError, match=message):
            build(2, **SIZES | changes)
