import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special, stats

from tests import problems, testing
from vae_jax import likelihoods, networks, posteriors, priors, types, vae
from vae_jax.types import Family, Network, Params

X_SHAPE = (2, 3)


def _model(seed=0):
    generative, recognition = problems.bernoulli_vae(x_shape=X_SHAPE)
    key_theta, key_phi = jax.random.split(jax.random.key(seed))
    params = Params(generative.init(key_theta), recognition.init(key_phi))
    return generative, recognition, params


# Oracle


@pytest.mark.slow
def test_log_joint_matches_scipy(x64):
    generative, _, params = _model()
    decoder = networks.mlp(2, (5,), 6)
    z, x = np.array([0.3, -1.0]), np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    logits = decoder.apply(params.generative["decoder"], jnp.asarray(z))
    p = special.expit(np.asarray(logits)).reshape(X_SHAPE)
    log_likelihood = stats.bernoulli.logpmf(x, p)
    terms = generative.log_likelihood_terms(params, jnp.asarray(x), jnp.asarray(z))
    np.testing.assert_allclose(terms, log_likelihood, rtol=1e-9)
    got = types.log_joint(generative, params, jnp.asarray(x), jnp.asarray(z))
    expected = log_likelihood.sum() + stats.norm.logpdf(z).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    mean = generative.mean_observation(params, jnp.asarray(z))
    np.testing.assert_allclose(mean, p, rtol=1e-9)


def test_log_q_is_the_posterior_density_at_the_encoded_h(x64):
    _, recognition, params = _model()
    x, z = jnp.ones(X_SHAPE), jnp.array([0.3, -1.0])
    h = recognition.encode(params, x)
    encoder = networks.mlp(6, (5,), 4)
    expected = encoder.apply(params.recognition["encoder"], x)
    np.testing.assert_allclose(h, expected, rtol=1e-9)
    log_q = stats.norm.logpdf(z, h[:2], np.exp(h[2:])).sum()
    np.testing.assert_allclose(recognition.log_prob(params, h, z), log_q, rtol=1e-9)


def test_ancestral_samples_of_the_linear_gaussian_model_have_its_marginal(x64):
    problem = problems.linear_gaussian()
    generative, params = problem.generative, problem.params

    def draw(key):
        key_z, key_x = jax.random.split(key)
        z = generative.sample_prior(key_z, params)
        return generative.sample_observation(key_x, params, z)

    x = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(2), 20_000))
    layer = jax.tree.map(np.asarray, params.generative["decoder"]["output"])
    testing.assert_mean_equals(x, layer["bias"])
    centered = np.asarray(x) - layer["bias"]
    covariance = layer["kernel"].T @ layer["kernel"] + 0.8**2 * np.eye(2)
    testing.assert_mean_equals(centered[:, :, None] * centered[:, None, :], covariance)


# The lecture's worked example, with the library's records


def _lecture_likelihood(num_features):
    """p(x | h) = N(sigmoid(h_1), exp(sigmoid(h_2))) for each entry."""

    def moments(h):
        mean_logits, log_variance_logits = jnp.split(h, 2)
        log_std = 0.5 * jax.nn.sigmoid(log_variance_logits)
        return jax.nn.sigmoid(mean_logits), log_std

    def sample(key, params, h):
        mean, log_std = moments(h)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, h.dtype)

    return likelihoods.likelihood(
        (num_features,),
        width=2 * num_features,
        sample=sample,
        mean=lambda params, h: moments(h)[0],
        log_prob_terms=lambda params, h, x: likelihoods.normal_terms(*moments(h), x),
        quantity=lambda x: "log-density",
    )


def _lecture_model():
    generative = vae.decoder_model(
        problems.lecture_decoder(2, 3),
        priors.standard_normal(2),
        _lecture_likelihood(3),
    )
    return generative, Params(generative.init(jax.random.key(0)), ())


def _lecture_moments(params, z):
    theta = {k: np.asarray(v) for k, v in params.generative["decoder"].items()}
    mean = special.expit(theta["A"] @ z + theta["c"])
    return mean, np.exp(special.expit(theta["B"] @ z + theta["d"]))


def test_the_lecture_decoder_has_means_in_0_1_and_variances_in_1_e(x64):
    generative, params = _lecture_model()
    assert set(params.generative["decoder"]) == {"A", "B", "c", "d"}
    zs = 3.0 * np.random.default_rng(0).normal(size=(500, 2))
    at_mean = jax.jit(jax.vmap(lambda z: generative.mean_observation(params, z)))
    means = at_mean(jnp.asarray(zs))
    assert (means > 0.0).all()
    assert (means < 1.0).all()
    # The density at its mean is 1 / sqrt(2 pi variance).
    terms = jax.vmap(generative.log_likelihood_terms, in_axes=(None, 0, 0))
    peaks = terms(params, means, jnp.asarray(zs))
    variances = np.exp(-2.0 * np.asarray(peaks)) / (2.0 * np.pi)
    assert (variances > 1.0).all()
    assert (variances < np.e).all()


@pytest.mark.slow
def test_the_lecture_decoder_has_the_log_likelihood_of_scipy_and_samples_from_it(x64):
    generative, params = _lecture_model()
    x, z = np.array([0.4, -1.0, 2.0]), np.array([0.3, -1.2])
    mean, variance = _lecture_moments(params, z)
    terms = generative.log_likelihood_terms(params, jnp.asarray(x), jnp.asarray(z))
    expected = stats.norm.logpdf(x, mean, np.sqrt(variance))
    np.testing.assert_allclose(terms, expected, rtol=1e-9)
    got = types.log_likelihood(generative, params, jnp.asarray(x), jnp.asarray(z))
    np.testing.assert_allclose(got, expected.sum(), rtol=1e-9)
    keys = jax.random.split(jax.random.key(1), 20_000)
    sample = jax.vmap(generative.sample_observation, in_axes=(0, None, None))
    draws = np.asarray(sample(keys, params, jnp.asarray(z)))
    testing.assert_mean_equals(draws, mean)
    testing.assert_mean_equals((draws - mean) ** 2, variance)


# Parameters


def test_parameters_are_kept_under_the_names_of_their_parts():
    _, _, params = _model()
    assert set(params.generative) == {"decoder", "prior", "likelihood"}
    assert set(params.recognition) == {"encoder", "posterior"}


def test_every_part_gets_a_key_and_the_parameters_of_its_own():
    def network(width):
        return Network(jax.random.key_data, lambda params, x: jnp.zeros(width))

    def nats(params):
        return params.sum().astype(jnp.float32)

    def density(width):
        return types.conditional(
            Family("own", lambda params, h: (params,)),
            (2,),
            width=width,
            init=jax.random.key_data,
            sample=lambda key, params, h: params,
            log_prob=lambda params, h, y: nats(params),
            moments=lambda params, h: (params, 2 * params),
        )

    likelihood = likelihoods.likelihood(
        (3,),
        width=3,
        init=jax.random.key_data,
        sample=lambda key, params, h: params,
        mean=lambda params, h: params,
        log_prob_terms=lambda params, h, x: params,
        quantity=lambda x: "log-density",
    )
    generative = vae.decoder_model(network(3), density(0), likelihood)
    recognition = vae.encoder_model(network(4), density(4))
    key_theta, key_phi = jax.random.split(jax.random.key(0))
    params = Params(generative.init(key_theta), recognition.init(key_phi))
    keys = {tuple(np.asarray(leaf).tolist()) for leaf in jax.tree.leaves(params)}
    assert len(keys) == 5
    key, x, z, h = jax.random.key(1), jnp.zeros(3), jnp.zeros(2), jnp.zeros(4)
    of_prior, of_q = generative.prior_family, recognition.family
    assert of_prior.name == of_q.name == "own"
    assert of_prior.parameters
    assert of_q.parameters
    assert recognition.moments
    prior, noise = params.generative["prior"], params.generative["likelihood"]
    posterior = params.recognition["posterior"]
    for got, expected in [
        (generative.sample_prior(key, params), prior),
        (generative.log_prior(params, z), nats(prior)),
        (of_prior.parameters(params)[0], prior),
        (generative.log_likelihood_terms(params, x, z), noise),
        (generative.sample_observation(key, params, z), noise),
        (generative.mean_observation(params, z), noise),
        (recognition.sample(key, params, h), posterior),
        (recognition.log_prob(params, h, z), nats(posterior)),
        (recognition.sample_and_log_prob(key, params, h)[0], posterior),
        (recognition.sample_and_log_prob(key, params, h)[1], nats(posterior)),
        (recognition.moments(params, h)[1], 2 * posterior),
        (of_q.parameters(params, h)[0], posterior),
    ]:
        np.testing.assert_array_equal(got, expected)


# Gradient, transformation, edge


@pytest.mark.slow
def test_log_joint_and_log_q_gradients_agree_with_finite_differences(x64):
    generative, recognition, params = _model()
    x, z = jnp.ones(X_SHAPE), jnp.array([0.3, -1.0])

    def difference(params, z):
        log_q = recognition.log_prob(params, recognition.encode(params, x), z)
        return types.log_joint(generative, params, x, z) - log_q

    check_grads(jax.jit(difference), (params, z), order=2, modes=("rev",))


@pytest.mark.slow
def test_jit_and_vmap_agree_with_a_loop():
    generative, recognition, params = _model()
    keys = jax.random.split(jax.random.key(1), 3)
    xs = jax.random.bernoulli(jax.random.key(2), 0.5, (3, *X_SHAPE)).astype(jnp.float32)

    def one(key, x):
        h = recognition.encode(params, x)
        z = recognition.sample(key, params, h)
        return z, types.log_joint(generative, params, x, z)

    got = jax.jit(jax.vmap(one))(jax.random.clone(keys), xs)
    for i in range(3):
        for a, b in zip(got, one(keys[i], xs[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_a_conditional_prior_is_refused():
    with pytest.raises(ValueError, match=r"prior .*4"):
        vae.decoder_model(
            networks.linear(2, 3),
            posteriors.diag_normal(2),
            likelihoods.bernoulli((3,)),
        )


def test_a_baseline_is_kept_beside_the_recognition_models_own_parameters():
    model = vae.model(*problems.bernoulli_vae())
    of_q = vae.with_baseline(model, networks.linear(6, 1)).recognition
    params = of_q.init(jax.random.key(0))
    assert set(params) == {"encoder", "posterior", "baseline"}
    assert params["baseline"]["output"]["kernel"].shape == (6, 1)


def test_float32_parameters_give_float32_draws_and_densities_under_x64(x64):
    generative, _ = problems.bernoulli_vae()
    theta = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), generative.init(jax.random.key(0))
    )
    params = Params(theta, ())
    z = generative.sample_prior(jax.random.key(1), params)
    assert z.dtype == generative.log_prior(params, z).dtype == jnp.float32


def test_an_encoder_of_other_latents_is_refused_with_both_shapes_named():
    generative, recognition, params = _model()
    x = jnp.zeros(X_SHAPE)
    vae.check_latents(vae.model(generative, recognition), params, x)
    _, other = problems.bernoulli_vae(x_shape=X_SHAPE, num_latents=3)
    wrong = params._replace(recognition=other.init(jax.random.key(0)))
    mixed = vae.model(generative, other)
    with pytest.raises(ValueError, match=r"^[^\n]*\(3,\)[^\n]*\(2,\)$"):
        vae.check_latents(mixed, wrong, x)
