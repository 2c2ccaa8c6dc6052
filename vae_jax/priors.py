"""Priors p(z): unconditional densities over the latents."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import likelihoods, numerics, reparameterize
from vae_jax.types import (
    Conditional,
    Family,
    PRNGKey,
    PyTree,
    Scalar,
    Transport,
    conditional,
)


def standard_normal(num_latents: int) -> Conditional:
    """N(0, I), with no parameters and no conditioning.

    Raises:
        ValueError: if num_latents is below one.
    """
    numerics.check_positive(num_latents=num_latents)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        del params
        return jax.random.normal(key, (num_latents,), h.dtype)

    def log_prob(params: PyTree, h: Array, z: Float[Array, " D"]) -> Scalar:
        del params, h
        return -(0.5 * z**2 + 0.5 * jnp.log(2.0 * jnp.pi)).sum()

    def moments(params: PyTree, h: Array) -> tuple[Array, Array]:
        del params
        return jnp.zeros((num_latents,), h.dtype), jnp.ones((num_latents,), h.dtype)

    return conditional(
        Family("standard_normal", lambda params, h: ()),
        (num_latents,),
        width=0,
        sample=sample,
        log_prob=log_prob,
        moments=moments,
        transport=Transport(lambda params, h, eps: eps, lambda params, h, z: z),
    )


def bernoulli(num_latents: int) -> Conditional:
    """Independent bits with learned logits [D], which start at zero.

    z is 0. or 1. in the dtype of the logits; samples carry no gradient.

    Raises:
        ValueError: if num_latents is below one.
    """
    numerics.check_positive(num_latents=num_latents)

    def init(key: PRNGKey) -> PyTree:
        del key
        return {"logits": jnp.zeros((num_latents,))}

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        del h
        return numerics.bits(key, params["logits"])

    def log_prob(params: PyTree, h: Array, z: Float[Array, " D"]) -> Scalar:
        del h
        return likelihoods.bernoulli_terms(params["logits"], z).sum()

    return conditional(
        Family("bernoulli", lambda params, h: (params["logits"],)),
        (num_latents,),
        width=0,
        init=init,
        sample=sample,
        log_prob=log_prob,
    )


def categorical(num_latents: int, num_classes: int) -> Conditional:
    """Independent choices among C classes with learned logits, which start at zero.

    z is one-hot, [D, C] in the dtype of the logits; samples carry no gradient.

    Raises:
        ValueError: if num_latents is below one or num_classes below two.
    """
    numerics.check_positive(num_latents=num_latents)
    numerics.check_at_least(2, num_classes=num_classes)

    def init(key: PRNGKey) -> PyTree:
        del key
        return {"logits": jnp.zeros((num_latents, num_classes))}

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, "D C"]:
        del h
        chosen = jax.random.categorical(key, params["logits"])
        return jax.nn.one_hot(chosen, num_classes, dtype=params["logits"].dtype)

    def log_prob(params: PyTree, h: Array, z: Float[Array, "D C"]) -> Scalar:
        del h
        return numerics.times_log(z, jax.nn.log_softmax(params["logits"])).sum()

    return conditional(
        Family("categorical", lambda params, h: (params["logits"],)),
        (num_latents, num_classes),
        width=0,
        init=init,
        sample=sample,
        log_prob=log_prob,
    )


def normal_mixture(num_latents: int, num_components: int) -> Conditional:
    r"""A learned mixture of diagonal normals: $\sum_c \pi_c N(z; \mu_c, \sigma_c^2)$.

    Parameters are `logits` [C] of the weights, `mean` [C, D] and `log_std` [C, D]. They
    start at equal weights, means drawn from N(0, I), so that the components differ, and
    standard deviations of one. The density is summed in logarithms, and so finite far
    from every component. A sample carries the gradient of its component's mean and
    log_std and none of the logits, which are reached through `log_prob` alone.

    Raises:
        ValueError: if num_latents or num_components is below one.
    """
    numerics.check_positive(num_latents=num_latents, num_components=num_components)

    def init(key: PRNGKey) -> PyTree:
        shape = (num_components, num_latents)
        return {
            "logits": jnp.zeros((num_components,)),
            "mean": jax.random.normal(key, shape),
            "log_std": jnp.zeros(shape),
        }

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        del h
        key_component, key_noise = jax.random.split(key)
        chosen = jax.random.categorical(key_component, params["logits"])
        mean, log_std = params["mean"][chosen], params["log_std"][chosen]
        return reparameterize.location_scale(key_noise, mean, log_std)

    def log_prob(params: PyTree, h: Array, z: Float[Array, " D"]) -> Scalar:
        del h
        each = jax.vmap(likelihoods.normal_terms, in_axes=(0, 0, None))
        log_p = each(params["mean"], params["log_std"], z).sum(1)
        return jax.nn.logsumexp(jax.nn.log_softmax(params["logits"]) + log_p)

    return conditional(
        Family(
            "normal_mixture",
            lambda params, h: (params["logits"], params["mean"], params["log_std"]),
        ),
        (num_latents,),
        width=0,
        init=init,
        sample=sample,
        log_prob=log_prob,
    )


def equal_mixture(component: Conditional) -> Conditional:
    """The mixture with equal weights of one density at the rows of h [C, H].

    H is the component's width. With h the encodings of learned pseudo-inputs it is the
    VampPrior (Tomczak & Welling 2018, arXiv:1705.07120), which `vae.with_vamp_prior`
    makes. A sample is of one component chosen uniformly, with that component's
    gradient; the density carries that of all.
    """

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, "C H"]) -> Array:
        key_component, key_sample = jax.random.split(key)
        chosen = jax.random.randint(key_component, (), 0, h.shape[0])
        return component.sample(key_sample, params, h[chosen])

    def log_prob(params: PyTree, h: Float[Array, "C H"], z: Array) -> Scalar:
        each = jax.vmap(component.log_prob, in_axes=(None, 0, None))
        return numerics.log_mean_exp(each(params, h, z))

    return conditional(
        Family("equal_mixture"),
        component.shape,
        width=component.width,
        init=component.init,
        sample=sample,
        log_prob=log_prob,
    )
