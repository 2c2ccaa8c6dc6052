"""Completions of a linear-Gaussian model, whose conditional is known in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import problems, testing
from vae_jax import vae
from vae_jax.evaluation import completion, weights
from vae_jax.latent_models import ppca
from vae_jax.types import Params

NAN = float("nan")
X = (0.9, NAN, -0.7, NAN, 0.2)
HIDDEN = np.isnan(X)
NUM_CHAINS = 20_000
STEPS = {"num_draws": 1, "num_warmup": 5, "num_burn_in": 40}
METHODS = ("pseudo_gibbs", "metropolis_within_gibbs", "importance")


def _model():
    """pPCA of five entries and two latents: the joint, the posterior, parameters."""
    generative = ppca.generative(2, (5,))
    w = np.random.default_rng(0).normal(size=(5, 2))
    decoder = {
        "output": {"kernel": jnp.asarray(w.T), "bias": jnp.linspace(0.0, 0.4, 5)}
    }
    theta = {"decoder": decoder, "prior": (), "likelihood": {"log_std": jnp.log(0.7)}}
    theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), theta)
    return generative, ppca.recognition(2), Params(theta, ())


def _wrong(recognition):
    """q beside the posterior: another mean, wider in one latent and less in another."""
    shift = jnp.array([0.4, -0.3, 0.3, 0.0, -0.3])  # of two means and a packed factor

    def encode(params, x):
        return recognition.encode(params, x) + shift.astype(x.dtype)

    return recognition._replace(encode=encode)


def _prior(recognition):
    """N(0, I) in the place of q(z | x_obs): few entries are seen, and it covers all."""
    return recognition._replace(encode=lambda params, x: jnp.zeros(5, x.dtype))


def _conditional() -> tuple[np.ndarray, Any, float]:
    """Mean [2] and covariance [2, 2] of the hidden entries, and log p of the others."""
    layer = _model()[2].generative["decoder"]["output"]
    w, mu = np.asarray(layer["kernel"], np.float64).T, np.asarray(layer["bias"])
    covariance, x = w @ w.T + 0.49 * np.eye(5), np.array(X)
    seen = ~HIDDEN
    gain = covariance[np.ix_(HIDDEN, seen)] @ np.linalg.inv(
        covariance[np.ix_(seen, seen)]
    )
    mean = mu[HIDDEN] + gain @ (x[seen] - mu[seen])
    spread = (
        covariance[np.ix_(HIDDEN, HIDDEN)] - gain @ covariance[np.ix_(seen, HIDDEN)]
    )
    seen_covariance: Any = covariance[np.ix_(seen, seen)]
    marginal = stats.multivariate_normal(mu[seen], seen_covariance)
    log_p = marginal.logpdf(x[seen])
    return mean, spread, log_p


def _chains(method, recognition, x, **steps):
    """One draw of each of many independent chains."""
    generative, _, params = _model()
    model = vae.masked(vae.model(generative, recognition))
    complete = getattr(completion, method)(model, **steps)
    keys = jax.random.split(jax.random.key(3), NUM_CHAINS)
    return jax.jit(jax.vmap(complete, in_axes=(0, None, None)))(keys, params, x)


def _largest_z(draws, mean, spread):
    """How far the first two moments of draws [N, 2] are off, in standard errors."""
    centered = np.asarray(draws, np.float64) - mean
    products = centered[:, :, None] * centered[:, None, :]
    return max(
        testing.largest_z(centered, 0.0 * mean), testing.largest_z(products, spread)
    )


# Against the conditional


@pytest.mark.slow
@pytest.mark.parametrize("right", [False, True], ids=["wrong q", "posterior"])
def test_metropolis_within_gibbs_draws_of_the_conditional_whatever_q_is(right):
    _, exact, _ = _model()
    completed = _chains(
        "metropolis_within_gibbs",
        exact if right else _wrong(exact),
        jnp.array(X),
        **STEPS,
    )
    mean, spread, _ = _conditional()
    assert _largest_z(completed.x[:, 0, HIDDEN], mean, spread) < 5.0
    observed = np.broadcast_to(np.array(X, np.float32)[~HIDDEN], (NUM_CHAINS, 3))
    np.testing.assert_array_equal(completed.x[:, 0, ~HIDDEN], observed)
    acceptance = float(completed.acceptance.mean())
    assert acceptance > 0.999 if right else 0.3 < acceptance < 0.95
    # E[x_mis | z] of the draws has the conditional's mean too.
    testing.assert_mean_equals(completed.mean[:, HIDDEN], mean)


@pytest.mark.slow
def test_pseudo_gibbs_draws_of_the_conditional_where_q_is_the_posterior_alone():
    _, exact, _ = _model()
    mean, spread, _ = _conditional()
    steps = {"num_draws": 1, "num_warmup": 30}
    right = _chains("pseudo_gibbs", exact, jnp.array(X), **steps)
    assert _largest_z(right.x[:, 0, HIDDEN], mean, spread) < 5.0
    wrong = _chains("pseudo_gibbs", _wrong(exact), jnp.array(X), **steps)
    assert _largest_z(wrong.x[:, 0, HIDDEN], mean, spread) > 20.0
    np.testing.assert_array_equal(wrong.acceptance, 1.0)


@pytest.mark.slow
def test_draws_along_one_chain_have_the_conditional_as_those_of_many_have():
    """Means over 2,000 chains of the averages of 20 thinned draws each."""
    generative, exact, params = _model()
    complete = completion.metropolis_within_gibbs(
        vae.masked(vae.model(generative, _wrong(exact))),
        num_draws=20,
        num_warmup=5,
        num_burn_in=40,
        thin=2,
    )
    keys = jax.random.split(jax.random.key(4), 2000)
    completed = jax.jit(jax.vmap(complete, in_axes=(0, None, None)))(
        keys, params, jnp.array(X)
    )
    mean, spread, _ = _conditional()
    assert completed.x.shape == (2000, 20, 5)
    testing.assert_mean_equals(completed.x[:, :, HIDDEN].mean(1), mean)
    centered = np.asarray(completed.x[:, :, HIDDEN], np.float64) - mean
    products = np.einsum("nsi,nsj->nij", centered, centered) / 20
    testing.assert_mean_equals(products, spread)


@pytest.mark.slow
def test_importance_sampling_has_the_conditional_and_the_evidence(x64):
    generative, exact, params = _model()
    model = vae.masked(vae.model(generative, _prior(exact)))
    complete = completion.importance(
        model, num_samples=200_000, num_draws=NUM_CHAINS, chunk_size=4000
    )
    completed = jax.jit(complete)(jax.random.key(0), params, jnp.array(X))
    evidence = completed.evidence
    mean, spread, log_p = _conditional()
    size = float(evidence.effective_sample_size)
    assert size > 50_000.0
    assert _largest_z(completed.x[:, HIDDEN], mean, spread) < 5.0
    error = np.sqrt(np.diag(spread) / size)
    assert (np.abs(np.asarray(completed.mean)[HIDDEN] - mean) < 5.0 * error).all()
    assert abs(evidence.log_p - log_p) < 5.0 * evidence.standard_error
    np.testing.assert_array_equal(
        np.asarray(completed.mean)[~HIDDEN], np.array(X)[~HIDDEN]
    )


@pytest.mark.slow
def test_weights_of_the_mean_sum_to_one_while_the_largest_grows_chunk_by_chunk():
    generative, exact, params = _model()
    constant = generative._replace(mean_observation=lambda params, z: jnp.ones(5))
    model = vae.masked(vae.model(constant, _prior(exact)))
    complete = completion.importance(model, num_samples=50, num_draws=1, chunk_size=1)
    xs = 3.0 * jnp.array(X)[None] * jnp.linspace(0.1, 2.0, 20)[:, None]
    keys = jax.random.split(jax.random.key(2), 20)
    completed = jax.jit(jax.vmap(complete, (0, None, 0)))(keys, params, xs)
    np.testing.assert_allclose(completed.mean[:, HIDDEN], 1.0, rtol=1e-5)


@pytest.mark.slow
def test_the_score_of_exact_draws_is_the_conditional_density_of_the_truth(x64):
    generative, exact, params = _model()
    model = vae.masked(vae.model(generative, _prior(exact)))
    truth = jnp.array([0.9, 0.5, -0.7, -1.0, 0.2])
    complete = completion.importance(
        model, num_samples=100_000, num_draws=NUM_CHAINS, chunk_size=4000
    )
    completed = jax.jit(complete)(jax.random.key(1), params, jnp.array(X))
    score = completion.log_likelihood_of_truth(generative)
    mean, spread, _ = _conditional()
    expected = stats.multivariate_normal(mean, spread).logpdf(truth[HIDDEN])
    got = jax.jit(score)(params, jnp.array(X), truth, completed.z)
    np.testing.assert_allclose(got, expected, atol=0.05)
    assert float(score(params, truth, truth, completed.z[:2])) == 0.0


# Where nothing is observed, and where everything is


def _any(method, model, num_draws):
    if method == "importance":
        return completion.importance(model, num_samples=num_draws, num_draws=num_draws)
    return getattr(completion, method)(model, num_draws=num_draws, num_warmup=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_is_observed_completions_are_draws_of_the_model(method):
    generative, exact, params = _model()
    model = vae.masked(vae.model(generative, _wrong(exact)))
    x = jnp.full(5, NAN)
    completed = jax.jit(_any(method, model, NUM_CHAINS))(jax.random.key(0), params, x)
    layer = params.generative["decoder"]["output"]
    covariance = layer["kernel"].T @ layer["kernel"] + 0.49 * np.eye(5)
    draws = np.asarray(completed.x)
    if method == "importance":  # drawn again with replacement: twice the variance
        draws = draws[::2]
    assert _largest_z(draws, np.asarray(layer["bias"]), covariance) < 5.0
    np.testing.assert_allclose(completed.acceptance, 1.0)


@pytest.mark.slow
def test_where_nothing_is_observed_the_evidence_is_that_of_nothing():
    generative, exact, params = _model()
    model = vae.masked(vae.model(generative, _wrong(exact)))
    complete = completion.importance(model, num_samples=50, num_draws=2)
    evidence = jax.jit(complete)(jax.random.key(0), params, jnp.full(5, NAN)).evidence
    np.testing.assert_allclose(evidence.log_p, 0.0, atol=1e-6)
    np.testing.assert_allclose(evidence.effective_sample_size, 50.0, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_an_observation_without_holes_is_its_own_completion(method):
    generative, exact, params = _model()
    x = jnp.arange(5.0)
    complete = _any(method, vae.masked(vae.model(generative, exact)), 3)
    completed = jax.jit(complete)(jax.random.key(0), params, x)
    np.testing.assert_array_equal(completed.x, np.tile(np.arange(5.0), (3, 1)))
    np.testing.assert_array_equal(completed.mean, x)


# Transformation, edge


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_vmap_agrees_with_a_loop_on_images_in_double_precision(x64, method):
    model = vae.masked(vae.model(*problems.bernoulli_vae()))
    key_init, key = jax.random.split(jax.random.key(0))
    params = model.init(key_init)
    xs = jnp.array([[[1.0, NAN, 0.0], [NAN, NAN, 1.0]], [[NAN, 1.0, 1.0], [0.0] * 3]])
    complete = _any(method, model, 3)
    keys = jax.random.split(key, 2)
    batched = jax.jit(jax.vmap(complete, in_axes=(0, None, 0)))
    got = batched(jax.random.clone(keys), params, xs)
    assert got.x.shape == (2, 3, 2, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float64)}
    compiled = jax.jit(complete)
    for i in range(2):
        one = compiled(keys[i], params, xs[i])
        for a, b in zip(*map(jax.tree.leaves, (got, one)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-12)
    assert set(np.unique(got.x)) <= {0.0, 1.0}


@pytest.mark.slow
def test_a_chain_in_an_impossible_place_moves_and_no_nan_is_accepted():
    generative, exact, params = _model()
    broken = exact._replace(log_prob=lambda params, h, z: jnp.asarray(jnp.nan, z.dtype))
    complete = completion.metropolis_within_gibbs(
        vae.masked(vae.model(generative, broken)), num_draws=4, num_warmup=1
    )
    completed = jax.jit(complete)(jax.random.key(0), params, jnp.array(X))
    assert float(completed.acceptance) == 0.0
    assert np.isfinite(completed.x).all()


@pytest.mark.parametrize(
    ("method", "numbers", "message"),
    [
        ("pseudo_gibbs", {"num_draws": 0, "num_warmup": 1}, "num_draws .* got 0"),
        ("pseudo_gibbs", {"num_draws": 1, "num_warmup": -1}, "num_warmup .* got -1"),
        (
            "metropolis_within_gibbs",
            {"num_draws": 1, "num_warmup": 1, "thin": 0},
            "thin must be positive, got 0",
        ),
        (
            "metropolis_within_gibbs",
            {"num_draws": 1, "num_warmup": 1, "num_burn_in": -2},
            "num_burn_in must not be negative, got -2",
        ),
        ("importance", {"num_samples": 0, "num_draws": 1}, "num_samples .* got 0"),
        (
            "importance",
            {"num_samples": 7, "num_draws": 1, "chunk_size": 3},
            "num_samples=7 is not a multiple of chunk_size=3",
        ),
    ],
)
def test_numbers_that_make_no_chain_are_refused(method, numbers, message):
    model = vae.masked(vae.model(*problems.bernoulli_vae()))
    with pytest.raises(ValueError, match=message):
        getattr(completion, method)(model, **numbers)


@pytest.mark.slow
def test_an_encoder_of_other_latents_is_refused():
    generative, _ = problems.bernoulli_vae(num_latents=3)
    _, recognition = problems.bernoulli_vae(num_latents=2)
    params = Params(
        generative.init(jax.random.key(0)), recognition.init(jax.random.key(1))
    )
    for method in METHODS:
        complete = _any(method, vae.masked(vae.model(generative, recognition)), 1)
        with pytest.raises(ValueError, match=r"z of shape \(2,\)"):
            complete(jax.random.key(2), params, jnp.zeros((2, 3)))


def test_the_log_likelihood_of_what_is_missing_is_paired_and_has_both_errors():
    whole = weights.LogEvidence(
        *(jnp.array(v) for v in ([-3.0, -5.0], [0.3, 0.0], [9.0, 4.0], [0.1, np.inf]))
    )
    observed = weights.LogEvidence(
        *(jnp.array(v) for v in ([-1.0, -1.5], [0.4, 1.2], [2.0, 8.0], [0.6, -np.inf]))
    )
    got = completion.log_likelihood(whole, observed)
    np.testing.assert_allclose(got[:3], [-4.0, -1.25, -2.75])
    # The mean's variance: that of each difference, over N squared.
    variance = (0.3**2 + 0.4**2 + 1.2**2) / 4
    np.testing.assert_allclose(got.sampling_error**2, variance, rtol=1e-6)
    np.testing.assert_allclose(got.standard_error, 1.5 / 2)  # of -2 and -3.5
    assert got.smallest_effective_sample_size == 2.0
    assert got.largest_pareto_k == pytest.approx(0.6)
    assert [doubt.partition(":")[0] for doubt in got.doubts] == [
        *("log p(x)", "log p(x_obs)")
    ]
    single = jax.tree.map(lambda leaf: leaf[1:], whole)
    alone = completion.log_likelihood(single, single)
    assert alone.largest_pareto_k is None
    assert np.isnan(alone.standard_error)


@pytest.mark.slow
def test_the_acceptance_of_a_chain_is_the_mean_over_all_its_draws():
    _, exact, _ = _model()
    method, steps = "metropolis_within_gibbs", STEPS | {"num_draws": 200}
    model = vae.masked(vae.model(_model()[0], _wrong(exact)))
    complete = getattr(completion, method)(model, **steps)
    keys, params = jax.random.split(jax.random.key(3), 40), _model()[2]
    run = jax.jit(jax.vmap(complete, in_axes=(0, None, None)))
    assert run(keys, params, jnp.array(X)).acceptance.std() < 0.1
