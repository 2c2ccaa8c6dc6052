"""Sizes that are declared are compared with what arrives: a wrong part is no number."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import (
    discretized,
    factors,
    flows,
    likelihoods,
    networks,
    posteriors,
    priors,
    vae,
)
from vae_jax.estimators import importance, regularized, relaxed, score_function, sgvb
from vae_jax.evaluation import aggregate, completion, marginal
from vae_jax.factors import Factor
from vae_jax.latent_models import gmm, ppca, ppca_bounds
from vae_jax.types import Batch, Network, Params

LIKELIHOODS = {
    "bernoulli": likelihoods.bernoulli,
    "normal": functools.partial(likelihoods.normal, std=1.0),
    "normal_learned_std": likelihoods.normal_learned_std,
    "normal_per_pixel_std": likelihoods.normal_per_pixel_std,
    "continuous_bernoulli": likelihoods.continuous_bernoulli,
    "laplace": likelihoods.laplace,
    "student_t": functools.partial(likelihoods.student_t, degrees=3.0),
    "logistic": functools.partial(discretized.logistic, num_values=16),
    "categorical": functools.partial(discretized.categorical, num_values=16),
}
EVERY_LIKELIHOOD = pytest.mark.parametrize(
    "build", LIKELIHOODS.values(), ids=LIKELIHOODS
)


def _key(seed=0):
    return jax.random.key(seed)


def _model(
    *,
    decoder_width=4,
    encoder_width=4,
    x_shape=(2, 2),
    prior=None,
    posterior=None,
    decoder=None,
    encoder=None,
):
    """A small model of binary images, with parts of other sizes where asked."""
    posterior = posterior or posteriors.diag_normal(2)
    generative = vae.decoder_model(
        decoder or networks.linear(2, decoder_width),
        prior or priors.standard_normal(2),
        likelihoods.bernoulli((2, 2)),
    )
    encoder = encoder or networks.linear(int(np.prod(x_shape)), encoder_width)
    return vae.model(generative, vae.encoder_model(encoder, posterior))


def _elbo(model, x_shape=(2, 2)):
    """Traces estimators A, B's kin and the score function, as a fit would."""
    params = jax.eval_shape(model.init, _key())
    for build in (sgvb.sgvb_a, sgvb.elbo, score_function.leave_one_out):
        objective = build(model, num_samples=2)
        jax.eval_shape(jax.grad(objective, 1), _key(), params, jnp.zeros(x_shape))


# The observation


@EVERY_LIKELIHOOD
@pytest.mark.parametrize(
    ("declared", "x_shape"),
    [
        ((2, 2), (2, 2, 1)),
        ((8, 8), (8, 8, 1)),
        ((4,), (2, 2)),
        ((2, 2), (4,)),
        ((1, 4), (4,)),
        ((4,), (1,)),
        ((2, 2), ()),
    ],
)
def test_an_observation_of_another_shape_is_refused(build, declared, x_shape):
    likelihood = build(declared)
    params, h = likelihood.init(_key()), jnp.zeros(likelihood.width)
    message = re.escape(f"the likelihood is of x of {declared}, got {x_shape}")
    with pytest.raises(ValueError, match=message):
        likelihood.log_prob_terms(params, h, jnp.zeros(x_shape))
    terms = jax.eval_shape(likelihood.log_prob_terms, params, h, jnp.zeros(declared))
    assert terms.shape == declared


@EVERY_LIKELIHOOD
@pytest.mark.parametrize("change", [-1, 1, "one"])
def test_an_output_of_another_width_is_refused_by_every_function(build, change):
    likelihood = build((2, 2))
    width = 1 if change == "one" else likelihood.width + change
    params, h = likelihood.init(_key()), jnp.zeros(width)
    message = rf"reads h of {likelihood.width} entries, got \({width},\)"
    for call in (
        lambda: likelihood.sample(_key(), params, h),
        lambda: likelihood.mean(params, h),
        lambda: likelihood.log_prob_terms(params, h, jnp.zeros((2, 2))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_images_with_an_axis_too_many_are_refused_by_the_whole_model():
    _elbo(_model())
    with pytest.raises(ValueError, match=r"of x of \(2, 2\), got \(2, 2, 1\)"):
        _elbo(_model(), (2, 2, 1))
    _elbo(vae.masked(_model()))
    with pytest.raises(ValueError, match=r"of x of \(2, 2\), got \(2, 2, 1\)"):
        _elbo(vae.masked(_model()), (2, 2, 1))


# Networks


@pytest.mark.parametrize(
    "width",
    [1, 3, 8, *(pytest.param(width, marks=pytest.mark.slow) for width in (2, 5))],
)
def test_a_decoder_of_another_width_is_refused(width):
    model = _model(decoder_width=width)
    message = rf"decoder gives {width} entries, but the likelihood reads 4"
    with pytest.raises(ValueError, match=message):
        _elbo(model)
    params, z = jax.eval_shape(model.init, _key()), jnp.zeros(2)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.generative.mean_observation, params, z)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.generative.sample_observation, _key(), params, z)


@pytest.mark.parametrize(
    "width", [1, 8, *(pytest.param(width, marks=pytest.mark.slow) for width in (2, 12))]
)
def test_an_encoder_of_another_width_is_refused(width):
    with pytest.raises(
        ValueError, match=rf"encoder gives {width} entries, but the posterior reads 4"
    ):
        _elbo(_model(encoder_width=width))


@pytest.mark.parametrize(
    "width", [4, *(pytest.param(width, marks=pytest.mark.slow) for width in (2, 16))]
)
def test_an_encoder_for_four_latents_has_a_mean_and_a_scale_for_each(width):
    model = functools.partial(
        _model,
        posterior=posteriors.diag_normal(4),
        prior=priors.standard_normal(4),
        decoder=networks.linear(4, 4),
    )
    _elbo(model(encoder_width=8))
    with pytest.raises(ValueError, match=f"encoder gives {width} .* posterior reads 8"):
        _elbo(model(encoder_width=width))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        *((2, 2), (1, 4)),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((4, 1), (1, 2, 2))),
    ],
)
def test_a_network_may_give_any_shape_of_the_right_size(shape):
    def shaped(network):
        return Network(
            network.init, lambda params, x: network.apply(params, x).reshape(shape)
        )

    decoder, encoder = networks.linear(2, 4), networks.linear(4, 4)
    flat = _model(decoder=decoder, encoder=encoder)
    other = _model(decoder=shaped(decoder), encoder=shaped(encoder))
    params, x = jax.jit(flat.init)(_key(1)), jnp.ones((2, 2))
    assert other.recognition.encode(params, x).shape == (4,)
    got, expected = (
        jax.jit(sgvb.sgvb_b(model, num_samples=1))(_key(), params, x)
        for model in (other, flat)
    )
    np.testing.assert_array_equal(got, expected)


def test_a_network_between_layers_of_another_width_is_refused():
    layout = factors.layout({"z1": 1, "z2": 1})
    network = networks.linear(1, 3)
    chain = [
        Factor("z1", posteriors.diag_normal(1)),
        Factor("z2", posteriors.diag_normal(1), parent="z1", network=network),
    ]
    model = _model(posterior=factors.joint(layout, chain), encoder_width=2)
    with pytest.raises(
        ValueError, match=r"z2_given_z1 gives \(3,\), .*of z2 reads \[2\]"
    ):
        _elbo(model)


def test_pseudo_inputs_through_an_encoder_of_another_width_are_refused():
    model, encoder = _model(), networks.linear(4, 3)
    generative = vae.with_vamp_prior(
        model.generative,
        encoder,
        posteriors.diag_normal(2),
        num_components=3,
        x_shape=(2, 2),
    )
    recognition = vae.encoder_model(encoder, posteriors.diag_normal(2))
    params = jax.eval_shape(vae.model(generative, recognition).init, _key())
    with pytest.raises(ValueError, match=r"encoder gives 3 .* the posterior reads 4"):
        jax.eval_shape(generative.log_prior, params, jnp.zeros(2))


# The prior


@pytest.mark.parametrize("num_latents", [1, 3])
@pytest.mark.parametrize(
    "prior", [priors.standard_normal, lambda num: priors.normal_mixture(num, 2)]
)
def test_a_prior_of_another_size_is_refused(num_latents, prior):
    model = _model(prior=prior(num_latents))
    message = rf"events of shape \({num_latents},\), got \(2,\)"
    with pytest.raises(ValueError, match=message):
        _elbo(model)


@pytest.mark.parametrize("num_latents", [1, 3])
def test_a_learned_prior_of_another_size_is_refused_by_the_closed_kl_too(num_latents):
    bits = {"posterior": posteriors.bernoulli(2), "encoder_width": 2}
    model = _model(prior=priors.bernoulli(num_latents), **bits)
    params = jax.eval_shape(model.init, _key())
    message = rf"bernoulli as q .* one shape, got \(2,\), \({num_latents},\)"
    assert model.kl
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.kl, params, jnp.zeros(2))
    objective = relaxed.straight_through(model, num_samples=1)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(objective, _key(), params, jnp.zeros((2, 2)))


def _flow_posterior():
    coupling = flows.affine_coupling(networks.linear(1, 2), 2)
    return posteriors.flow(posteriors.diag_normal(2), coupling)


@pytest.mark.parametrize(
    "build",
    [
        sgvb.sgvb_b,
        functools.partial(regularized.free_bits, min_nats=0.1),
        functools.partial(regularized.capacity, nats=1.0, strength=1.0),
        functools.partial(sgvb.closed_elbo, penalty=jnp.sum),
    ],
    ids=["sgvb_b", "free_bits", "capacity", "closed_elbo"],
)
def test_a_closed_form_never_meets_a_density_that_it_is_not_of(build):
    build(_model(), num_samples=1)
    with pytest.raises(
        ValueError, match="KL of a diag_normal q to normal_mixture has no closed form"
    ):
        build(_model(prior=priors.normal_mixture(2, 3)), num_samples=1)
    with pytest.raises(ValueError, match="KL of a flow q to standard_normal has no"):
        build(_model(posterior=_flow_posterior()), num_samples=1)
    with pytest.raises(ValueError, match="KL of a bernoulli q to standard_normal"):
        build(_model(posterior=posteriors.bernoulli(4)), num_samples=1)
    vamp = _model().generative
    vamp = vae.with_vamp_prior(
        vamp,
        networks.linear(4, 4),
        posteriors.diag_normal(2),
        num_components=2,
        x_shape=(2, 2),
    )
    with pytest.raises(ValueError, match="KL of a diag_normal q to vamp has no closed"):
        build(vae.model(vamp, _model().recognition), num_samples=1)


@pytest.mark.slow
def test_estimators_without_a_closed_form_take_any_prior():
    model = _model(prior=priors.normal_mixture(2, 3))
    params, x = jax.jit(model.init)(_key()), jnp.ones((2, 2))
    builders = (sgvb.sgvb_a, sgvb.elbo, importance.iwae)

    @jax.jit
    def values(key, params, x):
        keys = jax.random.split(key, len(builders))
        objectives = [build(model, num_samples=2) for build in builders]
        return [f(key, params, x) for f, key in zip(objectives, keys, strict=True)]

    assert np.isfinite(values(_key(1), params, x)).all()


# Terms under holes


@pytest.mark.parametrize("terms_shape", [(), (1,), (2,), (2, 1)])
def test_terms_that_are_not_one_for_each_entry_leave_no_entry_out(terms_shape):
    whole = _model()

    def log_likelihood_terms(params, x, z):
        terms = whole.generative.log_likelihood_terms(params, x, z)
        return jnp.full(terms_shape, terms.mean())

    generative = whole.generative._replace(log_likelihood_terms=log_likelihood_terms)
    model = vae.masked(vae.model(generative, whole.recognition))
    params = jax.eval_shape(model.init, _key())
    x = jnp.array([[1.0, jnp.nan], [0.0, 1.0]])
    h = jax.eval_shape(model.recognition.encode, params, x)
    message = re.escape(f"terms of shape {terms_shape} for x of (2, 2): only one that")
    for call in (
        lambda params, h: model.generative.log_likelihood_terms(
            params, x, jnp.zeros(2)
        ),
        lambda params, h: model.draw(_key(), params, x, h),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call, params, h)


# What is sampled and weighed elsewhere


@pytest.mark.parametrize("num_latents", [1, 3])
def test_evaluators_refuse_a_q_of_other_latents(num_latents):
    posterior = posteriors.diag_normal(num_latents)
    model = _model(posterior=posterior, encoder_width=2 * num_latents)
    params, x = jax.eval_shape(model.init, _key()), jnp.zeros((2, 2))
    for evaluate in (
        marginal.importance_sampling(model, num_samples=3),
        completion.importance(vae.masked(model), num_samples=3, num_draws=1),
        completion.pseudo_gibbs(vae.masked(model), num_draws=1, num_warmup=1),
    ):
        with pytest.raises(ValueError, match=rf"\({num_latents},\).*\(2,\)"):
            jax.eval_shape(evaluate, _key(1), params, x)
    surgery = aggregate.elbo_surgery(model, num_samples=2, batch_size=1)
    with pytest.raises(ValueError, match=rf"of shape \(2,\), got \({num_latents},\)"):
        jax.eval_shape(surgery, _key(1), params, x[None])


# Models with exact answers


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
@pytest.mark.parametrize("x_shape", [(), (1,), (3,), (4, 1), (2, 4)])
def test_a_mixture_refuses_an_observation_of_another_shape(
    x_shape, covariance, missing
):
    generative = gmm.generative(3, 4, covariance=covariance, missing=missing)
    params, x, z = Params(generative.init(_key()), ()), jnp.zeros(x_shape), jnp.eye(3)
    message = re.escape(f"the mixture is of x of (4,), got {x_shape}")
    for call in (
        lambda: generative.log_likelihood_terms(params, x, z[:1]),
        lambda: gmm.recognition(3, missing=missing).encode(params, x),
        lambda: gmm.log_evidence(params, x, missing=missing),
        lambda: gmm.cluster(params, x, missing=missing),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    fit = gmm.em(missing=missing)
    batch = Batch(jnp.zeros((5, *x_shape)), jnp.arange(5), jnp.ones(5))
    message = re.escape(f"of x of (4,), got rows of {x_shape}")
    with pytest.raises(ValueError, match=message):
        fit.step(_key(), fit.init(_key(1), params), batch)


@pytest.mark.parametrize("x_shape", [(), (1,), (3,), (2, 4)])
def test_ppca_refuses_an_observation_of_another_size(x_shape):
    generative = ppca.generative(2, (2, 2))
    params, x = Params(generative.init(_key()), ()), jnp.zeros(x_shape)
    message = rf"has {x.size} entries, but mu has 4"
    for call in (
        lambda: ppca.recognition(2).encode(params, x),
        lambda: ppca.log_evidence(params, x),
        lambda: ppca_bounds.bound(params, x, jnp.zeros(2), jnp.eye(2)),
        lambda: ppca_bounds.posterior_divergence(params, x, jnp.zeros(2), jnp.eye(2)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
