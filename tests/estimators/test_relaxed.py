import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import estimands, problems, testing
from vae_jax import vae
from vae_jax.estimators import relaxed
from vae_jax.latent_models import sigmoid_belief
from vae_jax.types import Family, Params

X = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
NUM_DRAWS = 20_000
CLASSES = 3


def _builder(name):
    """A problem, and (T, num_samples) -> objective."""
    binary = name in ("straight_through", "binary_concrete")
    problem = problems.binary_model() if binary else problems.categorical_model()

    def build(temperature, num_samples=1):
        keywords = {"num_samples": num_samples}
        if name in TEMPERED:
            keywords["temperature"] = temperature
        builder = getattr(relaxed, name.removesuffix("_of_choices"))
        return builder(problem.model, **keywords)

    return problem, build


ALL = [
    "straight_through",
    "straight_through_of_choices",
    "binary_concrete",
    "gumbel_softmax",
]
TEMPERED = ALL[2:]


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _rows(tree, num):
    return np.concatenate([np.reshape(a, (num, -1)) for a in jax.tree.leaves(tree)], 1)


# Statistical


@pytest.mark.parametrize("name", ALL)
@pytest.mark.slow
def test_value_and_theta_are_unbiased_and_phi_is_not(x64, name):
    problem, build = _builder(name)
    params, x = problem.params, jnp.asarray(X)
    value, slope = jax.jit(jax.value_and_grad(problem.elbo))(params, x)
    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)

    @jax.jit
    def draws(keys, temperature):
        function = jax.value_and_grad(build(temperature), 1)
        return jax.vmap(function, in_axes=(0, None, None))(keys, params, x)

    bias, noise = {}, {}
    for temperature in (1.0, 0.2) if name in TEMPERED else (1.0,):
        nats, slopes = draws(jax.random.clone(keys), jnp.asarray(temperature))
        testing.assert_mean_equals(nats, value)
        testing.assert_mean_equals(slopes.generative, slope.generative)
        phi = _rows(slopes.recognition, NUM_DRAWS)
        bias[temperature] = phi.mean(0) - _flat(slope.recognition)
        noise[temperature] = phi.std(0)
    error = noise[1.0] / np.sqrt(NUM_DRAWS)
    assert np.max(np.abs(bias[1.0]) / np.maximum(error, 1e-12)) > 5.0
    if name in TEMPERED:
        slack = 5.0 * np.linalg.norm(noise[0.2]) / np.sqrt(NUM_DRAWS)
        assert np.linalg.norm(bias[0.2]) + slack < np.linalg.norm(bias[1.0])
        assert np.linalg.norm(noise[0.2]) > np.linalg.norm(noise[1.0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["straight_through", "binary_concrete"])
def test_more_samples_average_independent_draws(x64, name):
    problem, build = _builder(name)
    params = problem.params

    def spread(num_samples):
        keys = jax.random.split(jax.random.key(2), 4000)
        draw = jax.vmap(build(0.5, num_samples), in_axes=(0, None, None))
        return float(jax.jit(draw)(keys, params, jnp.asarray(X)).var())

    np.testing.assert_allclose(spread(1) / spread(8), 8.0, rtol=0.25)


# Oracle: which sample feeds which gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPERED)
def test_theta_sees_the_discrete_sample_and_phi_the_relaxed_one_alone(x64, name):
    problem, build = _builder(name)
    generative, recognition, params = problem[:3]
    x, temperature, key = jnp.asarray(X), 0.7, jax.random.key(4)
    binary = name == "binary_concrete"
    shape = (4,) if binary else (2, CLASSES)
    noise = (jax.random.logistic if binary else jax.random.gumbel)(
        jax.random.clone(key), shape, jnp.float64
    )

    def at(theta, phi, kind):
        both = Params(theta, phi)
        noisy = recognition.encode(both, x).reshape(shape) + noise
        if kind == "soft":
            squash = jax.nn.sigmoid if binary else jax.nn.softmax
            z = squash(noisy / temperature)
        else:
            top = 0.0 if binary else noisy.max(-1, keepdims=True) - 1e-9
            z = (noisy > top).astype(float)
        reconstruction = generative.log_likelihood_terms(both, x, z).sum()
        kl = estimands.binary_kl if binary else estimands.class_kl
        return reconstruction - kl(both, recognition.encode(both, x))

    value, slopes = jax.jit(jax.value_and_grad(build(temperature), 1))(key, params, x)
    hard = jax.jit(jax.value_and_grad(lambda theta, phi: at(theta, phi, "hard")))(
        params.generative, params.recognition
    )
    soft = jax.jit(jax.grad(lambda theta, phi: at(theta, phi, "soft"), 1))(
        params.generative, params.recognition
    )
    np.testing.assert_allclose(value, hard[0], rtol=1e-9)
    np.testing.assert_allclose(_flat(slopes.generative), _flat(hard[1]), rtol=1e-9)
    np.testing.assert_allclose(_flat(slopes.recognition), _flat(soft), rtol=1e-9)


def test_straight_through_is_exact_where_the_reconstruction_is_affine_in_z(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    slopes = jnp.array([1.0, -2.0, 0.5, 3.0])
    affine = problem.generative._replace(
        log_likelihood_terms=lambda params, x, z: slopes * z
    )
    model = problem._replace(generative=affine).model
    objective = relaxed.straight_through(model, num_samples=1)

    def exact(params):
        h = problem.recognition.encode(params, x)
        return slopes @ jax.nn.sigmoid(h) - estimands.binary_kl(params, h)

    got = jax.jit(jax.grad(objective, 1))(jax.random.key(0), problem.params, x)
    expected = jax.jit(jax.grad(exact))(problem.params)
    np.testing.assert_allclose(_flat(got), _flat(expected), rtol=1e-9, atol=1e-15)


@pytest.mark.slow
def test_straight_through_reads_every_digit_of_the_discrete_sample():
    _, build = _builder("straight_through")
    problem, key, x = problems.binary_model(), jax.random.key(6), jnp.asarray(X)
    h = problem.recognition.encode(problem.params, x)
    z = problem.recognition.sample(jax.random.clone(key), problem.params, h)
    terms = problem.generative.log_likelihood_terms(problem.params, x, z)
    expected = terms.sum() - estimands.binary_kl(problem.params, h)
    got = build(None)(key, problem.params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


# Transformation and edge


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_certain_latents_leave_value_and_gradient_finite(name):
    problem, build = _builder(name)
    params = problem.params
    encoder = params.recognition["encoder"]["output"]
    signs = jnp.where(jnp.arange(encoder["bias"].size) % 2, 200.0, -200.0)
    phi = params.recognition | {"encoder": {"output": encoder | {"bias": signs}}}
    value, slopes = jax.jit(jax.value_and_grad(build(0.1), 1))(
        jax.random.key(0), params._replace(recognition=phi), jnp.asarray(X)
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(_flat(slopes)))


def _layered():
    sizes = (3, 2)
    return vae.model(
        sigmoid_belief.generative(sizes, (5,)), sigmoid_belief.recognition(sizes, (5,))
    )


@pytest.mark.parametrize(
    ("builder", "model", "message"),
    [
        (
            relaxed.straight_through,
            problems.linear_gaussian,
            "q must be a factorial bernoulli or categorical density, got diag_normal",
        ),
        (relaxed.straight_through, _layered, "got layers of bits"),
        (relaxed.binary_concrete, _layered, "factorial bernoulli .* layers of bits"),
        (relaxed.binary_concrete, problems.categorical_model, "bernoulli .*got categ"),
        (relaxed.gumbel_softmax, problems.binary_model, "categorical .*got bernoulli"),
    ],
)
def test_a_q_that_is_not_factorial_or_of_another_kind_is_refused_when_built(
    builder, model, message
):
    made = model()
    settings = {} if builder is relaxed.straight_through else {"temperature": 0.5}
    with pytest.raises(ValueError, match=message):
        builder(getattr(made, "model", made), num_samples=1, **settings)


@pytest.mark.parametrize("name", ALL)
def test_a_prior_to_which_the_kl_has_no_closed_form_is_refused_when_built(name):
    problem, _ = _builder(name)
    other = problem.generative._replace(prior_family=Family("one's own"))
    settings = {"temperature": 0.5} if name in TEMPERED else {}
    builder = getattr(relaxed, name.removesuffix("_of_choices"))
    with pytest.raises(ValueError, match="q to one's own has no closed form"):
        builder(problem._replace(generative=other).model, num_samples=1, **settings)
