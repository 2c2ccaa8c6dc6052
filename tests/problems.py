"""Small models with known answers."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import likelihoods, networks, posteriors, priors, vae
from vae_jax.types import Generative, Network, Params, Recognition, Scalar


class LinearGaussian(NamedTuple):
    """Probabilistic PCA with an affine encoder, and what is known of it exactly.

    The closed forms are written from matrices, apart from the library's own formulas,
    and differentiate: `jax.grad(problem.elbo)` is the exact gradient in theta and phi.
    """

    generative: Generative
    recognition: Recognition  # diagonal normal, in general not the posterior
    params: Params
    exact: Recognition  # p(z | x), for one latent
    log_p: Callable[[Params, Array], Scalar]  # params, x -> log p(x), nats
    reconstruction: Callable[[Params, Array], Scalar]  # E_q[log p(x | z)], nats
    kl: Callable[[Params, Array], Scalar]  # KL(q || p(z)), nats
    elbo: Callable[[Params, Array], Scalar]  # reconstruction - kl, nats
    posterior: Callable[[Params, Array], tuple[Array, Array]]  # mean [D], cov [D, D]


def linear_gaussian(
    *, num_latents: int = 1, num_features: int = 2, std: float = 0.8, seed: int = 0
) -> LinearGaussian:
    """z ~ N(0, I), x | z ~ N(W z + b, std^2 I), q(z | x) = N(V x + c, diag(e^(2s)))."""
    double = jnp.result_type(float) == jnp.float64
    return _linear_gaussian(num_latents, num_features, std, seed, double)


@functools.cache  # tests share the compiled closed forms
def _linear_gaussian(
    num_latents: int, num_features: int, std: float, seed: int, double: bool
) -> LinearGaussian:
    del double  # of the key of the cache alone: `init` sees the precision by itself
    start = networks.normal(std=0.6)
    density = posteriors.diag_normal(num_latents)
    generative = vae.decoder_model(
        networks.linear(num_latents, num_features, initializer=start),
        priors.standard_normal(num_latents),
        likelihoods.normal((num_features,), std=std),
    )
    recognition = vae.encoder_model(
        networks.linear(num_features, 2 * num_latents, initializer=start), density
    )
    key_theta, key_phi = jax.random.split(jax.random.key(seed))
    params = Params(
        jax.jit(generative.init)(key_theta), jax.jit(recognition.init)(key_phi)
    )
    log_2pi = math.log(2.0 * math.pi)

    def decoder(params: Params) -> tuple[Array, Array]:
        layer = params.generative["decoder"]["output"]
        return layer["kernel"].T, layer["bias"]

    def encoded(params: Params, x: Array) -> tuple[Array, Array]:
        layer = params.recognition["encoder"]["output"]
        mean, log_std = jnp.split(layer["kernel"].T @ x + layer["bias"], 2)
        return mean, log_std

    def log_p(params: Params, x: Array) -> Scalar:
        w, b = decoder(params)
        covariance = w @ w.T + std**2 * jnp.eye(num_features)
        distance = (x - b) @ jnp.linalg.solve(covariance, x - b)
        log_det = jnp.linalg.slogdet(covariance)[1]
        return -0.5 * (distance + log_det + num_features * log_2pi)

    def posterior(params: Params, x: Array) -> tuple[Array, Array]:
        w, b = decoder(params)
        covariance = jnp.linalg.inv(jnp.eye(num_latents) + w.T @ w / std**2)
        return covariance @ w.T @ (x - b) / std**2, covariance

    def reconstruction(params: Params, x: Array) -> Scalar:
        (w, b), (mean, log_std) = decoder(params), encoded(params, x)
        residual = x - w @ mean - b
        spread = jnp.trace(w @ jnp.diag(jnp.exp(2.0 * log_std)) @ w.T)
        error = (residual @ residual + spread) / std**2
        return -0.5 * (error + num_features * (log_2pi + 2.0 * math.log(std)))

    def kl(params: Params, x: Array) -> Scalar:
        mean, log_std = encoded(params, x)
        variance = jnp.exp(2.0 * log_std)
        return 0.5 * jnp.sum(mean**2 + variance - 1.0 - jnp.log(variance))

    def elbo(params: Params, x: Array) -> Scalar:
        return reconstruction(params, x) - kl(params, x)

    def encode_exactly(params: Params, x: Array) -> Array:
        mean, covariance = posterior(params, x)
        return jnp.concatenate([mean, 0.5 * jnp.log(jnp.diag(covariance))])

    exact = Recognition(
        init=lambda key: (),
        encode=encode_exactly,
        sample=lambda key, params, h: density.sample(key, (), h),
        log_prob=lambda params, h, z: density.log_prob((), h, z),
    )
    return LinearGaussian(
        generative,
        recognition,
        params,
        exact,
        jax.jit(log_p),
        jax.jit(reconstruction),
        jax.jit(kl),
        jax.jit(elbo),
        jax.jit(posterior),
    )


def widened(
    recognition: Recognition, *, log_factor: float, shift: float
) -> Recognition:
    """A proposal beside another: standard deviations scaled up and means moved.

    Around the exact posterior its weights are bounded, so that they have all moments.
    """

    def encode(params: Params, x: Array) -> Array:
        mean, log_std = jnp.split(recognition.encode(params, x), 2)
        return jnp.concatenate([mean + shift, log_std + log_factor])

    return recognition._replace(encode=encode)


def bernoulli_vae(
    *, x_shape: tuple[int, ...] = (2, 3), num_latents: int = 2
) -> tuple[Generative, Recognition]:
    """A small nonlinear VAE of binary images, with no known answer."""
    size = math.prod(x_shape)
    generative = vae.decoder_model(
        networks.mlp(num_latents, (5,), size),
        priors.standard_normal(num_latents),
        likelihoods.bernoulli(x_shape),
    )
    recognition = vae.encoder_model(
        networks.mlp(size, (5,), 2 * num_latents), posteriors.diag_normal(num_latents)
    )
    return generative, recognition


def lecture_decoder(num_latents: int, num_features: int) -> Network:
    """The lecture's worked example: h = [A z + c, B z + d], theta = (A, B, c, d)."""

    def init(key: Array) -> dict[str, Array]:
        shapes = {
            "A": (num_features, num_latents),
            "B": (num_features, num_latents),
            "c": (num_features,),
            "d": (num_features,),
        }
        keys = jax.random.split(key, len(shapes))
        named = zip(keys, shapes.items(), strict=True)
        return {name: jax.random.normal(key, shape) for key, (name, shape) in named}

    def apply(theta: dict[str, Array], z: Array) -> Array:
        mean_logits = theta["A"] @ z + theta["c"]
        return jnp.concatenate([mean_logits, theta["B"] @ z + theta["d"]])

    return Network(init, apply)
