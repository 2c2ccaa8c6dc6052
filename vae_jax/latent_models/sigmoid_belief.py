"""Sigmoid belief networks: layers of binary latents, each given the one above it.

z is the concatenation [z_1, ..., z_L] with z_1 next to x and z_L at the top. Saul,
Jaakkola & Jordan 1996 (Mean field theory for sigmoid belief networks); with a
recognition network, Mnih & Gregor 2014 (arXiv:1402.0030).
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vae_jax import likelihoods, networks, posteriors, priors, vae
from vae_jax.types import (
    Family,
    Generative,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
    conditional,
)


def generative(
    layer_sizes: Sequence[int],
    x_shape: tuple[int, ...],
    *,
    initializer: networks.Initializer | None = None,
) -> Generative:
    r"""p(z_L) p(z_{L-1} | z_L) ... p(x | z_1), all Bernoulli, for binary x.

    Saul et al. 1996: the top prior has learned logits, those of z_l are
    $W_l z_{l+1} + b_l$ and those of x are $W_0 z_1 + b_0$. `log_prior` is that of all
    layers, log p(z_1, ..., z_L) in nats.

    Its parameters are a dictionary with `prior`, `decoder` for x and, for every layer
    that has one above it, `layer_1`, ..., `layer_{L-1}`.

    Args:
        layer_sizes: bits of z_1, ..., z_L.
        x_shape: shape of one observation.
        initializer: of the affine maps; `networks.glorot()` where none is given.

    Raises:
        ValueError: for no layer, or a size below one.
    """
    sizes, split = _layers(layer_sizes)
    likelihood = likelihoods.bernoulli(x_shape)
    prior = priors.bernoulli(sizes[-1])
    decoder = networks.linear(sizes[0], likelihood.width, initializer=initializer)
    maps = [  # maps[i]: z_{i+2} to the logits of z_{i+1}
        networks.linear(above, below, initializer=initializer)
        for below, above in itertools.pairwise(sizes)
    ]
    bits = [posteriors.bernoulli(size) for size in sizes]

    def init(key: PRNGKey) -> PyTree:
        key_prior, key_decoder, *keys = jax.random.split(key, 2 + len(maps))
        layers = {
            _name(i): net.init(key)
            for i, (net, key) in enumerate(zip(maps, keys, strict=True))
        }
        start = {"prior": prior.init(key_prior), "decoder": decoder.init(key_decoder)}
        return start | layers

    def sample_prior(key: PRNGKey, params: Params) -> Array:
        key_top, *keys = jax.random.split(key, len(sizes))
        theta = params.generative
        zs = [prior.sample(key_top, theta["prior"], jnp.zeros((0,)))]
        for i in reversed(range(len(maps))):
            logits = maps[i].apply(theta[_name(i)], zs[0])
            zs.insert(0, bits[i].sample(keys[i], (), logits))
        return jnp.concatenate(zs)

    def log_prior(params: Params, z: Array) -> Scalar:
        theta, zs = params.generative, split(z)
        nats = prior.log_prob(theta["prior"], jnp.zeros((0,)), zs[-1])
        for i, net in enumerate(maps):
            logits = net.apply(theta[_name(i)], zs[i + 1])
            nats = nats + bits[i].log_prob((), logits, zs[i])
        return nats

    def decode(params: Params, z: Array) -> Array:
        return decoder.apply(params.generative["decoder"], split(z)[0])

    return Generative(
        init,
        sample_prior,
        log_prior,
        lambda params, x, z: likelihood.log_prob_terms((), decode(params, z), x),
        lambda key, params, z: likelihood.sample(key, (), decode(params, z)),
        lambda params, z: likelihood.mean((), decode(params, z)),
        Family("layers of bits")
        if maps
        else Family(
            "bernoulli", lambda params: (params.generative["prior"]["logits"],)
        ),
        likelihood.quantity,
    )


def recognition(
    layer_sizes: Sequence[int],
    x_shape: tuple[int, ...],
    *,
    hidden: Sequence[int] = (),
    initializer: networks.Initializer | None = None,
) -> Recognition:
    """q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}), all Bernoulli, given upwards.

    Mnih & Gregor 2014 (arXiv:1402.0030). h is the logits of z_1 and holds all of q for
    one layer only: q is then factorial, `posteriors.bernoulli`. The other layers'
    networks are read from params.recognition, a dictionary with `encoder`, `layer_1`,
    ..., `layer_{L-1}`; estimators for a factorial q do not fit those.

    Args:
        layer_sizes: bits of z_1, ..., z_L.
        x_shape: shape of one observation.
        hidden: deterministic units of every network; empty for affine maps.
        initializer: of the networks; `networks.glorot()` where none is given.

    Raises:
        ValueError: for no layer, or a size below one.
    """
    sizes, split = _layers(layer_sizes)
    num_pixels = likelihoods.bernoulli(x_shape).width
    encoder = networks.mlp(num_pixels, hidden, sizes[0], initializer=initializer)
    maps = [  # maps[i]: z_{i+1} to the logits of z_{i+2}
        networks.mlp(below, hidden, above, initializer=initializer)
        for below, above in itertools.pairwise(sizes)
    ]
    bits = [posteriors.bernoulli(size) for size in sizes]

    def init(key: PRNGKey) -> PyTree:
        key_encoder, *keys = jax.random.split(key, 1 + len(maps))
        layers = {
            _name(i): net.init(key)
            for i, (net, key) in enumerate(zip(maps, keys, strict=True))
        }
        return {"encoder": encoder.init(key_encoder)} | layers

    def encode(params: Params, x: Array) -> Array:
        return encoder.apply(params.recognition["encoder"], x)

    def sample(key: PRNGKey, phi: PyTree, h: Array) -> Array:
        key_first, *keys = jax.random.split(key, len(sizes))
        zs = [bits[0].sample(key_first, (), h)]
        for i, net in enumerate(maps):
            logits = net.apply(phi[_name(i)], zs[i])
            zs.append(bits[i + 1].sample(keys[i], (), logits))
        return jnp.concatenate(zs)

    def log_prob(phi: PyTree, h: Array, z: Array) -> Scalar:
        zs = split(z)
        nats = bits[0].log_prob((), h, zs[0])
        for i, net in enumerate(maps):
            logits = net.apply(phi[_name(i)], zs[i])
            nats = nats + bits[i + 1].log_prob((), logits, zs[i + 1])
        return nats

    layers = conditional(
        Family("layers of bits") if maps else bits[0].family,
        (sum(sizes),),
        width=sizes[0],
        sample=sample,
        log_prob=log_prob,
        moments=None if maps else bits[0].moments,
    )
    return vae.recognition(
        encode, layers, init=init, read=lambda params: params.recognition
    )


def _layers(
    layer_sizes: Sequence[int],
) -> tuple[tuple[int, ...], Callable[[Array], list[Array]]]:
    """The sizes as a checked tuple, and z -> [z_1, ..., z_L] for z of their length."""
    sizes = tuple(layer_sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"layer_sizes must be positive, at least one, got {sizes}")
    ends = np.cumsum(sizes)[:-1]

    def split(z: Array) -> list[Array]:
        if z.shape != (sum(sizes),):
            raise ValueError(f"z must be [{sum(sizes)}], got {z.shape}")
        return jnp.split(z, ends)

    return sizes, split


def _name(i: int) -> str:
    return f"layer_{i + 1}"
