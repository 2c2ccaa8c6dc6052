r"""Latents on a sphere: the power spherical density (De Cao & Aziz 2020).

z lies on the unit sphere in D dimensions, around a mean direction mu:

$$q(z) \propto (1 + \mu^T z)^\kappa,$$

uniform at kappa = 0 (arXiv:2006.04437). It does what the von Mises-Fisher density does
(the S-VAE), with neither rejection sampling nor Bessel functions: a draw is a map of
noise with a gradient, and its KL to `uniform_prior` has a closed form
(`divergences.power_spherical_to_uniform_sphere`).

Densities are with respect to the **surface measure** of the sphere, q and p alike, so
that bounds on log p(x) compare with those of any other latents. z has D entries and
D - 1 degrees of freedom: what moves z through all of R^D (Hamiltonian chains, normal
approximations, flows) does not serve here.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import (
    Conditional,
    Family,
    PRNGKey,
    PyTree,
    Scalar,
    conditional,
)

_MOST_LOG_KAPPA = 30.0  # beyond it, and below its negative, h has no gradient


def posterior(num_latents: int) -> Conditional:
    r"""q(z | h) around a direction; h = [direction, log kappa], D entries and one.

    The first D entries count by their direction alone; where all are zero, it is that
    of e_1, the first axis. log kappa is cut off at -30, where q is uniform, and at 30,
    where z leaves mu by no more than the last digits of float32.

    De Cao & Aziz draw $t = \mu^T z$ as 2 B - 1, B ~ Beta((D - 1) / 2 + kappa,
    (D - 1) / 2), and the rest uniformly around mu. The same draw here is
    $t = (1 - |s|^2) / (1 + |s|^2)$ and $2 s / (1 + |s|^2)$ at
    $s = \epsilon / \sqrt{2 a}$, with $\epsilon \sim N(0, I_{D-1})$ and a ~
    Gamma((D - 1) / 2 + kappa): |s|^2 keeps the digits that 1 - t would lose where kappa
    is large. A reflection takes e_1 to mu, or to -mu where that is farther from e_1: so
    no gradient passes a singularity, which the paper's reflection has at mu = e_1.

    Raises:
        ValueError: if num_latents is below two.
    """
    _check(num_latents)
    least = 0.5 * (num_latents - 1)

    def parameters(params: PyTree, h: Float[Array, " H"]) -> tuple[Array, Array]:
        del params
        return _direction(h[:-1]), jnp.clip(h[-1], -_MOST_LOG_KAPPA, _MOST_LOG_KAPPA)

    def sample_and_log_prob(
        key: PRNGKey, params: PyTree, h: Float[Array, " H"]
    ) -> tuple[Array, Scalar]:
        mu, log_kappa = parameters(params, h)
        kappa = jnp.exp(log_kappa)
        key_gamma, key_normal = jax.random.split(key)
        log_a = jax.random.loggamma(key_gamma, least + kappa, dtype=h.dtype)
        eps = jax.random.normal(key_normal, (num_latents - 1,), h.dtype)
        s = eps * jnp.exp(-0.5 * log_a) / math.sqrt(2.0)
        square = (s**2).sum()
        around = jnp.concatenate([jnp.zeros((1,), h.dtype), 2.0 * s / (1.0 + square)])
        axis = mu.at[0].add(jnp.copysign(jnp.ones((), h.dtype), mu[0]))
        z = (1.0 - square) / (1.0 + square) * mu + around
        z = z - (mu @ around) / (1.0 + jnp.abs(mu[0])) * axis
        return z, log_density(kappa, -jnp.log1p(square))

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " H"]) -> Array:
        return sample_and_log_prob(key, params, h)[0]

    def log_prob(params: PyTree, h: Float[Array, " H"], z: Array) -> Scalar:
        mu, log_kappa = parameters(params, h)
        # log((1 + t) / 2) by the nearer of mu and -mu; finite at -mu itself.
        near, far = ((z - mu) ** 2).sum() / 4.0, ((z + mu) ** 2).sum() / 4.0
        is_near = near < 0.5
        tiny = jnp.finfo(z.dtype).tiny
        log_half = jnp.where(
            is_near,
            jnp.log1p(-jnp.where(is_near, near, 0.0)),
            jnp.log(jnp.maximum(jnp.where(is_near, 1.0, far), tiny)),
        )
        return log_density(jnp.exp(log_kappa), log_half)

    shifts, weights, rest = numerics.gamma_ratio(num_latents - 1)
    log_constant = 2.0 * least * math.log(2.0) + least * math.log(math.pi)

    def log_density(kappa: Scalar, log_half: Scalar) -> Scalar:
        """Of log((1 + t) / 2)."""
        a = least + kappa
        logs = jnp.log(a + jnp.asarray(shifts, a.dtype))
        ratio = (jnp.asarray(weights, a.dtype) * logs).sum() + rest(a)
        return ratio - log_constant + kappa * log_half

    def moments(params: PyTree, h: Float[Array, " H"]) -> tuple[Array, Array]:
        mu, log_kappa = parameters(params, h)
        kappa = jnp.exp(log_kappa)
        total = 2.0 * least + kappa
        across = 2.0 * (least + kappa) / (total * (total + 1.0))
        along = 2.0 * least * across / total
        return kappa / total * mu, jnp.sqrt(along * mu**2 + across * (1.0 - mu**2))

    return conditional(
        Family("power_spherical", parameters),
        (num_latents,),
        width=num_latents + 1,
        sample=sample,
        log_prob=log_prob,
        sample_and_log_prob=sample_and_log_prob,
        moments=moments,
    )


def uniform_prior(num_latents: int) -> Conditional:
    """Every direction with the same density, one over the area of the sphere.

    Raises:
        ValueError: as in `posterior`.
    """
    _check(num_latents)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        del params
        return _direction(jax.random.normal(key, (num_latents,), h.dtype))

    def log_prob(params: PyTree, h: Array, z: Float[Array, " D"]) -> Scalar:
        del params, z
        return jnp.asarray(-log_area(num_latents), h.dtype)

    return conditional(
        Family("uniform_sphere", lambda params, h: ()),
        (num_latents,),
        width=0,
        sample=sample,
        log_prob=log_prob,
    )


def log_area(num_latents: int) -> float:
    r"""$\log(2\pi^{D/2} / \Gamma(D/2))$ of the unit sphere in D dimensions."""
    half = 0.5 * num_latents
    return math.log(2.0) + half * math.log(math.pi) - math.lgamma(half)


def _direction(v: Float[Array, " D"]) -> Float[Array, " D"]:
    """v over its length, whatever that is; e_1 for v = 0, with a gradient there too."""
    scale = jax.lax.stop_gradient(jnp.abs(v).max())
    is_zero = (scale == 0.0).astype(v.dtype)
    v = (v / (scale + is_zero)).at[0].add(is_zero)
    return v / jnp.linalg.norm(v)


def _check(num_latents: int) -> None:
    numerics.check_at_least(2, num_latents=num_latents, why=": a sphere has no fewer")
