import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax import diagnostics
from scipy import special

from vae_jax.evaluation import weights

OF_ALL = jax.jit(weights.of_all)
BATCHED = jax.jit(jax.vmap(weights.of_all))
REFERENCE = jax.jit(lambda log_w: diagnostics.psis_weights(log_w)[1])


def _log_pareto(shape, size, seed=0):
    """Logs of one plus draws of a generalized Pareto distribution, by its quantiles."""
    u = np.random.default_rng(seed).random(size)
    return np.log1p(np.expm1(-shape * np.log(u)) / shape)


def _pareto_k(log_w, dtype=float):
    return float(OF_ALL(jnp.asarray(log_w, dtype)).pareto_k)


# Oracle


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [25, 100])
@pytest.mark.parametrize("double", [False, True])
def test_k_hat_is_that_of_another_implementation(num_samples, double):
    with jax.enable_x64(double), jax.numpy_dtype_promotion("standard"):
        dtype = jnp.float64 if double else jnp.float32
        for shape in (-0.5, 0.01, 0.5, 0.9, 2.0):
            log_w = jnp.asarray(_log_pareto(shape, num_samples) - 7.0, dtype)
            results = OF_ALL(log_w).pareto_k
            assert results.dtype == dtype
            wanted = float(REFERENCE(log_w))
            rtol, atol = (1e-9, 1e-9) if double else (1e-4, 1e-4)
            np.testing.assert_allclose(results, wanted, rtol=rtol, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [-0.5, 0.2, 0.9, 1.5])
def test_k_hat_finds_the_shape_of_pareto_draws(x64, shape):
    log_w = jnp.asarray(_log_pareto(shape, (40, 20_000)))
    results = np.asarray(BATCHED(log_w).pareto_k)
    # The prior moves k-hat by 10 / (M + 10) of its distance from 1/2, M = 424.
    shrunk = (424.0 * shape + 5.0) / 434.0
    assert abs(results.mean() - shrunk) < 0.02 + 5.0 * results.std(ddof=1) / np.sqrt(40)


@pytest.mark.parametrize(
    ("num_samples", "size"), [(1, 0), (24, 4), (25, 5), (225, 45), (400, 60), (401, 60)]
)
def test_the_tail_is_a_fifth_of_few_weights_and_three_square_roots_of_many(
    num_samples, size
):
    assert weights.tail_size(num_samples) == size
    assert weights.start(num_samples, jnp.float32).tail.shape == (size + 1,)


def test_log_p_its_error_and_the_sample_size_are_those_of_the_moments(x64):
    log_w = _log_pareto(0.4, 100)
    got, w = OF_ALL(jnp.asarray(log_w)), np.exp(log_w)
    np.testing.assert_allclose(got.log_p, special.logsumexp(log_w) - np.log(100))
    size = w.sum() ** 2 / (w**2).sum()
    np.testing.assert_allclose(got.effective_sample_size, size, rtol=1e-9)
    error = w.std(ddof=1) / w.mean() / np.sqrt(100)
    np.testing.assert_allclose(got.standard_error, error, rtol=1e-9)


@pytest.mark.parametrize("num_samples", [2, 5])
def test_the_error_of_few_weights_is_the_spread_of_their_log_mean(x64, num_samples):
    log_w = 0.05 * np.random.default_rng(0).normal(size=(20_000, num_samples))
    got = jax.jit(jax.vmap(weights.of_all))(jnp.asarray(log_w))
    # Of 20,000 a variance has a relative error of 0.01, of two weights each 0.014.
    mean_square = np.mean(np.square(got.standard_error))
    np.testing.assert_allclose(mean_square, np.var(got.log_p), rtol=0.06)


def test_one_weight_says_nothing_of_its_error():
    got = OF_ALL(jnp.array([-3.0]))
    assert (got.log_p, got.standard_error) == (-3.0, np.inf)


# Transformation


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_weights_in_chunks_are_the_weights_at_once(x64, chunk_size):
    log_w = jnp.asarray(_log_pareto(0.8, 100) - 1e3)

    @jax.jit
    def streamed(log_w):
        def step(state, chunk):
            return weights.add(state, chunk), None

        first = weights.start(100, log_w.dtype)
        chunks = log_w.reshape(-1, chunk_size)
        return weights.summary(jax.lax.scan(step, first, chunks)[0], 100)

    got, expected = streamed(log_w), OF_ALL(log_w)
    np.testing.assert_array_equal(got.pareto_k, expected.pareto_k)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_vmap_agrees_with_a_loop(x64):
    log_w = jnp.asarray(_log_pareto(0.8, (3, 100)))
    got = BATCHED(log_w)
    for i in range(3):
        for a, b in zip(got, OF_ALL(log_w[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9)


def test_log_p_has_the_gradient_of_its_weights(x64):
    log_w = jnp.asarray(_log_pareto(0.8, 20))
    slope = jax.jit(jax.grad(lambda log_w: weights.of_all(log_w).log_p))(log_w)
    np.testing.assert_allclose(slope, special.softmax(log_w), rtol=1e-9)


# Edge


def test_k_hat_does_not_depend_on_the_scale_or_the_order_of_the_weights(x64):
    log_w = _log_pareto(0.9, 100)
    expected = _pareto_k(log_w)
    np.testing.assert_allclose(_pareto_k(log_w - 5e4), expected, rtol=1e-6)
    np.testing.assert_array_equal(_pareto_k(log_w[::-1]), expected)


def test_weights_over_a_range_that_underflows_have_the_k_hat_of_their_logs():
    log_w = 300.0 * np.random.default_rng(0).normal(size=100)
    results = _pareto_k(log_w)
    with jax.enable_x64(True):
        np.testing.assert_allclose(results, _pareto_k(log_w), rtol=1e-5)
    assert results > 10.0


@pytest.mark.parametrize("double", [False, True])
def test_equal_weights_have_no_tail(double):
    noise = np.random.default_rng(0).normal(size=100)
    with jax.enable_x64(double):
        rounding = 4.0 * float(jnp.finfo(float).eps) * 90.0 * noise
        for log_w in (np.full(100, -90.0), rounding - 90.0):
            got = OF_ALL(jnp.asarray(log_w, float))
            assert got.pareto_k == -jnp.inf
            assert weights.doubts(got) == []
        # A tenth of a nat is more than rounding.
        assert np.isfinite(_pareto_k(0.1 * noise - 90.0))


def test_many_weights_that_share_the_maximum_are_a_bounded_tail(x64):
    assert _pareto_k(np.repeat([0.0, 3.0], 50)) == -np.inf
    assert _pareto_k(np.repeat([0.0, 3.0], [90, 10])) < 0.0


def test_weights_of_zero_are_no_exceedances(x64):
    # The tail of 100 is 20 weights above u: with 20 alive u is 0, with 10 alive half of
    # the tail is no more than that.
    log_w = _log_pareto(0.9, 100)
    twenty, ten = (np.where(np.arange(100) < n, log_w, -np.inf) for n in (20, 10))
    with jax.numpy_dtype_promotion("standard"):
        wanted = float(REFERENCE(jnp.asarray(twenty)))
    np.testing.assert_allclose(_pareto_k(twenty), wanted, rtol=1e-9)
    assert np.isfinite(_pareto_k(ten))


@pytest.mark.parametrize(
    "log_w",
    [
        _log_pareto(0.9, 24),
        np.where(np.arange(100) < 4, _log_pareto(0.9, 100), -np.inf),
        np.where(np.arange(100) < 4, 3.0 + np.arange(100), 0.0),
        np.full(100, -np.inf),
        np.full(20, -np.inf),
        np.where(np.arange(100) < 3, np.inf, 0.0),
    ],
    ids=["few", "few alive", "few above the rest", "none", "none of few", "infinite"],
)
def test_k_hat_is_infinite_where_fewer_than_five_weights_could_tell(log_w):
    assert _pareto_k(log_w) == np.inf


@pytest.mark.parametrize("num_samples", [20, 100])
def test_k_hat_of_a_weight_that_is_no_number_is_none_either(num_samples):
    assert np.isnan(_pareto_k(np.where(np.arange(num_samples) < 3, np.nan, 0.0)))


@pytest.mark.parametrize(
    "log_w",
    [np.zeros(20), np.arange(100) % 7.0, np.full(20, -np.inf), np.full(100, -np.inf)],
    ids=["few", "many", "few of zero", "many of zero"],
)
def test_sound_results_hold_nothing_that_the_search_for_nan_stops(log_w):
    with jax.debug_nans(True):
        got = OF_ALL(jnp.asarray(log_w))
    assert not np.isnan(jax.tree.leaves(got)).any()
    if np.isneginf(log_w).all():
        assert got.log_p == -np.inf
        assert got.effective_sample_size == 0.0
        assert got.standard_error == np.inf


def test_no_weight_at_all_is_refused():
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        weights.of_all(jnp.zeros((0,)))


# Doubts


def _evidence(**fields):
    sound = weights.LogEvidence(
        log_p=jnp.full((2, 3), -5.0),
        standard_error=jnp.full((2, 3), 0.01),
        effective_sample_size=jnp.full((2, 3), 900.0),
        pareto_k=jnp.array([[0.1, -jnp.inf, 0.69], [0.5, jnp.inf, -2.0]]),
    )
    return sound._replace(**fields)


def test_sound_weights_leave_no_doubt():
    assert weights.doubts(_evidence()) == []


def test_a_doubt_names_the_share_of_examples_and_the_worst():
    heavy = jnp.array([[0.1, 0.71, 0.2], [1.25, 0.6, jnp.inf]])
    (line,) = weights.doubts(_evidence(pareto_k=heavy))
    assert "pareto_k is above 0.7 in 2 of 6 examples, at most 1.25" in line
    small = jnp.array([[9.9, 10.0, 50.0], [3.21, 90.0, 1e3]])
    (line,) = weights.doubts(_evidence(effective_sample_size=small))
    assert "below 10 in 2 of 6 examples, at least 3.2" in line
    lost = jnp.array([[-jnp.inf, jnp.nan, 0.0], [-1.0, -2.0, -jnp.inf]])
    (line,) = weights.doubts(_evidence(log_p=lost))
    assert "not finite in 3 of 6 examples" in line
    assert all("\n" not in line for line in (line,))


def test_one_weight_that_dominates_and_none_that_lives_are_doubted():
    one = OF_ALL(jnp.where(jnp.arange(100) < 1, 0.0, -jnp.inf))
    (line,) = weights.doubts(one)
    assert "1 of 1 examples, at least 1.0" in line
    (line,) = weights.doubts(OF_ALL(jnp.full((100,), -jnp.inf)))
    assert "not finite in 1 of 1" in line


def test_draws_with_a_finite_variance_are_seldom_doubted(x64):
    for shape, low, high in ((0.2, 0.0, 0.05), (1.5, 0.95, 1.0)):
        results = BATCHED(jnp.asarray(_log_pareto(shape, (400, 1000), seed=1)))
        share = np.mean(np.asarray(results.pareto_k) > weights.LARGEST_PARETO_K)
        assert low <= share <= high
