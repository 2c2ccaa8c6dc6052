"""Approximate posteriors q(z | h), where h is the encoder's output for one x."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import flows, likelihoods, numerics, reparameterize
from vae_jax.types import (
    Conditional,
    Family,
    PRNGKey,
    PyTree,
    Scalar,
    Transport,
    conditional,
)


def diag_normal(num_latents: int, *, max_log_std: float = math.inf) -> Conditional:
    """Normal with diagonal covariance; h = [mean, log_std], each of length D.

    Reparameterized as z = mean + std * eps (AEVB, arXiv:1312.6114, section 2.4), so
    gradients reach h through `sample`.

    Args:
        num_latents: D.
        max_log_std: m, where h holds not log_std but a u with log_std = m tanh(u / m),
            which keeps every standard deviation between exp(-m) and exp(m).

    Raises:
        ValueError: if num_latents is below one or max_log_std is not positive.
    """
    numerics.check_positive(num_latents=num_latents)
    numerics.check_in("(0, inf]", max_log_std=max_log_std)

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " H"]) -> Array:
        return reparameterize.location_scale(key, *parameters(params, h))

    def log_prob(params: PyTree, h: Float[Array, " H"], z: Array) -> Scalar:
        return likelihoods.normal_terms(*parameters(params, h), z).sum()

    def parameters(params: PyTree, h: Float[Array, " H"]) -> tuple[Array, Array]:
        del params
        return mean_and_log_std(h, max_log_std=max_log_std)

    def moments(params: PyTree, h: Float[Array, " H"]) -> tuple[Array, Array]:
        mean, log_std = parameters(params, h)
        return mean, jnp.exp(log_std)

    def forward(params: PyTree, h: Float[Array, " H"], eps: Array) -> Array:
        return reparameterize.location_scale_from_noise(eps, *parameters(params, h))

    def inverse(params: PyTree, h: Float[Array, " H"], z: Array) -> Array:
        mean, log_std = parameters(params, h)
        return (z - mean) * jnp.exp(-log_std)

    return conditional(
        Family("diag_normal", parameters),
        (num_latents,),
        width=2 * num_latents,
        sample=sample,
        log_prob=log_prob,
        moments=moments,
        transport=Transport(forward, inverse),
    )


def mean_and_log_std(
    h: Float[Array, "*S H"], *, max_log_std: float
) -> tuple[Float[Array, "*S D"], Float[Array, "*S D"]]:
    """The halves of h's last axis, the second bounded as `diag_normal` has it."""
    mean, free = jnp.split(h, 2, axis=-1)
    if max_log_std == math.inf:
        return mean, free
    return mean, max_log_std * jnp.tanh(free / max_log_std)


def diag_normal_h(num_latents: int, *, std: float) -> Float[Array, " H"]:
    """The h of a `diag_normal` of mean zero and that standard deviation.

    As an encoder's output bias it starts q narrow, where std is below one.

    Raises:
        ValueError: if std is not positive and finite.
    """
    log_std = numerics.log_of("std", std)
    return jnp.zeros(2 * num_latents).at[num_latents:].set(log_std)


def full_normal_h(num_latents: int, *, std: float) -> Float[Array, " H"]:
    """The h of a `full_normal` of mean zero and covariance std^2 I.

    Raises:
        ValueError: if std is not positive and finite.
    """
    log_std, row = numerics.log_of("std", std), jnp.arange(num_latents)
    packed = jnp.zeros(num_latents * (num_latents + 1) // 2)
    packed = packed.at[row * (row + 3) // 2].set(log_std)  # the diagonal's places
    return jnp.concatenate([jnp.zeros(num_latents), packed])


def full_normal(num_latents: int) -> Conditional:
    """Normal with full covariance; h = [mean, packed], of D and D (D + 1) / 2 entries.

    AEVB (arXiv:1312.6114) section 2.4, route 2: z = mean + L eps, eps ~ N(0, I), with L
    the Cholesky factor that `mean_and_scale_tril` reads from h, so Sigma = L L^T.
    mean + Sigma eps would be wrong: its covariance is Sigma Sigma^T.

    Raises:
        ValueError: if num_latents is below one.
    """
    numerics.check_positive(num_latents=num_latents)
    width = num_latents + num_latents * (num_latents + 1) // 2

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " H"]) -> Array:
        del params
        mean, scale_tril = mean_and_scale_tril(h, num_latents)
        return reparameterize.location_cholesky(key, mean, scale_tril)

    def log_prob(params: PyTree, h: Float[Array, " H"], z: Array) -> Scalar:
        del params
        return full_normal_log_prob(z, *mean_and_scale_tril(h, num_latents))

    def sample_and_log_prob(
        key: PRNGKey, params: PyTree, h: Float[Array, " H"]
    ) -> tuple[Array, Scalar]:
        mean, scale_tril = parameters(params, h)
        eps = jax.random.normal(key, mean.shape, mean.dtype)
        z = reparameterize.location_cholesky_from_noise(eps, mean, scale_tril)
        log_scale = jnp.log(jnp.diagonal(scale_tril))
        return z, -(0.5 * eps**2 + log_scale + 0.5 * jnp.log(2.0 * jnp.pi)).sum()

    def parameters(params: PyTree, h: Float[Array, " H"]) -> tuple[Array, Array]:
        del params
        return mean_and_scale_tril(h, num_latents)

    def moments(params: PyTree, h: Float[Array, " H"]) -> tuple[Array, Array]:
        mean, scale_tril = parameters(params, h)
        return mean, jnp.linalg.norm(scale_tril, axis=1)

    def forward(params: PyTree, h: Float[Array, " H"], eps: Array) -> Array:
        mean, scale_tril = parameters(params, h)
        return reparameterize.location_cholesky_from_noise(eps, mean, scale_tril)

    def inverse(params: PyTree, h: Float[Array, " H"], z: Array) -> Array:
        mean, scale_tril = parameters(params, h)
        return jax.scipy.linalg.solve_triangular(scale_tril, z - mean, lower=True)

    return conditional(
        Family("full_normal", parameters),
        (num_latents,),
        width=width,
        sample=sample,
        log_prob=log_prob,
        sample_and_log_prob=sample_and_log_prob,
        moments=moments,
        transport=Transport(forward, inverse),
    )


def mean_and_scale_tril(
    h: Float[Array, " H"], num_latents: int
) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """The mean and L of `full_normal`, as its closed-form divergence takes them.

    L holds the packed values of h row by row (`numerics.unpack_tril`), those on its
    diagonal as logarithms.

    Raises:
        ValueError: if h is not D + D (D + 1) / 2 entries.
    """
    mean, packed = jnp.split(h, [num_latents])
    lower = numerics.unpack_tril(packed, num_latents)
    scale = jnp.diag(jnp.exp(jnp.diagonal(lower)))
    return mean, jnp.tril(lower, -1) + scale


def packed(
    mean: Float[Array, " D"], scale_tril: Float[Array, "D D"]
) -> Float[Array, " H"]:
    """The h of `full_normal` that `mean_and_scale_tril` reads as these two."""
    logs = jnp.tril(scale_tril, -1) + jnp.diag(jnp.log(jnp.diagonal(scale_tril)))
    return jnp.concatenate([mean, logs[jnp.tril_indices(mean.shape[0])]])


def full_normal_log_prob(
    z: Float[Array, " D"], mean: Float[Array, " D"], scale_tril: Float[Array, "D D"]
) -> Scalar:
    """log N(z; mean, L L^T) in nats, L lower triangular with a positive diagonal."""
    eps = jax.scipy.linalg.solve_triangular(scale_tril, z - mean, lower=True)
    log_scale = jnp.log(jnp.diagonal(scale_tril))
    return -(0.5 * eps**2 + log_scale + 0.5 * jnp.log(2.0 * jnp.pi)).sum()


def flow(base: Conditional, flow: flows.Flow) -> Conditional:
    """A base density carried through a flow; h = [the base's h, the flow's context].

    z = f(y) with y ~ base, so log q(z) = log base(f^{-1}(z)) - log|det dz/dy|: Rezende
    & Mohamed 2015 (arXiv:1505.05770) equation 5. `log_prob` inverts the flow, at the
    cost that the flow states; `sample_and_log_prob` takes log|det dz/dy| from the way
    forward. Parameters are a dictionary with `base` and `flow`.
    """

    def init(key: PRNGKey) -> PyTree:
        key_base, key_flow = jax.random.split(key)
        return {"base": base.init(key_base), "flow": flow.init(key_flow)}

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " H"]) -> Array:
        h_base, context = jnp.split(h, [base.width])
        y = base.sample(key, params["base"], h_base)
        return flow.forward(params["flow"], context, y)[0]

    def log_prob(params: PyTree, h: Float[Array, " H"], z: Array) -> Scalar:
        h_base, context = jnp.split(h, [base.width])
        y, log_det = flow.inverse(params["flow"], context, z)
        return base.log_prob(params["base"], h_base, y) - log_det

    def sample_and_log_prob(
        key: PRNGKey, params: PyTree, h: Float[Array, " H"]
    ) -> tuple[Array, Scalar]:
        h_base, context = jnp.split(h, [base.width])
        y, log_prob = base.sample_and_log_prob(key, params["base"], h_base)
        z, log_det = flow.forward(params["flow"], context, y)
        return z, log_prob - log_det

    of_base = base.transport

    def forward(params: PyTree, h: Float[Array, " H"], eps: Array) -> Array:
        assert of_base is not None
        h_base, context = jnp.split(h, [base.width])
        y = of_base.forward(params["base"], h_base, eps)
        return flow.forward(params["flow"], context, y)[0]

    def inverse(params: PyTree, h: Float[Array, " H"], z: Array) -> Array:
        assert of_base is not None
        h_base, context = jnp.split(h, [base.width])
        y = flow.inverse(params["flow"], context, z)[0]
        return of_base.inverse(params["base"], h_base, y)

    return conditional(
        Family("flow"),
        base.shape,
        width=base.width + flow.width,
        init=init,
        sample=sample,
        log_prob=log_prob,
        sample_and_log_prob=sample_and_log_prob,
        transport=of_base and Transport(forward, inverse),
    )


def bernoulli(num_latents: int) -> Conditional:
    """Independent bits; h holds the logits [D], and z is 0. or 1. in h's dtype.

    Samples carry no gradient: a bit is a step function of the noise, so h is reached
    through `log_prob` or by an estimator for discrete latents. `log_prob` is finite for
    any finite logit.

    Raises:
        ValueError: if num_latents is below one.
    """
    numerics.check_positive(num_latents=num_latents)

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " D"]) -> Array:
        del params
        return numerics.bits(key, h)

    def log_prob(params: PyTree, h: Float[Array, " D"], z: Array) -> Scalar:
        del params
        return likelihoods.bernoulli_terms(h, z).sum()

    def moments(params: PyTree, h: Float[Array, " D"]) -> tuple[Array, Array]:
        del params
        p = jax.nn.sigmoid(h)
        return p, jnp.sqrt(p * jax.nn.sigmoid(-h))

    return conditional(
        Family("bernoulli", lambda params, h: (h,)),
        (num_latents,),
        width=num_latents,
        sample=sample,
        log_prob=log_prob,
        moments=moments,
    )


def categorical(num_latents: int, num_classes: int) -> Conditional:
    """Independent choices among C classes; h holds the logits, [D, C] flattened.

    z is one-hot, [D, C] in h's dtype. Samples carry no gradient, as in `bernoulli`.

    Raises:
        ValueError: if num_latents is below one or num_classes below two.
    """
    numerics.check_positive(num_latents=num_latents)
    numerics.check_at_least(2, num_classes=num_classes)

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " H"]) -> Array:
        del params
        chosen = jax.random.categorical(key, h.reshape(num_latents, num_classes))
        return jax.nn.one_hot(chosen, num_classes, dtype=h.dtype)

    def log_prob(params: PyTree, h: Float[Array, " H"], z: Array) -> Scalar:
        del params
        log_p = jax.nn.log_softmax(h.reshape(num_latents, num_classes))
        return numerics.times_log(z, log_p).sum()

    def logits(params: PyTree, h: Float[Array, " H"]) -> tuple[Array]:
        del params
        return (h.reshape(num_latents, num_classes),)

    def moments(params: PyTree, h: Float[Array, " H"]) -> tuple[Array, Array]:
        p = jax.nn.softmax(logits(params, h)[0])
        return p, jnp.sqrt(p * (1.0 - p))

    return conditional(
        Family("categorical", logits),
        (num_latents, num_classes),
        width=num_latents * num_classes,
        sample=sample,
        log_prob=log_prob,
        moments=moments,
    )
