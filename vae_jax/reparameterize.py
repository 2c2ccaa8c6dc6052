r"""Samples as z = g(eps, h): noise from a fixed density, made to follow h.

Then E_q[f(z)] = E[f(g(eps, h))], and the average over eps of d f(g(eps, h)) / dh is an
unbiased estimate of the gradient (AEVB, arXiv:1312.6114, section 2.4, which names three
routes). Each sampler here is two functions: one that draws the noise from a key, and a
deterministic half that takes it, for common random numbers and for quasi Monte Carlo.

- *Location and scale*: `location_scale`; `location_cholesky` for a full covariance.
- *Inverse CDF*: `exponential`, `logistic` and `cauchy`, of uniforms in the open (0, 1).
- *Composition*: `log_normal`, `erlang` (a gamma of integer shape, the sum of
  exponentials), `dirichlet` (gammas over their sum).

A fourth route, later than the paper, is *implicit*: `jax.random.gamma` draws by
rejection, and its derivative with respect to the concentration is
dz/da = -(dF(z; a)/da) / p(z; a), F the CDF (Figurnov et al. 2018, arXiv:1805.08498).
`dirichlet` takes its gammas from there.

Scales, rates and concentrations come as logarithms, of any real value. Noise has the
shape and dtype of the parameters, one independent draw per entry; one sample per call,
`vmap` over keys for more.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import PRNGKey


def location_scale(
    key: PRNGKey, mean: Float[Array, "*D"], log_std: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    r"""One draw of N(mean, diag(std^2)): z = mean + std * eps, eps ~ N(0, I).

    AEVB (arXiv:1312.6114) section 2.4, route 2: the posterior of its section 3.

    Raises:
        ValueError: if mean and log_std differ in shape.
    """
    numerics.check_shapes(mean=mean, log_std=log_std)
    eps = jax.random.normal(key, mean.shape, jnp.result_type(mean, log_std))
    return location_scale_from_noise(eps, mean, log_std)


def location_scale_from_noise(
    eps: Float[Array, "*D"], mean: Float[Array, "*D"], log_std: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    """z = mean + std * eps, for noise of any density.

    Raises:
        ValueError: if the three arguments differ in shape.
    """
    numerics.check_shapes(eps=eps, mean=mean, log_std=log_std)
    return mean + jnp.exp(log_std) * eps


def location_cholesky(
    key: PRNGKey, mean: Float[Array, " D"], cholesky: Float[Array, "D D"]
) -> Float[Array, " D"]:
    r"""One draw of N(mean, Sigma): z = mean + L eps, eps ~ N(0, I), Sigma = L L^T.

    L is the Cholesky factor and not the covariance: mean + Sigma eps would have the
    covariance Sigma Sigma^T. See `location_cholesky_from_noise`.

    Raises:
        ValueError: if cholesky is not [D, D] for the D of mean.
    """
    _check_cholesky(mean, cholesky)
    eps = jax.random.normal(key, mean.shape, jnp.result_type(mean, cholesky))
    return location_cholesky_from_noise(eps, mean, cholesky)


def location_cholesky_from_noise(
    eps: Float[Array, " D"], mean: Float[Array, " D"], cholesky: Float[Array, "D D"]
) -> Float[Array, " D"]:
    """z = mean + L eps with L the lower triangle of `cholesky`.

    Entries above the diagonal are not read, as triangular solves do not read them.
    The product runs at the highest precision: accelerators round the factors of a
    product to as few as 8 bits by default, and z would not have the density it claims.

    Raises:
        ValueError: if eps and mean differ in shape or cholesky is not [D, D].
    """
    numerics.check_shapes(eps=eps, mean=mean)
    _check_cholesky(mean, cholesky)
    return mean + jnp.matmul(jnp.tril(cholesky), eps, precision="highest")


def open_uniform(
    key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "..."]:
    """Uniform noise that is never 0 or 1, for inverse CDFs.

    `jax.random.uniform` draws multiples of the dtype's epsilon in [0, 1), zero among
    them; half an epsilon more, which is exact, gives the midpoints of its cells. They
    are symmetric about 1/2 and keep each cell's mass in its place, where replacing 0
    by the smallest normal number would put one Cauchy draw in 2^23 at 1e37. The tails
    that can be reached are of probability epsilon / 2: 6e-8 each in float32.
    """
    return jax.random.uniform(key, shape, dtype) + 0.5 * float(jnp.finfo(dtype).eps)


def exponential(key: PRNGKey, log_rate: Float[Array, "*D"]) -> Float[Array, "*D"]:
    """One draw of the density rate * exp(-rate z), z > 0, by its inverse CDF."""
    u = open_uniform(key, log_rate.shape, jnp.result_type(log_rate))
    return exponential_from_uniform(u, log_rate)


def exponential_from_uniform(
    u: Float[Array, "*D"], log_rate: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    """z = -log(1 - u) / rate for u in (0, 1), AEVB section 2.4, route 1.

    `log1p` keeps the digits of a small u.

    Raises:
        ValueError: if u and log_rate differ in shape.
    """
    numerics.check_shapes(u=u, log_rate=log_rate)
    return -jnp.log1p(-u) * jnp.exp(-log_rate)


def logistic(
    key: PRNGKey, mean: Float[Array, "*D"], log_scale: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    """One draw of the logistic density, of std scale pi / sqrt(3), by its inverse CDF.

    Raises:
        ValueError: if mean and log_scale differ in shape.
    """
    numerics.check_shapes(mean=mean, log_scale=log_scale)
    u = open_uniform(key, mean.shape, jnp.result_type(mean, log_scale))
    return logistic_from_uniform(u, mean, log_scale)


def logistic_from_uniform(
    u: Float[Array, "*D"], mean: Float[Array, "*D"], log_scale: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    """z = mean + scale (log u - log(1 - u)) for u in (0, 1), AEVB section 2.4, route 1.

    Raises:
        ValueError: if the three arguments differ in shape.
    """
    numerics.check_shapes(u=u, mean=mean, log_scale=log_scale)
    return mean + jnp.exp(log_scale) * (jnp.log(u) - jnp.log1p(-u))


def cauchy(
    key: PRNGKey, location: Float[Array, "*D"], log_scale: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    """One draw of the Cauchy density, by its inverse CDF; it has no mean.

    Raises:
        ValueError: if location and log_scale differ in shape.
    """
    numerics.check_shapes(location=location, log_scale=log_scale)
    u = open_uniform(key, location.shape, jnp.result_type(location, log_scale))
    return cauchy_from_uniform(u, location, log_scale)


def cauchy_from_uniform(
    u: Float[Array, "*D"], location: Float[Array, "*D"], log_scale: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    """z = location + scale tan(pi (u - 1/2)), u in (0, 1), AEVB section 2.4, route 1.

    In the outer quarters the tangent is written 1 / tan(pi t), with t the distance of
    u from its end of the interval: near its pole the tangent of a rounded angle has
    no digits, and at u = 1e-8 in float32 not even the right sign.

    Raises:
        ValueError: if the three arguments differ in shape.
    """
    numerics.check_shapes(u=u, location=location, log_scale=log_scale)
    centered = u - 0.5
    tail = jnp.minimum(u, 1.0 - u)
    outer = jnp.sign(centered) / jnp.tan(jnp.pi * tail)
    noise = jnp.where(tail < 0.25, outer, jnp.tan(jnp.pi * centered))
    return location + jnp.exp(log_scale) * noise


def log_normal(
    key: PRNGKey, mean: Float[Array, "*D"], log_std: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    """One draw of exp(N(mean, std^2)); mean and std are those of log z.

    Raises:
        ValueError: if mean and log_std differ in shape.
    """
    return jnp.exp(location_scale(key, mean, log_std))


def log_normal_from_noise(
    eps: Float[Array, "*D"], mean: Float[Array, "*D"], log_std: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    """z = exp(mean + std * eps), AEVB section 2.4, route 3.

    Raises:
        ValueError: if the three arguments differ in shape.
    """
    return jnp.exp(location_scale_from_noise(eps, mean, log_std))


def erlang(
    key: PRNGKey, log_rate: Float[Array, "*D"], *, num_exponentials: int
) -> Float[Array, "*D"]:
    """One draw of the gamma density of integer shape `num_exponentials`.

    Its mean is num_exponentials / rate. The gradient is with respect to the rate; for
    a gradient with respect to the shape take `jax.random.gamma`, the implicit route.

    Raises:
        ValueError: if num_exponentials is below one.
    """
    numerics.check_positive(num_exponentials=num_exponentials)
    shape = (num_exponentials, *log_rate.shape)
    u = open_uniform(key, shape, jnp.result_type(log_rate))
    return erlang_from_uniform(u, log_rate)


def erlang_from_uniform(
    u: Float[Array, "A *D"], log_rate: Float[Array, "*D"]
) -> Float[Array, "*D"]:
    """z = -sum_a log(1 - u_a) / rate, AEVB section 2.4, route 3.

    A sum of logarithms: the logarithm of the product would underflow at a large A.

    Raises:
        ValueError: if u is not [A, *D] with A >= 1 for the [*D] of log_rate.
    """
    if u.ndim == 0 or u.shape[0] == 0 or u.shape[1:] != log_rate.shape:
        raise ValueError(
            f"u {u.shape} must be log_rate's shape {log_rate.shape} after a first axis"
        )
    return -jnp.log1p(-u).sum(0) * jnp.exp(-log_rate)


def dirichlet(
    key: PRNGKey, log_concentration: Float[Array, " C"]
) -> Float[Array, " C"]:
    """One draw of the Dirichlet density on the simplex.

    The logarithms of C gammas of rate one are drawn by `jax.random.loggamma`, whose
    derivative with respect to the concentration is implicit (the fourth route), and
    `dirichlet_from_log_gammas` divides them by their sum (the third). Concentrations
    are clipped to what the dtype holds: 2e-35 to 5e34 in float32.

    Raises:
        ValueError: if log_concentration is not one axis of at least one entry.
    """
    if log_concentration.ndim != 1 or log_concentration.shape[0] == 0:
        raise ValueError(
            f"log_concentration must be [C], got {log_concentration.shape}"
        )
    limit = 0.9 * math.log(float(jnp.finfo(log_concentration.dtype).max))
    concentration = jnp.exp(jnp.clip(log_concentration, -limit, limit))
    log_gammas = jax.random.loggamma(
        key, concentration, dtype=jnp.result_type(log_concentration)
    )
    return dirichlet_from_log_gammas(log_gammas)


def dirichlet_from_log_gammas(log_gammas: Float[Array, " C"]) -> Float[Array, " C"]:
    """z = gammas over their sum, from their logarithms, AEVB section 2.4, route 3.

    A gamma of concentration 1e-3 is mostly below the smallest float32: C of them give
    0 / 0, while their logarithms lose nothing.
    """
    return jax.nn.softmax(log_gammas)


def _check_cholesky(mean: Array, cholesky: Array) -> None:
    if mean.ndim != 1 or cholesky.shape != 2 * mean.shape:
        raise ValueError(
            f"cholesky must be [D, D] for a mean of [D], got {cholesky.shape} for "
            f"{mean.shape}"
        )
