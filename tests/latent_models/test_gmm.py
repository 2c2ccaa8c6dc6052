import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from tests import testing
from tests.mixtures import NORMAL, covariance_of, expected_log_joints, mixture, normals
from vae_jax import bounds, vae
from vae_jax.estimators import importance, score_function
from vae_jax.evaluation import marginal
from vae_jax.latent_models import gmm, gmm_scales
from vae_jax.types import Params, log_joint

K, D = 3, 2
X = np.array([[0.3, -1.0], [2.0, 1.5], [-4.0, 0.1]])
COVARIANCES = gmm_scales.COVARIANCES
NUM_DRAWS = 20_000


def one_hot(k, num_components=K):
    return jnp.eye(num_components)[k][None]


# Oracle


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_densities_and_posterior_are_those_of_scipy(x64, covariance):
    params = mixture(covariance)
    generative, recognition = gmm.generative(K, D), gmm.recognition(K)
    expected = expected_log_joints(params, X)

    @jax.jit
    @jax.vmap
    def densities(x):
        h = recognition.encode(params, x)
        zs = [one_hot(k) for k in range(K)]
        joint = [log_joint(generative, params, x, z) for z in zs]
        posterior = [recognition.log_prob(params, h, z) for z in zs]
        evidence = gmm.log_evidence(params, x)
        return jnp.stack(joint), jnp.stack(posterior), h, evidence

    joint, posterior, h, evidence = densities(jnp.asarray(X))
    log_p = np.asarray(special.logsumexp(expected, axis=1))
    np.testing.assert_allclose(joint, expected, rtol=1e-9)
    np.testing.assert_allclose(evidence, log_p, rtol=1e-9)
    for got in (posterior, h):
        wanted = expected - log_p[:, None]
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-14)
    chosen = jax.vmap(gmm.cluster, in_axes=(None, 0))(params, jnp.asarray(X))
    np.testing.assert_array_equal(chosen, expected.argmax(1))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_terms_are_those_of_the_chain_rule(x64, covariance):
    params = mixture(covariance, num_features=3)
    x, z = jnp.array([0.5, -1.0, 2.0]), one_hot(1)
    terms = gmm.generative(K, 3).log_likelihood_terms(params, x, z)
    normal = normals(params)[1][1]
    for d in range(1, 4):
        part = normal.mean[:d], covariance_of(normal)[:d, :d]
        leading = NORMAL.logpdf(np.asarray(x)[:d], *part)
        np.testing.assert_allclose(terms[:d].sum(), leading, rtol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.slow
def test_missing_entries_are_integrated_out(x64, covariance):
    params = mixture(covariance, num_features=3)
    generative = gmm.generative(K, 3, missing=True)
    recognition = gmm.recognition(K, missing=True)
    x = np.random.default_rng(1).normal(size=(8, 3))
    x[np.array([[i >> d & 1 for d in range(3)] for i in range(8)]) == 1] = np.nan
    expected = expected_log_joints(params, x)

    @jax.jit
    @jax.vmap
    def densities(x):
        joint = [log_joint(generative, params, x, one_hot(k)) for k in range(K)]
        evidence = gmm.log_evidence(params, x, missing=True)
        terms = generative.log_likelihood_terms(params, x, one_hot(0))
        return jnp.stack(joint), recognition.encode(params, x), evidence, terms

    joint, h, evidence, terms = densities(jnp.asarray(x))
    log_p = np.asarray(special.logsumexp(expected, axis=1))
    np.testing.assert_allclose(joint, expected, rtol=1e-9)
    np.testing.assert_allclose(evidence, log_p, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(h, expected - log_p[:, None], rtol=1e-9)
    np.testing.assert_array_equal(np.asarray(terms)[np.isnan(x)], 0.0)
    slope = jax.grad(lambda p: gmm.log_evidence(p, jnp.asarray(x[3]), missing=True))
    chex.assert_tree_all_finite(slope(params))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.slow
def test_maximum_likelihood_has_the_moments_of_each_component(x64, covariance):
    generator = np.random.default_rng(2)
    x = generator.normal(size=(40, D)) @ np.array([[1.0, 0.5], [0.0, 0.3]])
    label, weight = generator.integers(0, K, 40), generator.integers(0, 3, 40)
    x += 3.0 * label[:, None]
    params = gmm.maximum_likelihood(
        jnp.asarray(x),
        jnp.eye(K)[label][:, None],
        covariance=covariance,
        weight=jnp.asarray(weight, float),
    )
    rows, labels = np.repeat(x, weight, 0), np.repeat(label, weight)
    each = [rows[labels == k] for k in range(K)]
    sigma = np.array([np.cov(part.T, bias=True) for part in each])
    shares, components = normals(params)
    counts = np.array([len(part) for part in each])
    np.testing.assert_allclose(shares, counts / counts.sum(), rtol=1e-9)
    if covariance == "tied":
        sigma[:] = np.einsum("k,kij->ij", shares, sigma)
    if covariance == "diag":
        sigma = sigma * np.eye(D)
    if covariance == "spherical":
        sigma = np.trace(sigma, axis1=1, axis2=2)[:, None, None] / D * np.eye(D)
    for k, normal in enumerate(components):
        np.testing.assert_allclose(normal.mean, each[k].mean(0), rtol=1e-9)
        got = covariance_of(normal)
        np.testing.assert_allclose(got, sigma[k], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.slow
def test_a_component_that_no_row_names_has_the_moments_of_all(covariance):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, D)), jnp.float32)
    z = jnp.tile(one_hot(0), (20, 1, 1))
    params = gmm.maximum_likelihood(x, z, covariance=covariance)
    shares, components = normals(params)
    np.testing.assert_allclose(shares, [1.0, 0.0, 0.0], atol=1e-30)
    for normal in components[1:]:
        np.testing.assert_allclose(normal.mean, components[0].mean, rtol=1e-5)
        wanted = components[0].cov_object.covariance
        np.testing.assert_allclose(covariance_of(normal), wanted, rtol=1e-5)
    recognition = gmm.recognition(K)
    h = recognition.encode(params, x[0])
    assert np.isfinite(recognition.log_prob(params, h, one_hot(0)))


# The records in the rest of the library


@pytest.mark.slow
def test_bounds_and_estimators_of_the_exact_posterior_are_log_p(x64):
    params, x = mixture("full"), jnp.asarray(X[0])
    generative, recognition = gmm.generative(K, D), gmm.recognition(K)
    exact = gmm.log_evidence(params, x)

    model = vae.model(generative, recognition)
    sampling = marginal.importance_sampling(model, num_samples=10, chunk_size=5)
    iwae = importance.iwae(model, num_samples=4)
    score = score_function.leave_one_out(model, num_samples=4)

    def log_weight(key):
        h = recognition.encode(params, x)
        z = recognition.sample(key, params, h)
        log_q = recognition.log_prob(params, h, z)
        return log_joint(generative, params, x, z) - log_q

    @jax.jit
    def evaluate(key):
        key_w, *keys = jax.random.split(key, 4)
        log_w = jax.vmap(log_weight)(jax.random.split(key_w, 5))
        values = [f(k, params, x) for f, k in zip((iwae, score), keys[:2], strict=True)]
        return bounds.elbo(log_w), *values, sampling(keys[2], params, x).log_p

    got = evaluate(jax.random.key(0))
    np.testing.assert_allclose(got, np.full(4, exact), rtol=1e-12)


# Statistical


@pytest.mark.slow
@pytest.mark.parametrize(
    "covariance",
    [
        *("full", "spherical"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("tied", "diag")),
    ],
)
def test_ancestral_samples_have_their_moments(covariance):
    params = jax.tree.map(lambda a: a.astype(jnp.float32), mixture(covariance))
    generative, recognition = gmm.generative(K, D), gmm.recognition(K)
    shares, components = normals(params)

    @jax.jit
    @jax.vmap
    def draw(key):
        key_z, key_x, key_q = jax.random.split(key, 3)
        z = generative.sample_prior(key_z, params)
        h = recognition.encode(params, jnp.asarray(X[0], jnp.float32))
        q = recognition.sample(key_q, params, h)
        return z, generative.sample_observation(key_x, params, z), q

    z, x, q = map(np.asarray, draw(jax.random.split(jax.random.key(0), NUM_DRAWS)))
    assert z.shape == (NUM_DRAWS, 1, K)
    assert z.dtype == x.dtype == jnp.float32
    testing.assert_mean_equals(z[:, 0], shares)
    posterior = special.softmax(expected_log_joints(params, X[:1]), axis=1)[0]
    testing.assert_mean_equals(q[:, 0], posterior)
    for k, normal in enumerate(components):
        rows = x[z[:, 0, k] == 1.0] - normal.mean
        testing.assert_mean_equals(rows, np.zeros(D))
        products = rows[:, :, None] * rows[:, None, :]
        testing.assert_mean_equals(products, covariance_of(normal))
        np.testing.assert_allclose(
            generative.mean_observation(params, one_hot(k)), normal.mean, rtol=1e-6
        )


# Gradient, transformation and edge


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["full", "spherical"])
def test_log_evidence_differentiates(x64, covariance):
    params, x = mixture(covariance), jnp.asarray(X[0])

    @jax.jit
    def of_values(theta):
        if "scale_tril" in theta:
            theta = theta | {"scale_tril": jnp.tril(theta["scale_tril"])}
        return gmm.log_evidence(Params(theta, ()), x)

    check_grads(of_values, (params.generative,), order=1, rtol=1e-6)


@pytest.mark.slow
def test_rows_side_by_side_compiled_are_those_in_turn():
    params = jax.tree.map(lambda a: a.astype(jnp.float32), mixture("full"))
    rows = jnp.asarray(X, jnp.float32)
    got = jax.jit(jax.vmap(gmm.log_evidence, in_axes=(None, 0)))(params, rows)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(
        got, [gmm.log_evidence(params, row) for row in rows], rtol=1e-5
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_start_has_equal_shares_and_unit_covariances(covariance):
    generative = gmm.generative(K, D, covariance=covariance)
    theta = generative.init(jax.random.key(0))
    assert gmm_scales.covariance_of(theta) == covariance
    shares, components = normals(Params(theta, ()))
    np.testing.assert_allclose(shares, np.full(K, 1 / 3), rtol=1e-6)
    np.testing.assert_array_equal(components[1].cov_object.covariance, np.eye(D))
    assert np.abs(np.asarray(theta["mean"])).min() > 0.0
    assert gmm.recognition(K).init(jax.random.key(0)) == ()


def test_one_component_is_a_normal(x64):
    params = mixture("full", num_components=1)
    generative, recognition = gmm.generative(1, D), gmm.recognition(1)
    x, z = jnp.asarray(X[0]), generative.sample_prior(jax.random.key(0), params)
    np.testing.assert_array_equal(z, [[1.0]])
    exact = normals(params)[1][0].logpdf(X[0])
    np.testing.assert_allclose(log_joint(generative, params, x, z), exact, rtol=1e-9)
    h = recognition.encode(params, x)
    np.testing.assert_array_equal(h, [0.0])
    assert recognition.log_prob(params, h, z) == 0.0


def test_far_from_every_component_the_evidence_is_finite():
    params = jax.tree.map(lambda a: a.astype(jnp.float32), mixture("full"))
    x = jnp.full((D,), 1e6, jnp.float32)
    assert np.isfinite(gmm.log_evidence(params, x))
    assert np.isfinite(gmm.recognition(K).encode(params, x)).all()


def test_sizes_and_types_that_make_no_mixture_are_refused():
    for build in (gmm.generative, lambda k, d: gmm.recognition(k)):
        with pytest.raises(ValueError, match="num_components must be positive, got 0"):
            build(0, 2)
    with pytest.raises(ValueError, match="num_features must be positive, got -1"):
        gmm.generative(2, -1)
    with pytest.raises(ValueError, match="full, diag, tied, spherical, got 'round'"):
        gmm.generative(2, 2, covariance="round")
    with pytest.raises(ValueError, match=r"min_variance .* got 0.0"):
        gmm.maximum_likelihood(jnp.zeros((2, 2)), jnp.ones((2, 1, 1)), min_variance=0.0)
