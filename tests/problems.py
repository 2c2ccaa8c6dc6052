"""Small models with known answers."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tests import testing
from vae_jax import flows, likelihoods, networks, posteriors, priors, vae
from vae_jax.types import (
    Family,
    Generative,
    Model,
    Network,
    Params,
    Recognition,
    Scalar,
    log_joint,
)


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

    @property
    def model(self) -> Model:
        """The pair, as estimators and evaluators take it."""
        return vae.model(self.generative, self.recognition)


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

    exact = vae.recognition(encode_exactly, density)
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


def k_sample_bound(
    problem: LinearGaussian, *, num_samples: int, power: float = 1.0
) -> Callable[[Params, Array], Scalar]:
    """(params, x) -> E[log (1/K) sum_k w_k^power] / power, for one latent.

    By quadrature over z, so it holds for any K and differentiates. At power 1 it is
    L_K; at 1 - alpha the K-sample Renyi bound. In double precision.
    """
    eps = jnp.linspace(-9.0, 9.0, 361)
    weights = jax.nn.softmax(-0.5 * eps**2)

    def bound(params: Params, x: Array) -> Scalar:
        h = problem.recognition.encode(params, x)

        def log_weight(eps: Array) -> Scalar:
            z = h[:1] + jnp.exp(h[1:]) * eps
            log_p = log_joint(problem.generative, params, x, z)
            return log_p - problem.recognition.log_prob(params, h, z)

        log_w = jax.vmap(log_weight)(eps[:, None])
        return (
            testing.expected_log_mean_exp(
                power * log_w, weights, num_samples=num_samples
            )
            / power
        )

    return jax.jit(bound)


def learned_prior() -> LinearGaussian:
    """The problem below a prior whose mean and scale are learned."""
    problem = linear_gaussian()
    flow = flows.inverse_autoregressive(networks.made(1, ()), 1)
    generative = vae.decoder_model(
        networks.linear(1, 2),
        posteriors.flow(priors.standard_normal(1), flow),
        likelihoods.normal((2,), std=0.8),
    )
    dtype = jnp.result_type(float)
    theta = generative.init(jax.random.key(0))
    theta["decoder"] = problem.params.generative["decoder"]
    theta["prior"]["flow"]["output"]["bias"] = jnp.array([0.4, -0.6], dtype)
    params = problem.params._replace(generative=theta)
    return problem._replace(generative=generative, params=params)


def without_closed_forms(problem: LinearGaussian) -> LinearGaussian:
    """The problem with a q of a family that no closed form knows."""
    separate = problem.recognition._replace(family=Family("a normal of one's own"))
    return problem._replace(recognition=separate)


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


def binary_rows(num_bits: int) -> np.ndarray:
    """Every vector of that many bits, [2^D, D]."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=num_bits)))


class BinaryModel(NamedTuple):
    """Binary latents below a learned prior, and what is known of them exactly.

    The closed forms sum over the table of all latents, apart from the library's own
    formulas, and differentiate: `jax.grad(problem.elbo)` is exact in theta and phi.
    """

    generative: Generative
    recognition: Recognition  # posteriors.bernoulli: h is the logits [D]
    params: Params
    elbo: Callable[[Params, Array], Scalar]  # params, x -> nats
    log_p: Callable[[Params, Array], Scalar]  # params, x -> log p(x), nats
    table: Callable[[Params, Array], tuple[Array, Array, Array]]
    # params, x -> z [2^D, D], q(z | x) [2^D], p(x, z) [2^D]

    @property
    def model(self) -> Model:
        """The pair, as estimators and evaluators take it."""
        return vae.model(self.generative, self.recognition)


def binary_model(
    *, num_latents: int = 4, num_pixels: int = 5, scale: float = 1.0, seed: int = 0
) -> BinaryModel:
    """A sigmoid belief network of one layer and an affine encoder, all N(0, scale^2).

    z_d ~ Bernoulli(sigmoid(a_d)), x | z ~ Bernoulli(sigmoid(W z + b)), q(z | x) =
    Bernoulli(sigmoid(V x + c)); x [num_pixels] of 0. and 1.
    """
    double = jnp.result_type(float) == jnp.float64
    return _binary_model(num_latents, num_pixels, scale, seed, double)


@functools.cache
def _binary_model(
    num_latents: int, num_pixels: int, scale: float, seed: int, double: bool
) -> BinaryModel:
    del double  # as in _linear_gaussian
    start = networks.normal(std=scale)
    generative = vae.decoder_model(
        networks.linear(num_latents, num_pixels, initializer=start),
        priors.bernoulli(num_latents),
        likelihoods.bernoulli((num_pixels,)),
    )
    recognition = vae.encoder_model(
        networks.linear(num_pixels, num_latents, initializer=start),
        posteriors.bernoulli(num_latents),
    )
    key_theta, key_phi, key_prior = jax.random.split(jax.random.key(seed), 3)
    theta = jax.jit(generative.init)(key_theta)
    theta["prior"] = {"logits": scale * jax.random.normal(key_prior, (num_latents,))}
    params = Params(theta, jax.jit(recognition.init)(key_phi))
    rows = binary_rows(num_latents)

    def chances(logits: Array, bits: Array) -> Array:
        p = 1.0 / (1.0 + jnp.exp(-logits))
        return jnp.prod(bits * p + (1.0 - bits) * (1.0 - p), axis=-1)

    def table(params: Params, x: Array) -> tuple[Array, Array, Array]:
        z = jnp.asarray(rows, x.dtype)
        decoder = params.generative["decoder"]["output"]
        encoder = params.recognition["encoder"]["output"]
        logits_x = z @ decoder["kernel"] + decoder["bias"][None]
        logits_q = x @ encoder["kernel"] + encoder["bias"]
        p_z = chances(params.generative["prior"]["logits"][None], z)
        return z, chances(logits_q[None], z), p_z * chances(logits_x, x[None])

    def elbo(params: Params, x: Array) -> Scalar:
        _, q, p = table(params, x)
        return jnp.sum(q * jnp.log(p / q))

    def log_p(params: Params, x: Array) -> Scalar:
        return jnp.log(jnp.sum(table(params, x)[2]))

    return BinaryModel(
        generative, recognition, params, jax.jit(elbo), jax.jit(log_p), jax.jit(table)
    )


def k_sample_bound_of_table(
    problem: BinaryModel, *, num_samples: int
) -> Callable[[Params, Array], Scalar]:
    """(params, x) -> L_K of binary latents, exactly, from the table of them all."""

    def bound(params: Params, x: Array) -> Scalar:
        _, q, p = problem.table(params, x)
        return testing.expected_log_mean_exp(
            jnp.log(p) - jnp.log(q), q, num_samples=num_samples
        )

    return bound


def log_q_of_dreams(problem: BinaryModel) -> Callable[[Params, Array], Scalar]:
    """(params, x) -> E[log q(z | x)] over the model's own x and z, held fixed.

    From the tables of every x: what the sleep phase climbs in phi, whatever x it sees.
    """
    num_pixels = problem.params.generative["decoder"]["output"]["bias"].shape[0]
    every_x = binary_rows(num_pixels)

    def fit(params: Params, x: Array) -> Scalar:
        fixed = params._replace(generative=jax.lax.stop_gradient(params.generative))

        def one(x: Array) -> Scalar:
            _, q, p = problem.table(fixed, x)
            return p @ jnp.log(q)  # p(x, z): the posterior weighted with p(x)

        return jax.vmap(one)(jnp.asarray(every_x, x.dtype)).sum()

    return fit


class CategoricalModel(NamedTuple):
    """One-hot latents [D, C] below a learned prior, and their ELBO exactly."""

    generative: Generative
    recognition: Recognition  # posteriors.categorical: h is the logits, [D, C] raveled
    params: Params
    elbo: Callable[[Params, Array], Scalar]  # params, x -> nats, over all C^D choices

    @property
    def model(self) -> Model:
        """The pair, as estimators and evaluators take it."""
        return vae.model(self.generative, self.recognition)


def categorical_model(
    *, num_latents: int = 2, num_classes: int = 3, num_pixels: int = 5
) -> CategoricalModel:
    """x | z ~ Bernoulli(sigmoid(W z + b)), q(z | x) = Cat(softmax(V x + c))."""
    double = jnp.result_type(float) == jnp.float64
    return _categorical_model(num_latents, num_classes, num_pixels, double)


@functools.cache
def _categorical_model(
    num_latents: int, num_classes: int, num_pixels: int, double: bool
) -> CategoricalModel:
    del double  # as in _linear_gaussian
    start, shape = networks.normal(std=1.0), (num_latents, num_classes)
    generative = vae.decoder_model(
        networks.linear(math.prod(shape), num_pixels, initializer=start),
        priors.categorical(*shape),
        likelihoods.bernoulli((num_pixels,)),
    )
    recognition = vae.encoder_model(
        networks.linear(num_pixels, math.prod(shape), initializer=start),
        posteriors.categorical(*shape),
    )
    keys = jax.random.split(jax.random.key(7), 3)
    theta = jax.jit(generative.init)(keys[0])
    theta["prior"] = {"logits": jax.random.normal(keys[1], shape)}
    params = Params(theta, jax.jit(recognition.init)(keys[2]))
    choices = itertools.product(np.eye(num_classes), repeat=num_latents)
    rows = np.array(list(choices))  # [C^D, D, C]

    def chances(logits: Array, rows: Array) -> Array:
        p = jnp.exp(logits)
        p = p / p.sum(axis=1, keepdims=True)
        return jnp.prod((rows * p[None]).sum(axis=2), axis=1)

    def elbo(params: Params, x: Array) -> Scalar:
        z = jnp.asarray(rows, x.dtype)
        decoder = params.generative["decoder"]["output"]
        encoder = params.recognition["encoder"]["output"]
        logits_x = z.reshape(len(rows), -1) @ decoder["kernel"] + decoder["bias"][None]
        p = 1.0 / (1.0 + jnp.exp(-logits_x))
        p_x = jnp.prod(x[None] * p + (1.0 - x[None]) * (1.0 - p), axis=1)
        p_z = chances(params.generative["prior"]["logits"], z)
        q = chances((x @ encoder["kernel"] + encoder["bias"]).reshape(shape), z)
        return jnp.sum(q * jnp.log(p_x * p_z / q))

    return CategoricalModel(generative, recognition, params, jax.jit(elbo))


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
