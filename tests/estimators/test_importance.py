import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax import flows, networks, posteriors, vae
from vae_jax.estimators import importance, sgvb
from vae_jax.types import log_joint

X = np.array([0.4, -1.0])
NUM_DRAWS = 20_000


def _draws(function, params, *, seed=1):
    keys = jax.random.split(jax.random.key(seed), NUM_DRAWS)
    return jax.jit(jax.vmap(function, in_axes=(0, None, None)))(
        keys, params, jnp.asarray(X)
    )


def _iwae(problem, num_samples, recognition=None):
    q = recognition or problem.recognition
    return importance.iwae(
        problem._replace(recognition=q).model, num_samples=num_samples
    )


def _build(name, problem, **settings):
    builder = getattr(importance, name)
    return builder(problem.model, **settings)


def _at_the_posterior(problem):
    """Parameters whose q is the posterior, which is linear in x with one covariance."""
    zero = jnp.zeros(len(X))
    shift, covariance = problem.posterior(problem.params, zero)
    slope = jax.jacfwd(lambda x: problem.posterior(problem.params, x)[0])(zero)
    log_std = 0.5 * jnp.log(jnp.diag(covariance))
    layer = {
        "kernel": jnp.concatenate([slope.T, jnp.zeros_like(slope.T)], axis=1),
        "bias": jnp.concatenate([shift, log_std]),
    }
    encoder = {"encoder": {"output": layer}, "posterior": ()}
    return problem.params._replace(recognition=encoder)


# Oracle


@pytest.mark.slow
def test_log_weights_are_the_joint_over_q_at_draws_from_q(x64):
    problem = problems.linear_gaussian(num_latents=2)
    params, x = problem.params, jnp.asarray(X)
    draw = importance.log_weights(problem.model, num_samples=3)
    h = problem.recognition.encode(params, x)
    key = jax.random.key(0)
    got = draw(jax.random.clone(key), params, x, h)
    for log_w, key_sample in zip(got, jax.random.split(key, 3), strict=True):
        z = problem.recognition.sample(key_sample, params, h)
        log_q = problem.recognition.log_prob(params, h, z)
        expected = log_joint(problem.generative, params, x, z) - log_q
        np.testing.assert_allclose(log_w, expected, rtol=1e-9)


@pytest.mark.slow
def test_log_weights_follow_the_h_they_are_given(x64):
    problem = problems.linear_gaussian()
    params, x = problem.params, jnp.asarray(X)
    draw = importance.log_weights(problem.model, num_samples=4)
    log_w = jax.jit(draw)(jax.random.key(0), params, x, problem.exact.encode(params, x))
    np.testing.assert_allclose(log_w, np.full(4, problem.log_p(params, x)), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [1, 5])
def test_iwae_with_the_posterior_as_q_is_log_p_without_noise(x64, num_samples):
    problem = problems.linear_gaussian()
    log_p = problem.log_p(problem.params, jnp.asarray(X))
    nats = _draws(_iwae(problem, num_samples, problem.exact), problem.params)
    np.testing.assert_allclose(nats, np.full(NUM_DRAWS, log_p), rtol=1e-9)


@pytest.mark.slow
def test_iwae_with_one_sample_is_estimator_a(x64):
    problem = problems.linear_gaussian(num_latents=2)
    key = jax.random.key(2)
    a = sgvb.sgvb_a(problem.model, num_samples=1)
    arguments = problem.params, jnp.asarray(X)
    iwae = jax.jit(jax.value_and_grad(_iwae(problem, 1), 1))
    got = iwae(jax.random.clone(key), *arguments)
    expected = jax.jit(jax.value_and_grad(a, 1))(key, *arguments)
    chex.assert_trees_all_close(got, expected, rtol=1e-9)


# Statistical


def test_the_mean_weight_is_unbiased_for_p(x64):
    problem = problems.linear_gaussian()
    near = problems.widened(problem.exact, log_factor=0.3, shift=0.2)
    log_p_hat = _draws(_iwae(problem, 3, near), problem.params)
    log_p = problem.log_p(problem.params, jnp.asarray(X))
    testing.assert_mean_equals(jnp.exp(log_p_hat), jnp.exp(log_p))


@pytest.mark.slow
def test_the_bound_increases_with_k_and_stays_below_log_p(x64):
    problem = problems.linear_gaussian(num_latents=2)
    log_p = float(problem.log_p(problem.params, jnp.asarray(X)))
    means, errors = [], []
    for seed, num_samples in enumerate((1, 4, 16)):
        nats = _draws(_iwae(problem, num_samples), problem.params, seed=seed)
        means.append(float(nats.mean()))
        errors.append(float(nats.std()) / np.sqrt(NUM_DRAWS))
    elbo = problem.elbo(problem.params, jnp.asarray(X))
    assert abs(means[0] - elbo) < 5 * errors[0]  # L_1 is the ELBO
    levels, slack = [*means, log_p], [*errors, 0.0]
    for i in range(len(means)):
        assert levels[i + 1] - levels[i] > 5 * np.hypot(slack[i], slack[i + 1])


# Gradient


@pytest.mark.parametrize("num_samples", [1, 8])
@pytest.mark.parametrize("name", ["iwae", "dreg"])
@pytest.mark.slow
def test_the_gradient_is_unbiased_for_the_k_sample_bound(x64, name, num_samples):
    problem = problems.linear_gaussian()
    objective = _build(name, problem, num_samples=num_samples)
    bound = problems.k_sample_bound(problem, num_samples=num_samples)
    testing.assert_unbiased(objective, problem.params, jnp.asarray(X), bound)


@pytest.mark.slow
def test_the_oracle_is_the_elbo_at_one_sample_and_has_converged(x64):
    problem, x = problems.linear_gaussian(), jnp.asarray(X)
    bound = jax.jit(jax.value_and_grad(problems.k_sample_bound(problem, num_samples=1)))
    expected = jax.jit(jax.value_and_grad(problem.elbo))(problem.params, x)
    got = bound(problem.params, x)
    chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("name", ["stick_the_landing", "dreg"])
@pytest.mark.slow
def test_path_gradients_have_no_noise_in_phi_where_q_is_exact(x64, name, num_samples):
    problem, x = problems.linear_gaussian(), jnp.asarray(X)
    params = _at_the_posterior(problem)
    objective = _build(name, problem, num_samples=num_samples)
    _, grads = testing.draws(objective, params, x, num_draws=50)
    for leaf in jax.tree.leaves(grads.recognition):
        np.testing.assert_allclose(leaf, np.zeros_like(leaf), atol=1e-9)
    ordinary = _build("iwae", problem, num_samples=num_samples)
    _, grads = testing.draws(ordinary, params, x, num_draws=50)
    assert min(leaf.std() for leaf in jax.tree.leaves(grads.recognition)) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_samples"),
    [
        *(("stick_the_landing", 1), ("dreg", 3)),
        pytest.param("stick_the_landing", 3, marks=pytest.mark.slow),
        pytest.param("dreg", 1, marks=pytest.mark.slow),
    ],
)
def test_path_gradients_hold_a_flows_own_parameters_fixed_too(x64, name, num_samples):
    # A flow that is the identity leaves q at the posterior, and moves q's density.
    problem, x = problems.linear_gaussian(num_latents=2), jnp.asarray(X)
    decoder = {"output": {"kernel": jnp.diag(jnp.array([0.9, -0.5])), "bias": x}}
    theta = problem.params.generative | {"decoder": decoder}
    params = _at_the_posterior(
        problem._replace(params=problem.params._replace(generative=theta))
    )
    coupling = flows.affine_coupling(networks.linear(1, 2), 2)
    q = posteriors.flow(posteriors.diag_normal(2), coupling)
    recognition = vae.encoder_model(networks.linear(2, q.width), q)
    flow = jax.tree.map(jnp.zeros_like, q.init(jax.random.key(0)))
    params = params._replace(recognition=params.recognition | {"posterior": flow})
    model = vae.model(problem.generative, recognition)
    phi = {}
    for built in (name, "iwae"):
        objective = getattr(importance, built)(model, num_samples=num_samples)
        _, grads = testing.draws(objective, params, x, num_draws=50)
        phi[built] = grads.recognition
    zero = jax.tree.map(jnp.zeros_like, phi[name])
    chex.assert_trees_all_close(phi[name], zero, atol=1e-9)
    of_flow = jax.tree.leaves(phi["iwae"]["posterior"])
    assert max(float(leaf.std()) for leaf in of_flow) > 0.01  # the score is not zero


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [-1.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_the_renyi_gradient_is_unbiased_for_its_k_sample_value(x64, alpha):
    problem = problems.linear_gaussian()
    objective = _build("renyi", problem, num_samples=3, alpha=alpha)
    bound = problems.k_sample_bound(problem, num_samples=3, power=1.0 - alpha)
    testing.assert_unbiased(objective, problem.params, jnp.asarray(X), bound)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.slow
def test_the_jackknife_is_closer_to_log_p_and_its_gradient_unbiased(x64, order):
    problem, x = problems.linear_gaussian(), jnp.asarray(X)
    objective = _build("jackknife", problem, num_samples=5, order=order)
    by_k = {k: problems.k_sample_bound(problem, num_samples=k) for k in (3, 4, 5)}

    def bound(params, x):  # Nowozin's coefficients, written out
        if order == 1:
            return 5 * by_k[5](params, x) - 4 * by_k[4](params, x)
        ends = 25 * by_k[5](params, x) + 9 * by_k[3](params, x)
        return 0.5 * ends - 16 * by_k[4](params, x)

    testing.assert_unbiased(objective, problem.params, x, bound)
    log_p = problem.log_p(problem.params, x)
    gap = abs(bound(problem.params, x) - log_p)
    assert gap < 0.8 * abs(by_k[5](problem.params, x) - log_p)


@pytest.mark.parametrize("kind", ["full_normal", "flow"])
@pytest.mark.slow
def test_dreg_agrees_with_iwae_for_posteriors_that_do_not_factorize(x64, kind):
    # A flow has parameters of its own, which the path gradient must hold fixed too.
    problem, x = problems.linear_gaussian(num_latents=2), jnp.asarray(X)
    posterior = posteriors.full_normal(2)
    if kind == "flow":
        coupling = flows.affine_coupling(networks.mlp(1, (3,), 2), 2)
        posterior = posteriors.flow(
            posteriors.diag_normal(2), flows.chain(coupling, flows.reverse(2))
        )
    start = networks.normal(std=0.6)
    encoder = networks.linear(2, posterior.width, initializer=start)
    recognition = vae.encoder_model(encoder, posterior)
    params = problem.params._replace(recognition=recognition.init(jax.random.key(5)))
    model = vae.model(problem.generative, recognition)
    _, ours = testing.draws(importance.dreg(model, num_samples=3), params, x)
    _, ordinary = testing.draws(importance.iwae(model, num_samples=3), params, x)
    # The same draws of z on both sides, so the difference is what is tested.
    difference = jax.tree.map(lambda a, b: a - b, ours, ordinary)
    testing.assert_mean_equals(difference, jax.tree.map(jnp.zeros_like, params))
    spread = [float(leaf.std()) for leaf in jax.tree.leaves(difference.recognition)]
    assert min(spread) > 1e-4  # they are two estimators


# Transformation and edge


@pytest.mark.slow
def test_the_largest_weight_compiles_and_batches():
    problem = problems.linear_gaussian(num_latents=2)
    objective = _build("renyi", problem, num_samples=3, alpha=-np.inf)
    xs = jax.random.normal(jax.random.key(1), (3, 2))
    testing.assert_same_compiled_and_batched(objective, problem.params, xs)


@pytest.mark.slow
def test_ciwae_takes_a_traced_beta():
    problem = problems.linear_gaussian()

    def value(beta):
        objective = _build("ciwae", problem, num_samples=3, beta=beta)
        return objective(jax.random.key(0), problem.params, jnp.asarray(X))

    np.testing.assert_allclose(jax.jit(value)(0.3), value(0.3), rtol=1e-6)


def test_x_is_encoded_once_for_all_samples():
    problem, calls = problems.linear_gaussian(), []

    def encode(params, x):
        jax.debug.callback(lambda: calls.append(1))
        return problem.recognition.encode(params, x)

    counted = problem.recognition._replace(encode=encode)
    objective = jax.jit(_iwae(problem, 7, counted))
    jax.block_until_ready(objective(jax.random.key(0), problem.params, jnp.asarray(X)))
    jax.effects_barrier()
    assert len(calls) == 1


@pytest.mark.parametrize("num_samples", [0, -3])
def test_fewer_samples_than_one_are_refused(num_samples):
    problem = problems.linear_gaussian()
    for name in ("log_weights", "log_densities"):
        with pytest.raises(ValueError, match=f"num_samples .*{num_samples}"):
            _build(name, problem, num_samples=num_samples)
