"""Composition: networks and densities in, a joint and a recognition model out."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vae_jax import priors
from vae_jax.types import (
    Conditional,
    Generative,
    Likelihood,
    Network,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
)

_APART = 2**31  # fold_in(key, i) is split(key, n)[i], and no split is as long


def decoder_model(
    decoder: Network, prior: Conditional, likelihood: Likelihood
) -> Generative:
    """p(x, z) from an unconditional prior and a decoder that feeds the likelihood.

    Its parameters are a dictionary with `decoder`, `prior` and `likelihood`.

    Raises:
        ValueError: if the prior is conditional.
    """
    if prior.width != 0:
        raise ValueError(f"the prior is conditional on h of width {prior.width}.")

    def nothing(params: Params) -> Array:
        return jnp.zeros((0,), _dtype(params.generative))

    def init(key: PRNGKey) -> PyTree:
        key_decoder, key_prior, key_likelihood = jax.random.split(key, 3)
        return {
            "decoder": decoder.init(key_decoder),
            "prior": prior.init(key_prior),
            "likelihood": likelihood.init(key_likelihood),
        }

    def decode(params: Params, z: Array) -> Array:
        return decoder.apply(params.generative["decoder"], z)

    def sample_prior(key: PRNGKey, params: Params) -> Array:
        return prior.sample(key, params.generative["prior"], nothing(params))

    def log_prior(params: Params, z: Array) -> Scalar:
        return prior.log_prob(params.generative["prior"], nothing(params), z)

    def log_likelihood_terms(params: Params, x: Array, z: Array) -> Array:
        h = decode(params, z)
        return likelihood.log_prob_terms(params.generative["likelihood"], h, x)

    def sample_observation(key: PRNGKey, params: Params, z: Array) -> Array:
        h = decode(params, z)
        return likelihood.sample(key, params.generative["likelihood"], h)

    def mean_observation(params: Params, z: Array) -> Array:
        return likelihood.mean(params.generative["likelihood"], decode(params, z))

    return Generative(
        init,
        sample_prior,
        log_prior,
        log_likelihood_terms,
        sample_observation,
        mean_observation,
    )


def encoder_model(encoder: Network, posterior: Conditional) -> Recognition:
    """q(z | x) from an encoder that feeds an approximate posterior.

    Its parameters are a dictionary with `encoder` and `posterior`.
    """

    def init(key: PRNGKey) -> PyTree:
        key_encoder, key_posterior = jax.random.split(key)
        return {
            "encoder": encoder.init(key_encoder),
            "posterior": posterior.init(key_posterior),
        }

    def encode(params: Params, x: Array) -> Array:
        return encoder.apply(params.recognition["encoder"], x)

    def sample(key: PRNGKey, params: Params, h: Array) -> Array:
        return posterior.sample(key, params.recognition["posterior"], h)

    def log_prob(params: Params, h: Array, z: Array) -> Scalar:
        return posterior.log_prob(params.recognition["posterior"], h, z)

    return Recognition(init, encode, sample, log_prob)


def _dtype(params: PyTree) -> DTypeLike:
    """What networks and densities of these parameters compute in."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.result_type(float, *floating)


def check_latents(
    generative: Generative, recognition: Recognition, params: Params, x: Array
) -> None:
    """Refuses a q(z | x) whose z has not the shape of the generative model's z.

    A z of another shape would fail deep inside the decoder, or be broadcast and give a
    wrong number. Shapes alone are traced, so a compiled function does not pay for it.

    Raises:
        ValueError: naming both shapes.
    """

    def sample(key: PRNGKey, params: Params, x: Array) -> Array:
        return recognition.sample(key, params, recognition.encode(params, x))

    key = jax.eval_shape(jax.random.key, 0)
    drawn = jax.eval_shape(sample, key, params, x).shape
    wanted = jax.eval_shape(generative.sample_prior, key, params).shape
    if drawn != wanted:
        raise ValueError(
            f"the recognition model draws z of shape {drawn}, but the generative model "
            f"has z of shape {wanted}."
        )


def masked(
    generative: Generative, recognition: Recognition, *, fill: float = 0.0
) -> tuple[Generative, Recognition]:
    r"""The two models of partial observations, in which NaN marks a missing entry.

    Where the observation model factorizes over the entries of x, as `types.Likelihood`
    asks (a mixture of full covariance does not), $\log p(x_{obs}|z)$ is the sum of the
    terms of those that are there: the other terms are zero. q(z | x_obs) is that of x
    with `fill` in the holes, as Mattei & Frellsen 2019 (arXiv:1812.02633) have it.
    Every bound, estimator and evaluator of the pair is then one of log p(x_obs); for x
    without holes it is what it was. A sleep phase still dreams of whole x.

    No NaN reaches a network, a density or a gradient: entries are replaced before
    anything is computed, and terms again after. Likelihoods see zeros in the holes.

    Args:
        generative: the joint p(x, z).
        recognition: its encoder, for complete x.
        fill: what the encoder sees in the holes, in the units of x.

    Raises:
        ValueError: if fill is not finite.
    """
    if not math.isfinite(fill):
        raise ValueError(f"fill must be finite, got {fill}.")

    def log_likelihood_terms(params: Params, x: Array, z: Array) -> Array:
        missing = jnp.isnan(x)
        filled = jnp.where(missing, 0.0, x)
        terms = generative.log_likelihood_terms(params, filled, z)
        return jnp.where(missing, 0.0, terms)

    def encode(params: Params, x: Array) -> Array:
        return recognition.encode(params, jnp.where(jnp.isnan(x), fill, x))

    return (
        generative._replace(log_likelihood_terms=log_likelihood_terms),
        recognition._replace(encode=encode),
    )


def with_baseline(recognition: Recognition, network: Network) -> Recognition:
    """A recognition model that also keeps `network`'s parameters, as `baseline`.

    For estimators whose baseline is a learned function of x (`score_function.nvil`).
    """

    def init(key: PRNGKey) -> PyTree:
        # The recognition model starts as it would without a baseline.
        key_baseline = jax.random.fold_in(jax.random.clone(key), _APART)
        return recognition.init(key) | {"baseline": network.init(key_baseline)}

    return recognition._replace(init=init)


def with_vamp_prior(
    generative: Generative,
    encoder: Network,
    posterior: Conditional,
    *,
    num_components: int,
    x_shape: tuple[int, ...],
) -> Generative:
    r"""The model with the mixture of q at learned pseudo-inputs as its prior.

    Tomczak & Welling 2018 (arXiv:1705.07120) equation 9: $p(z) = \frac1C\sum_c
    q(z | u_c)$, for the recognition model `encoder_model(encoder, posterior)`, of whose
    parameters the prior is a function: its gradient reaches the encoder and the
    pseudo-inputs. u_c is a free parameter clipped to [0, 1], the paper's hardtanh, and
    so for data of that range; it starts uniform there, and outside has no gradient.

    `params.generative["prior"]` holds `pseudo_inputs` [C, *X], in the place of the
    parameters of the prior that the model had. The components do not depend on x or z:
    under `vmap` over examples or samples the C encodings are made once, not per row.

    Args:
        generative: any model of z; its prior is not used.
        encoder: the recognition model's own.
        posterior: the recognition model's own.
        num_components: C.
        x_shape: shape of one observation.

    Raises:
        ValueError: if num_components is below one or x_shape has a size below one.
    """
    if num_components < 1:
        raise ValueError(f"num_components must be positive, got {num_components}.")
    if min(x_shape, default=1) < 1:
        raise ValueError(f"x_shape must have positive sizes, got {x_shape}.")
    mixture = priors.equal_mixture(posterior)

    def init(key: PRNGKey) -> PyTree:
        # The rest starts as it would with another prior.
        key_inputs = jax.random.fold_in(jax.random.clone(key), _APART)
        inputs = jax.random.uniform(key_inputs, (num_components, *x_shape))
        return generative.init(key) | {"prior": {"pseudo_inputs": inputs}}

    def components(params: Params) -> Float[Array, "C H"]:
        inputs = jnp.clip(params.generative["prior"]["pseudo_inputs"], 0.0, 1.0)
        encode = jax.vmap(encoder.apply, in_axes=(None, 0))
        return encode(params.recognition["encoder"], inputs)

    def sample_prior(key: PRNGKey, params: Params) -> Array:
        own = params.recognition["posterior"]
        return mixture.sample(key, own, components(params))

    def log_prior(params: Params, z: Array) -> Scalar:
        own = params.recognition["posterior"]
        return mixture.log_prob(own, components(params), z)

    return generative._replace(
        init=init, sample_prior=sample_prior, log_prior=log_prior
    )
