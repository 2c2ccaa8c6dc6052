"""Priors made of the codes of training rows, `exemplars.with_exemplar_prior`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import model_rows, problems, testing
from vae_jax import exemplars, networks, posteriors, types, vae
from vae_jax.estimators import sgvb
from vae_jax.types import Batch

X_SHAPE = (2, 3)
NUM_IMAGES = 8
ROWS = np.array([3, 5, 6, 7, 11, 12, 20, 21])  # of the data set
LOG_STD = -0.4


def _images():
    rng = np.random.default_rng(0)
    return (rng.uniform(size=(NUM_IMAGES, *X_SHAPE)) < 0.4).astype(float)


def _base(num_latents=1):
    encoder = networks.mlp(
        6, (4,), 2 * num_latents, initializer=networks.normal(std=0.6)
    )
    q = vae.encoder_model(encoder, posteriors.diag_normal(num_latents))
    p, _ = problems.bernoulli_vae(x_shape=X_SHAPE, num_latents=num_latents)
    return vae.model(p, q)


def _of_eight(num_latents=1):
    """The three forms of the model of eight images, and parameters."""
    made = exemplars.with_exemplar_prior(
        _base(num_latents), jnp.asarray(_images()), jnp.asarray(ROWS)
    )
    params = jax.jit(made.model.init)(jax.random.key(0))
    prior = {"prior": {"log_std": jnp.asarray(LOG_STD, jnp.result_type(float))}}
    return made, params._replace(generative=params.generative | prior)


def _codes(model, params):
    """The mean of q at each image, [8, D]."""
    h = jax.vmap(model.recognition.encode, (None, 0))(params, jnp.asarray(_images()))
    return np.asarray(jnp.split(h, 2, axis=1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("row", [None, *ROWS, 4])
def test_the_prior_is_scipys_mixture_of_the_others(x64, row):
    made, params = _of_eight(2)
    model = made.model if row is None else made.without(jnp.asarray(row))
    z = np.array([0.3, -1.0])
    each = [
        stats.norm.pdf(z, mean, np.exp(LOG_STD)).prod()
        for mean, other in zip(_codes(model, params), ROWS, strict=True)
        if other != row
    ]
    assert len(each) == (NUM_IMAGES - 1 if row in ROWS else NUM_IMAGES)
    got = jax.jit(model.generative.log_prior)(params, jnp.asarray(z))
    np.testing.assert_allclose(got, np.log(np.mean(each)), rtol=1e-9)


GRID, STEP = np.linspace(-12.0, 12.0, 3001, retstep=True)


def _by_quadrature(made, x, *, row=None):
    """params -> log p(x) and the ELBO of one latent, by sums over a grid."""
    model = made.model

    def exact(params):
        codes = jax.vmap(model.recognition.encode, (None, 0))(
            params, jnp.asarray(_images())
        )[:, 0]
        others = np.array([other != row for other in ROWS])
        std = jnp.exp(params.generative["prior"]["log_std"])
        each = -0.5 * ((GRID[:, None] - codes[None, others]) / std) ** 2 - jnp.log(
            std * np.sqrt(2.0 * np.pi)
        )
        log_prior = jax.nn.logsumexp(each, axis=1) - np.log(others.sum())
        terms = jax.vmap(model.generative.log_likelihood_terms, (None, None, 0))
        log_joint = log_prior + terms(params, x, GRID[:, None]).sum((1, 2))
        mean, log_q_std = model.recognition.encode(params, x)
        log_q = -0.5 * ((GRID - mean) / jnp.exp(log_q_std)) ** 2 - log_q_std
        log_q -= 0.5 * np.log(2.0 * np.pi)
        log_p = jax.nn.logsumexp(log_joint) + np.log(STEP)
        return log_p, STEP * (jnp.exp(log_q) * (log_joint - log_q)).sum()

    return exact


@pytest.mark.slow
def test_the_evidence_of_eight_images_is_that_of_a_quadrature(x64):
    """p(x) is the mean of p(x | z) over the prior's own samples."""
    made, params = _of_eight()
    p, keys = made.model.generative, jax.random.split(jax.random.key(1), 20_000)
    zs = jax.jit(jax.vmap(p.sample_prior, (0, None)))(keys, params)
    log_likelihood = jax.jit(jax.vmap(p.log_likelihood_terms, in_axes=(None, None, 0)))
    for x in map(jnp.asarray, _images()):
        log_p, elbo = jax.jit(_by_quadrature(made, x))(params)
        assert elbo < log_p
        densities = np.exp(log_likelihood(params, x, zs).sum((1, 2)))
        testing.assert_mean_equals(densities, np.exp(log_p))


@pytest.mark.slow
def test_a_batch_trains_each_row_on_the_bound_without_itself(x64):
    """Value and gradient of the mean over the batch, the last row no exemplar."""
    made, params = _of_eight()
    index = jnp.array([5, 12, 21, 4])
    x = jnp.asarray(_images()[[1, 5, 7, 0]])
    batch = Batch(x, index, jnp.ones(4))
    objective = types.per_row(
        lambda key, params, x, index: sgvb.sgvb_a(made.without(index), num_samples=4)(
            key, params, x
        )
    )

    def mean(key, params):
        nats, memory, logged = objective.value(key, params, (), batch)
        assert (memory, logged) == ((), {})
        return nats.mean()

    def exact(params):
        each = [
            _by_quadrature(made, x[i], row=row)(params)[1]
            for i, row in enumerate((5, 12, 21, 4))
        ]
        return jnp.stack(each).mean()

    keys = jax.random.split(jax.random.key(2), 2000)
    sampled = jax.vmap(jax.value_and_grad(mean, argnums=1), (0, None))
    values, slopes = jax.jit(sampled)(keys, params)
    value, slope = jax.jit(jax.value_and_grad(exact))(params)
    testing.assert_mean_equals(values, value)
    testing.assert_mean_equals(slopes, slope)
    with_itself = _by_quadrature(made, x[0])(params)[1]
    alone = _by_quadrature(made, x[0], row=5)(params)[1]
    assert with_itself > alone + 0.01  # so that the test can see the difference


@pytest.mark.slow
def test_a_batch_encodes_the_exemplars_once():
    made, params = _of_eight(2)

    def log_prior(params, index, z):
        return made.without(index).generative.log_prior(params, z)

    zs, indices = jnp.zeros((11, 5, 2)), jnp.arange(11)  # examples, samples
    batched = jax.vmap(jax.vmap(log_prior, (None, None, 0)), (None, 0, 0))
    program = jax.make_jaxpr(batched)(params, indices, zs)
    assert sorted(testing.shapes_of_products(program.jaxpr)) == [(8, 4), (8, 4)]


@pytest.mark.slow
def test_exemplars_that_are_fixed_give_the_same_model_without_data():
    made, params = _of_eight(2)
    fixed = jax.jit(made.fix)(params)
    template = jax.eval_shape(made.fixed.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(fixed, template)
    np.testing.assert_allclose(
        fixed.generative["prior"]["mean"], _codes(made.model, params), rtol=1e-6
    )
    alone = exemplars.with_fixed_exemplars(_base(2), num_exemplars=NUM_IMAGES)
    x, key = jnp.asarray(_images()[0]), jax.random.key(1)
    for model in (made.fixed, alone):
        h = model.recognition.encode(params, x)
        chex.assert_trees_all_close(
            model.draw(jax.random.clone(key), fixed, x, h),
            made.model.draw(jax.random.clone(key), params, x, h),
            rtol=1e-5,
        )


@pytest.mark.slow
@pytest.mark.parametrize("row", [None, 5])
def test_samples_of_the_prior_have_the_moments_of_the_mixture(row):
    made, params = _of_eight(2)
    model = made.model if row is None else made.without(jnp.asarray(row))
    keys = jax.random.split(jax.random.key(1), 20_000)
    z = jax.jit(jax.vmap(model.generative.sample_prior, (0, None)))(keys, params)
    mean = _codes(model, params)[row != ROWS] if row else _codes(model, params)
    testing.assert_mean_equals(z, mean.mean(0))
    testing.assert_mean_equals(z**2, (mean**2).mean(0) + np.exp(2.0 * LOG_STD))


@pytest.mark.slow
def test_the_density_is_finite_far_from_every_exemplar():
    made, params = _of_eight(2)
    log_prior = made.without(jnp.asarray(5)).generative.log_prior
    value, slopes = jax.value_and_grad(log_prior)(params, jnp.array([80.0, -90.0]))
    assert value < -100.0  # its density is 0 in float32
    chex.assert_tree_all_finite((value, slopes))


@pytest.mark.slow
def test_the_rest_of_the_model_starts_as_it_would_with_another_prior():
    made, base = _of_eight()[0], _base()
    key = jax.random.key(3)
    theta, expected = (
        m.generative.init(jax.random.clone(key)) for m in (made.model, base)
    )
    chex.assert_trees_all_equal(theta["decoder"], expected["decoder"])
    np.testing.assert_array_equal(theta["prior"]["log_std"], 0.0)


def test_the_prior_that_exemplars_replace_may_read_phi():
    (vamp,) = (row for row in model_rows.ROWS if row.name == "vamp")
    model = exemplars.with_fixed_exemplars(vamp.make(), num_exemplars=3)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert params.generative["prior"]["mean"].shape == (3, 2)


def test_what_makes_no_exemplar_prior_is_refused():
    x, rows = jnp.asarray(_images()), jnp.asarray(ROWS)
    with pytest.raises(ValueError, match=r"two exemplars or more .* \(1, 2, 3\)"):
        exemplars.with_exemplar_prior(_base(), x[:1], rows[:1])
    with pytest.raises(ValueError, match=r"the row of each, got .* index of \(7,\)"):
        exemplars.with_exemplar_prior(_base(), x, rows[:7])
    with pytest.raises(ValueError, match="num_exemplars must be positive, got 0"):
        exemplars.with_fixed_exemplars(_base(), num_exemplars=0)
    bits = problems.binary_model()
    model = vae.model(bits.generative, bits.recognition._replace(moments=None))
    with pytest.raises(ValueError, match=r"the mean of q.*has none in closed form"):
        exemplars.with_exemplar_prior(model, jnp.ones((2, 5)), jnp.arange(2))
