import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax import flows, networks, posteriors, vae
from vae_jax.estimators import enumerated
from vae_jax.evaluation import exact, laplace, marginal
from vae_jax.latent_models import ppca
from vae_jax.types import Params, log_joint

GRID = {"num_latents": 2, "num_nodes": 100, "limit": 8.5}


@functools.cache
def _images():
    """A tanh VAE of two latents, and a compiled map over 16 of its 64 images."""
    model = vae.model(*problems.bernoulli_vae())
    params = jax.jit(model.init)(jax.random.key(0))
    xs = jnp.asarray(problems.binary_rows(6).reshape(-1, 2, 3)[::4])

    def over_images(function):
        return jax.jit(jax.vmap(function, in_axes=(None, 0)))(params, xs)

    return model, over_images


def _normal_to_normal(mean, covariance, to_mean, to_covariance):
    """KL(N || N'), in nats, by matrices."""
    precision = np.linalg.inv(to_covariance)
    apart = np.asarray(to_mean) - np.asarray(mean)
    log_ratio = np.linalg.slogdet(to_covariance)[1] - np.linalg.slogdet(covariance)[1]
    spread = np.trace(precision @ covariance) + apart @ precision @ apart
    return 0.5 * (spread - len(apart) + log_ratio)


def _at_mode(generative, num_latents):
    """The model with the normal at the posterior's mode as its q."""
    q = laplace.posterior(generative, num_latents=num_latents)
    return vae.model(generative, q)


def _standard_normal(num_latents):
    """The prior in the place of a q(z | x)."""
    return vae.recognition(
        lambda params, x: jnp.zeros((2 * num_latents,), x.dtype),
        posteriors.diag_normal(num_latents),
    )


# The grid


@pytest.mark.parametrize("num_latents", [1, 2])
def test_the_grid_has_the_closed_form_of_a_linear_model(x64, num_latents):
    problem = problems.linear_gaussian(num_latents=num_latents, num_features=3)
    log_p = exact.grid_quadrature(
        problem.generative, num_latents=num_latents, num_nodes=64, limit=8.0
    )
    x = jnp.array([0.4, -1.0, 0.7])
    got, slope = jax.jit(jax.value_and_grad(log_p))(problem.params, x)
    wanted, exact_slope = jax.jit(jax.value_and_grad(problem.log_p))(problem.params, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    chex.assert_trees_all_close(
        slope.generative, exact_slope.generative, rtol=1e-7, atol=1e-9
    )


@pytest.mark.slow
def test_the_grid_converges_on_a_nonlinear_model_of_binary_images(x64):
    generative, recognition = problems.bernoulli_vae()
    key_theta, key_phi = jax.random.split(jax.random.key(0))
    params = problems.Params(
        jax.tree.map(lambda w: 1.5 * w, generative.init(key_theta)),
        recognition.init(key_phi),
    )
    xs = jnp.asarray(problems.binary_rows(6).reshape(-1, 2, 3))

    def over_rows(num_nodes):
        log_p = exact.grid_quadrature(
            generative, num_latents=2, num_nodes=num_nodes, limit=8.0
        )
        return jax.jit(jax.vmap(log_p, in_axes=(None, 0)))(params, xs)

    coarse, fine, finer = (over_rows(num_nodes) for num_nodes in (12, 64, 128))
    assert np.abs(coarse - finer).max() > np.abs(fine - finer).max()
    np.testing.assert_allclose(fine, finer, rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(finer).sum(), 1.0, rtol=1e-9)  # over every x


def test_a_coarse_grid_of_random_place_draws_p_without_bias(x64):
    problem = problems.linear_gaussian(num_latents=2, num_features=3)
    grid = {"num_latents": 2, "num_nodes": 6, "limit": 6.0}
    x = jnp.array([0.4, -1.0, 0.7])
    draw = exact.shifted_grid(problem.generative, **grid)
    keys = jax.random.split(jax.random.key(0), 20_000)
    samples = jax.jit(jax.vmap(draw, (0, None, None)))(keys, problem.params, x)
    ratio = jnp.exp(samples - problem.log_p(problem.params, x))
    assert ratio.std() > 0.05, "too few nodes for any one grid"
    testing.assert_mean_equals(ratio, 1.0)
    fine = {"num_latents": 2, "num_nodes": 64, "limit": 6.0}
    near = exact.shifted_grid(problem.generative, **fine)
    got = jax.jit(near)(jax.random.key(1), problem.params, x)
    np.testing.assert_allclose(got, problem.log_p(problem.params, x), rtol=1e-9)


def test_a_grid_that_cannot_be_is_refused():
    generative, _ = problems.bernoulli_vae()
    with pytest.raises(ValueError, match="num_latents must be 1 to 3"):
        exact.grid_quadrature(generative, num_latents=4)
    with pytest.raises(ValueError, match="num_nodes must be 2 or more"):
        exact.grid_quadrature(generative, num_latents=2, num_nodes=1)
    with pytest.raises(ValueError, match=r"limit must lie in \(0, inf\)"):
        exact.grid_quadrature(generative, num_latents=2, limit=0.0)
    with pytest.raises(ValueError, match="num_latents must be 1 to 3"):
        exact.shifted_grid(generative, num_latents=4)


# Nodes placed for each x


@pytest.mark.slow
@pytest.mark.parametrize("num_latents", [1, 3])
def test_two_nodes_at_the_posterior_have_the_closed_form_of_a_linear_model(
    x64, num_latents
):
    problem = problems.linear_gaussian(num_latents=num_latents, num_features=3)
    log_p = exact.gauss_hermite(
        _at_mode(problem.generative, num_latents), num_latents=num_latents, num_nodes=2
    )
    x = jnp.array([0.4, -1.0, 0.7])
    got, slope = jax.jit(jax.value_and_grad(log_p))(problem.params, x)
    wanted, exact_slope = jax.jit(jax.value_and_grad(problem.log_p))(problem.params, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    # Of theta: the gradient has a quadratic in z and so is exact with two nodes.
    chex.assert_trees_all_close(
        slope.generative, exact_slope.generative, rtol=1e-7, atol=1e-7
    )


def test_nodes_of_a_wider_normal_converge_to_the_closed_form(x64):
    problem = problems.linear_gaussian(num_latents=1)
    around = problems.widened(problem.exact, log_factor=0.3, shift=0.5)
    x = jnp.array([0.4, -1.0])
    model = vae.model(problem.generative, around)
    results = [
        jax.jit(exact.gauss_hermite(model, num_latents=1, num_nodes=num_nodes))(
            problem.params, x
        )
        for num_nodes in (6, 80)
    ]
    wanted = problem.log_p(problem.params, x)
    assert abs(results[0] - wanted) > 1e-5
    np.testing.assert_allclose(results[1], wanted, rtol=1e-9)


@pytest.mark.slow
def test_placed_nodes_converge_to_the_grid_on_a_nonlinear_model(x64):
    model, over_images = _images()
    at_mode = _at_mode(model.generative, 2)

    def placed(num_nodes):
        return over_images(
            exact.gauss_hermite(at_mode, num_latents=2, num_nodes=num_nodes)
        )

    wanted = over_images(exact.grid_quadrature(model.generative, **GRID))
    coarse, fine = placed(6), placed(48)
    assert np.abs(coarse - wanted).max() > 1e-5
    np.testing.assert_allclose(fine, wanted, rtol=1e-9)


@pytest.mark.slow
def test_nodes_on_the_prior_miss_a_narrow_posterior_that_placed_nodes_meet(x64):
    problem = problems.linear_gaussian(num_latents=2, num_features=5, std=0.01)
    generative, params = problem.generative, problem.params
    x = jnp.linspace(-0.3, 0.5, 5)

    def error(model, num_nodes):
        log_p = exact.gauss_hermite(model, num_latents=2, num_nodes=num_nodes)
        return float(abs(jax.jit(log_p)(params, x) - problem.log_p(params, x)))

    assert error(vae.model(generative, _standard_normal(2)), 40) > 1.0
    assert error(_at_mode(generative, 2), 3) < 1e-7


# The bound and the gap


@pytest.mark.slow
@pytest.mark.parametrize("num_latents", [1, 2])
def test_the_bound_has_the_closed_form_of_a_linear_model_and_its_gradient(
    x64, num_latents
):
    problem = problems.linear_gaussian(num_latents=num_latents, num_features=3)
    bound = exact.elbo(problem.model, num_latents=num_latents)
    x = jnp.array([0.4, -1.0, 0.7])
    got, slope = jax.jit(jax.value_and_grad(bound))(problem.params, x)
    wanted, exact_slope = jax.jit(jax.value_and_grad(problem.elbo))(problem.params, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    chex.assert_trees_all_close(slope, exact_slope, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_the_divergence_is_that_of_two_normals_and_zero_at_the_posterior(x64):
    problem = problems.linear_gaussian(num_latents=2, num_features=3)
    params, x = problem.params, jnp.array([0.4, -1.0, 0.7])
    mean, log_std = np.split(problem.recognition.encode(params, x), 2)
    wanted = _normal_to_normal(
        mean, np.diag(np.exp(2.0 * log_std)), *problem.posterior(params, x)
    )
    theta = params.generative | {"likelihood": {"log_std": jnp.log(0.8)}}
    for q, of, expected in (
        (problem.recognition, params, wanted),
        (ppca.recognition(2), Params(theta, ()), 0.0),
    ):
        model = vae.model(problem.generative, q)
        divergence = exact.posterior_divergence(model, problem.log_p, num_latents=2)
        got = jax.jit(divergence)(of, x)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_log_p_is_the_bound_and_the_divergence_of_a_nonlinear_model(x64):
    # No two of the three share their nodes.
    model, over_images = _images()
    log_p = over_images(exact.grid_quadrature(model.generative, **GRID))
    bound, coarse = (
        over_images(exact.elbo(model, num_latents=2, num_nodes=num_nodes))
        for num_nodes in (64, 12)
    )
    placed = exact.gauss_hermite(
        _at_mode(model.generative, 2), num_latents=2, num_nodes=48
    )
    divergence = over_images(
        exact.posterior_divergence(model, placed, num_latents=2, num_nodes=72)
    )
    np.testing.assert_allclose(log_p - bound, divergence, rtol=1e-9, atol=1e-9)
    assert (divergence > 1e-3).all()
    assert np.abs(coarse - bound).max() > 1e-4


# What is refused


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_latents": 0}, "num_latents must be 1 to 3, got 0"),
        ({"num_latents": 4}, "num_latents must be 1 to 3, got 4"),
        ({"num_latents": 1, "num_nodes": 0}, "num_nodes must be 1 to 100, got 0"),
        ({"num_latents": 1, "num_nodes": 101}, "num_nodes must be 1 to 100, got 101"),
    ],
)
def test_nodes_that_cannot_be_placed_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        exact.gauss_hermite(vae.model(*problems.bernoulli_vae()), **numbers)


def test_a_bound_or_divergence_without_nodes_is_refused():
    model = vae.model(*problems.bernoulli_vae())
    with pytest.raises(ValueError, match="num_nodes must be 2 or more, got 1"):
        exact.elbo(model, num_latents=2, num_nodes=1)
    with pytest.raises(ValueError, match="num_latents must be 1 to 3"):
        exact.posterior_divergence(model, lambda params, x: x.sum(), num_latents=4)


def test_an_encoder_of_other_latents_is_refused():
    problem = problems.linear_gaussian(num_latents=2)
    other = problems.linear_gaussian(num_latents=1)
    mixed, x = Params(problem.params.generative, other.params.recognition), jnp.zeros(2)
    for build in (exact.gauss_hermite, exact.elbo):
        model = vae.model(problem.generative, other.recognition)
        function = build(model, num_latents=2)
        with pytest.raises(ValueError, match=r"shape \(1,\), .* shape \(2,\)"):
            function(mixed, x)
    wrong = exact.elbo(problem.model, num_latents=3)
    with pytest.raises(ValueError, match=r"is 3, but q's mean has shape \(2,\)"):
        wrong(problem.params, x)


# All completions


@pytest.mark.slow
def test_summing_all_completions_is_leaving_out_the_terms_of_the_holes(x64):
    """Both evidences of a partial image, and importance sampling within its errors."""
    model, _ = _images()
    masked = vae.masked(model)
    key_init, key = jax.random.split(jax.random.key(0))
    params = model.init(key_init)
    x = jnp.array([[1.0, jnp.nan, 0.0], [jnp.nan, jnp.nan, 1.0]])
    whole = exact.grid_quadrature(model.generative, **GRID)
    partial = exact.grid_quadrature(masked.generative, **GRID)
    summed = exact.all_completions(whole, num_missing=3, chunk_size=4)
    expected = jax.jit(partial)(params, x)
    np.testing.assert_allclose(jax.jit(summed)(params, x), expected, rtol=1e-9)
    sampled = marginal.importance_sampling(masked, num_samples=20_000)
    results = jax.jit(sampled)(key, params, x)
    assert abs(results.log_p - expected) < 5.0 * results.standard_error


@pytest.mark.slow
def test_summing_all_completions_of_binary_latents_is_enumerating_them_once(x64):
    problem = problems.binary_model()
    masked = vae.masked(problem.model).generative
    x = jnp.array([1.0, jnp.nan, 0.0, jnp.nan, jnp.nan])
    partial = enumerated.log_evidence(masked, num_latents=4)
    summed = exact.all_completions(problem.log_p, num_missing=3)
    np.testing.assert_allclose(
        summed(problem.params, x), partial(problem.params, x), rtol=1e-9
    )
    nothing = exact.all_completions(problem.log_p, num_missing=5)
    got = nothing(problem.params, jnp.full(5, jnp.nan))
    np.testing.assert_allclose(got, 0.0, atol=1e-12)


@pytest.mark.slow
def test_another_number_of_holes_than_promised_gives_nan_and_none_the_evidence(x64):
    problem = problems.binary_model()
    x = jnp.array([1.0, jnp.nan, 0.0, jnp.nan, 1.0])
    for num in (0, 1, 3):
        summed = exact.all_completions(problem.log_p, num_missing=num)
        assert jnp.isnan(summed(problem.params, x))
    whole, x = exact.all_completions(problem.log_p, num_missing=0), jnp.ones(5)
    expected = problem.log_p(problem.params, x)
    np.testing.assert_allclose(whole(problem.params, x), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="num_missing must not be negative, got -1"):
        exact.all_completions(problem.log_p, num_missing=-1)
    with pytest.raises(ValueError, match="25 bits"):
        exact.all_completions(problem.log_p, num_missing=25)


def test_a_q_that_is_no_normal_is_refused_though_its_h_could_be_ones():
    generative, _ = problems.bernoulli_vae()
    coupling = flows.affine_coupling(networks.mlp(1, (4,), 2), 2)
    q = vae.encoder_model(
        networks.linear(6, 4), posteriors.flow(posteriors.diag_normal(2), coupling)
    )
    model = vae.model(generative, q)
    log_p = exact.grid_quadrature(generative, **GRID)
    for build in (
        lambda: exact.elbo(model, num_latents=2),
        lambda: exact.gauss_hermite(model, num_latents=2),
        lambda: exact.posterior_divergence(model, log_p, num_latents=2),
    ):
        with pytest.raises(ValueError, match="or a full_normal, got flow"):
            build()


# Between two posteriors


@pytest.mark.slow
def test_the_divergence_between_two_posteriors_is_that_of_the_normals_they_are(x64):
    theta = [
        ppca.parameters(
            jnp.array([[0.9, 0.2], [-0.3, 0.8], [0.4, scale]]),
            jnp.array([0.1, 0.0, -0.2]),
            jnp.log(scale),
        )
        for scale in (0.7, 1.1)
    ]
    both = [Params(part, ()) for part in theta]
    divergence = exact.divergence_between_posteriors(
        ppca.generative(2, (3,)), num_latents=2, num_nodes=100, limit=8.0
    )
    x = jnp.array([0.4, -1.0, 0.7])
    normals = []
    for params in both:
        h = ppca.recognition(2).encode(params, x)
        mean, scale_tril = posteriors.mean_and_scale_tril(h, 2)
        normals += [mean, scale_tril @ scale_tril.T]
    got = jax.jit(divergence)(*both, x)
    assert got > 0.1
    np.testing.assert_allclose(got, _normal_to_normal(*normals), rtol=1e-9)
    assert jax.jit(divergence)(both[0], both[0], x) == 0.0


def test_nodes_that_a_prior_rules_out_are_no_part_of_either_posterior(x64):
    problem = ppca.generative(1, (3,))

    def bounded(params, z):
        return jnp.where(jnp.abs(z[0]) < 1.0, -jnp.log(2.0), -jnp.inf)

    generative = problem._replace(log_prior=bounded)
    params = [Params(problem.init(jax.random.key(seed)), ()) for seed in (0, 1)]
    grid = {"num_latents": 1, "num_nodes": 400, "limit": 2.0}
    x = jnp.array([0.4, -1.0, 0.7])
    divergence = exact.divergence_between_posteriors(generative, **grid)
    z = np.linspace(-1.0, 1.0, 20_001)[1:-1, None]
    logs = [
        jax.vmap(lambda one, theta=theta: log_joint(generative, theta, x, one))(
            jnp.asarray(z)
        )
        for theta in params
    ]
    log_p, log_other = (np.asarray(jax.nn.log_softmax(each)) for each in logs)
    expected = np.exp(log_p) @ (log_p - log_other)
    got = jax.jit(divergence)(*params, x)
    np.testing.assert_allclose(got, expected, rtol=0.02)
