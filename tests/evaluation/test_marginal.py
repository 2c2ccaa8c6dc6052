import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests import problems, testing
from vae_jax import vae
from vae_jax.estimators import importance
from vae_jax.evaluation import marginal, weights

X = np.array([0.4, -1.0])


def _problem():
    """A model whose q has weights that are bounded, but far from equal."""
    problem = problems.linear_gaussian()
    around = problems.widened(problem.exact, log_factor=0.4, shift=0.3)
    return problem._replace(recognition=around)


def _repeat(estimate, params, *, num=20_000, seed=1):
    keys = jax.random.split(jax.random.key(seed), num)
    return jax.jit(jax.vmap(estimate, in_axes=(0, None, None)))(
        keys, params, jnp.asarray(X)
    )


@functools.cache
def _repeated(chunk_size):
    """Estimates from 12 samples, in the double precision of the tests that share it."""
    problem = _problem()
    estimate = marginal.importance_sampling(
        problem.model, num_samples=12, chunk_size=chunk_size
    )
    return _repeat(estimate, problem.params, seed=chunk_size)


# Oracle


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunk_size", [pytest.param(1, marks=pytest.mark.slow), 4, 500]
)
def test_the_running_sums_equal_those_of_the_same_weights_at_once(x64, chunk_size):
    problem = _problem()
    params, x, key = problem.params, jnp.asarray(X), jax.random.key(3)
    estimate = marginal.importance_sampling(
        problem.model, num_samples=12, chunk_size=chunk_size
    )
    got = jax.jit(estimate)(jax.random.clone(key), params, x)
    chunk = min(chunk_size, 12)
    draw = jax.jit(importance.log_weights(problem.model, num_samples=chunk))
    h = problem.recognition.encode(params, x)
    keys = [jax.random.fold_in(key, i) for i in range(12 // chunk)]
    log_w = np.concatenate([np.asarray(draw(k, params, x, h)) for k in keys])
    w = np.exp(log_w)
    np.testing.assert_allclose(
        got.log_p, special.logsumexp(log_w) - np.log(12), rtol=1e-9
    )
    np.testing.assert_allclose(
        got.effective_sample_size, w.sum() ** 2 / (w**2).sum(), rtol=1e-9
    )
    # Delta method: std(w) / mean(w) / sqrt(k).
    np.testing.assert_allclose(
        got.standard_error, w.std(ddof=1) / w.mean() / np.sqrt(12), rtol=1e-6
    )


def test_weights_far_from_one_neither_overflow_nor_underflow():
    problem = _problem()
    generative = problem.generative

    @jax.jit
    def estimate(offset):
        moved = generative._replace(
            log_prior=lambda params, z: generative.log_prior(params, z) + offset
        )
        model = problem._replace(generative=moved).model
        sampler = marginal.importance_sampling(model, num_samples=20, chunk_size=5)
        return sampler(jax.random.key(3), problem.params, jnp.asarray(X))

    expected = estimate(0.0)
    for offset in (-5e4, 5e4):
        got = estimate(offset)
        np.testing.assert_allclose(got.log_p, expected.log_p + offset, rtol=1e-6)
        # An offset of 5e4 leaves the log weights 4e-3 nats of float32.
        np.testing.assert_allclose(got[1:], expected[1:], rtol=0.02)


@pytest.mark.slow
def test_the_posterior_as_proposal_gives_log_p_without_error(x64):
    problem = _problem()
    estimate = marginal.importance_sampling(
        vae.model(problem.generative, problem.exact), num_samples=40, chunk_size=10
    )
    got = _repeat(estimate, problem.params, num=20)
    log_p = problem.log_p(problem.params, jnp.asarray(X))
    np.testing.assert_allclose(got.log_p, np.full(20, log_p), rtol=1e-9)
    np.testing.assert_allclose(got.standard_error, np.zeros(20), atol=1e-7)
    np.testing.assert_allclose(got.effective_sample_size, np.full(20, 40.0), rtol=1e-9)


# Statistical


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [3, 12])
def test_p_hat_is_unbiased_and_its_log_lies_below_log_p(x64, chunk_size):
    problem = _problem()
    log_p_hat = _repeated(chunk_size).log_p
    log_p = problem.log_p(problem.params, jnp.asarray(X))
    testing.assert_mean_equals(jnp.exp(log_p_hat), jnp.exp(log_p))
    assert log_p_hat.mean() < log_p - 5 * log_p_hat.std() / np.sqrt(log_p_hat.size)


@pytest.mark.slow
def test_the_size_of_a_chunk_does_not_change_the_distribution_of_the_estimate(x64):
    for a, b in zip(_repeated(3)[:3], _repeated(12)[:3], strict=True):
        testing.assert_mean_equals(a - b, 0.0)
        testing.assert_mean_equals((a - a.mean()) ** 2 - (b - b.mean()) ** 2, 0.0)


@pytest.mark.slow
def test_the_standard_error_is_the_spread_over_repeats(x64):
    problem = _problem()
    estimate = marginal.importance_sampling(
        problem.model, num_samples=500, chunk_size=100
    )
    got = _repeat(estimate, problem.params, num=4_000)
    spread = got.log_p.std()
    # The spread of 4,000 repeats has a relative error of 1 / sqrt(8,000): five of them.
    np.testing.assert_allclose(got.standard_error.mean(), spread, rtol=0.056)


@pytest.mark.slow
def test_the_effective_sample_size_lies_between_one_and_k(x64):
    problem = problems.linear_gaussian()  # q far from the posterior
    for recognition in (problem.recognition, problem.exact):
        for num_samples in (1, 30):
            estimate = marginal.importance_sampling(
                vae.model(problem.generative, recognition), num_samples=num_samples
            )
            got = _repeat(estimate, problem.params, num=200)
            assert (got.effective_sample_size >= 1.0 - 1e-9).all()
            assert (got.effective_sample_size <= num_samples * (1.0 + 1e-9)).all()
            if num_samples == 1:  # which says nothing of its spread
                assert np.isinf(got.standard_error).all()
            else:
                assert (got.standard_error >= 0.0).all()


# Transformation and edge


@pytest.mark.slow
def test_every_chunk_draws_fresh_noise(x64):
    problem = _problem()
    key, arguments = jax.random.key(3), (problem.params, jnp.asarray(X))
    sizes = []
    for num_samples in (2, 40):
        estimate = marginal.importance_sampling(
            problem.model, num_samples=num_samples, chunk_size=1
        )
        sizes.append(jax.jit(estimate)(jax.random.clone(key), *arguments))
    # Copies of one draw would have equal weights: no error at all.
    assert all(estimated.standard_error > 0.01 for estimated in sizes)


@pytest.mark.slow
def test_samples_of_weight_zero_count_as_zero(x64):
    problem = _problem()
    generative, params = problem.generative, problem.params
    mean = problem.recognition.encode(params, jnp.asarray(X))[0]

    def log_prior(params, z):
        return jnp.where(z[0] > mean, generative.log_prior(params, z), -jnp.inf)

    cut = problem._replace(generative=generative._replace(log_prior=log_prior))
    estimate = marginal.importance_sampling(cut.model, num_samples=8, chunk_size=1)
    p_hat = jnp.exp(_repeat(estimate, params).log_p)  # first chunks are often zero
    assert jnp.isfinite(p_hat).all()
    mean_p, cov_p = problem.posterior(params, jnp.asarray(X))
    above = special.ndtr(float((mean_p[0] - mean) / jnp.sqrt(cov_p[0, 0])))
    expected = above * jnp.exp(problem.log_p(params, jnp.asarray(X)))
    testing.assert_mean_equals(p_hat, expected)


def test_only_weights_of_zero_give_minus_infinity():
    problem = _problem()
    impossible = problem.generative._replace(
        log_prior=lambda params, z: jnp.full((), -jnp.inf)
    )
    model = problem._replace(generative=impossible).model
    estimate = marginal.importance_sampling(model, num_samples=6, chunk_size=2)
    got = jax.jit(estimate)(jax.random.key(0), problem.params, jnp.asarray(X))
    assert got.log_p == -jnp.inf


@pytest.mark.slow
def test_jit_and_vmap_agree_with_a_loop():
    problem = _problem()
    estimate = marginal.importance_sampling(problem.model, num_samples=8, chunk_size=4)
    keys = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (3, 2))
    batched = jax.jit(jax.vmap(estimate, in_axes=(0, None, 0)))
    got = batched(jax.random.clone(keys), problem.params, xs)
    eager = estimate(jax.random.clone(keys)[0], problem.params, xs[0])
    np.testing.assert_allclose(got.log_p[0], eager.log_p, rtol=1e-5)
    single = jax.jit(estimate)
    for i in range(3):
        expected = single(keys[i], problem.params, xs[i])
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4)


@pytest.mark.parametrize(
    ("num_samples", "chunk_size", "message"),
    [
        (0, 5, "num_samples must be positive, got 0"),
        (5, 0, "chunk_size must be positive, got 0"),
        (10, 4, "num_samples=10 .* chunk_size=4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(num_samples, chunk_size, message):
    problem = _problem()
    with pytest.raises(ValueError, match=message):
        marginal.importance_sampling(
            problem.model, num_samples=num_samples, chunk_size=chunk_size
        )


# What the weights say of themselves


def _weighed(log_factor, **keywords):
    problem = problems.linear_gaussian()
    proposal = problems.widened(problem.exact, log_factor=log_factor, shift=0.0)
    estimate = marginal.importance_sampling(
        vae.model(problem.generative, proposal), num_samples=2_000, **keywords
    )
    return _repeat(estimate, problem.params, num=100)


@pytest.mark.slow
def test_tails_thinner_than_the_posterior_give_a_k_hat_that_is_doubted(x64):
    # A normal q of standard deviation s under a posterior of 1: w = exp(c eps^2) up to
    # a factor, whose tail has the shape 1 - s^2.
    got = _weighed(np.log(0.3))
    assert (np.asarray(got.pareto_k) > 0.7).mean() > 0.8
    assert any("pareto_k is above 0.7" in line for line in weights.doubts(got))
    # And with reason: the errors are larger than the weights seen can tell.
    problem = problems.linear_gaussian()
    log_p = problem.log_p(problem.params, jnp.asarray(X))
    assert np.sqrt(((got.log_p - log_p) ** 2).mean()) > 1.5 * got.standard_error.mean()


@pytest.mark.slow
def test_a_proposal_that_covers_the_posterior_is_not_doubted(x64):
    got = _weighed(0.4, chunk_size=100)
    assert (got.pareto_k < 0.5).all()
    assert weights.doubts(got) == []


# The prior and the uniform density


@pytest.mark.parametrize("chunk_size", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_p_hat_of_draws_of_the_prior_is_unbiased(x64, chunk_size):
    problem = _problem()
    estimate = marginal.prior_sampling(
        problem.generative, num_samples=12, chunk_size=chunk_size
    )
    log_p = problem.log_p(problem.params, jnp.asarray(X))
    got = _repeat(estimate, problem.params)
    testing.assert_mean_equals(jnp.exp(got.log_p), jnp.exp(log_p))


@pytest.mark.slow
def test_p_hat_of_uniform_draws_is_unbiased_for_the_integral_over_the_box(x64):
    problem = _problem()
    params, x = problem.params, jnp.asarray(X)
    (mean,), ((variance,),) = problem.posterior(params, x)
    for limit in (6.0, 1.0):
        estimate = marginal.uniform_sampling(
            problem.generative, limit=limit, num_samples=12, chunk_size=4
        )
        ends = (np.array([-limit, limit]) - mean) / np.sqrt(variance)
        inside = np.diff(special.ndtr(np.asarray(ends)))[0]
        wanted = inside * jnp.exp(problem.log_p(params, x))
        testing.assert_mean_equals(jnp.exp(_repeat(estimate, params).log_p), wanted)
    assert inside < 0.9


def test_p_hat_of_uniform_bits_is_unbiased(x64):
    problem = problems.binary_model()
    estimate = marginal.uniform_sampling(
        problem.generative, limit=None, num_samples=12, chunk_size=4
    )
    x, keys = (
        jnp.asarray([1.0, 0, 1, 1, 0]),
        jax.random.split(jax.random.key(2), 20_000),
    )
    got = jax.jit(jax.vmap(estimate, (0, None, None)))(keys, problem.params, x)
    wanted = jnp.exp(problem.log_p(problem.params, x))
    testing.assert_mean_equals(jnp.exp(got.log_p), wanted)


@pytest.mark.slow
def test_draws_that_know_nothing_of_x_find_little_of_a_narrow_posterior(x64):
    # Eight latents seen through a little noise.
    problem = problems.linear_gaussian(num_latents=8, num_features=12, std=0.1)
    params, x = problem.params, jnp.linspace(-1.0, 1.0, 12)
    log_p = problem.log_p(params, x)
    missing = []
    for build in (
        marginal.prior_sampling,
        functools.partial(marginal.uniform_sampling, limit=4.0),
    ):
        estimate = jax.jit(build(problem.generative, num_samples=1_000))
        got = estimate(jax.random.key(0), params, x)
        missing.append(float(log_p - got.log_p))
        assert weights.doubts(got)
    assert missing[1] > missing[0] > 3.0


# An encoder of another model


@pytest.mark.parametrize("num_samples", [1, 8])
def test_an_encoder_of_other_latents_is_refused_in_one_line(num_samples):
    generative = problems.linear_gaussian(num_latents=2).generative
    other = problems.linear_gaussian(num_latents=3)
    estimate = marginal.importance_sampling(
        vae.model(generative, other.recognition), num_samples=num_samples
    )
    params, xs = other.params, jnp.zeros((2, 2))
    with pytest.raises(ValueError, match=r"^.* \(3,\),.* \(2,\)"):
        jax.vmap(estimate, (None, None, 0))(jax.random.key(0), params, xs)


@pytest.mark.parametrize(
    "build",
    [marginal.prior_sampling, functools.partial(marginal.uniform_sampling, limit=2.0)],
)
def test_no_samples_of_the_prior_or_a_box_are_refused(build):
    generative = problems.linear_gaussian().generative
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        build(generative, num_samples=0)
    with pytest.raises(ValueError, match=r"num_samples=10 .* chunk_size=4"):
        build(generative, num_samples=10, chunk_size=4)


@pytest.mark.parametrize("limit", [0.0, float("inf"), float("nan")])
def test_a_box_without_a_volume_is_refused(limit):
    generative = problems.linear_gaussian().generative
    with pytest.raises(ValueError, match=f"limit .*{limit}"):
        marginal.uniform_sampling(generative, limit=limit, num_samples=5)
