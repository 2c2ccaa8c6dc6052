r"""Closed-form divergences, entropies and cross-entropies, in nats, of one example.

Every function takes plain arrays and sums over the latent dimensions. A divergence is
KL(q || p) = E_q[log q - log p]. It is subtracted from the reconstruction in a bound:
ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)), AEVB (arXiv:1312.6114) equation 3. The
same bound is H(q) - H(q, p(x, z)), with the entropy H(q) = -E_q[log q] and the
cross-entropy H(q, p) = -E_q[log p]: the logarithm falls on the second argument, so
KL(q || p) = H(q, p) - H(q). Entropies of densities may be negative; divergences not.

Divergences here are sums of terms that are each non-negative as computed, multiples of
exp(u) - 1 - u at u = log(p/q) or at twice the log ratio of the scales, which
`_exp_less_linear` gives to full relative precision. So they keep their digits when q is
close to p, where differences of logarithms cancel, and rounding makes none negative.
`power_spherical_to_uniform_sphere` is the exception, below 1e-10 nats in float32.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import Scalar


def diag_normal_to_standard_normal(
    mean: Float[Array, " D"], log_std: Float[Array, " D"]
) -> Scalar:
    r"""KL(N(mean, diag(std^2)) || N(0, I)) in nats; zero only at the prior.

    $\frac12\sum_d(\mu_d^2 + \sigma_d^2 - 1 - \log\sigma_d^2)$: AEVB (arXiv:1312.6114)
    Appendix B, which prints its negative.

    The scale comes as its logarithm s, any value for which exp(2 s) does not overflow.
    $\sigma^2 - 1 - 2 s$ is of order $2 s^2$ near the prior and is computed to full
    relative precision there; in float32 `exp(2 s) - 1 - 2 s` has no digits left at
    s = 1e-4, and `expm1(2 s) - 2 s` none at s = 1e-8.

    Raises:
        ValueError: if the two arguments differ in shape.
    """
    numerics.check_shapes(mean=mean, log_std=log_std)
    return 0.5 * jnp.sum(mean**2 + _exp_less_linear(2.0 * log_std))


def diag_normal_to_diag_normal(
    mean_q: Float[Array, " D"],
    log_std_q: Float[Array, " D"],
    mean_p: Float[Array, " D"],
    log_std_p: Float[Array, " D"],
) -> Scalar:
    r"""KL(q || p) in nats between two normals with diagonal covariance.

    $\frac12\sum_d\big[(\mu_q-\mu_p)^2/\sigma_p^2 + r - 1 - \log r\big]$ with
    $r = \sigma_q^2/\sigma_p^2$: the integrals of AEVB (arXiv:1312.6114) Appendix B for
    any diagonal normal as the second argument. The log ratio of the scales is formed
    before it is exponentiated, so equal scales contribute exactly zero. Finite where
    1 / std_p^2 and (std_q / std_p)^2 are.

    Raises:
        ValueError: if the four arguments differ in shape.
    """
    numerics.check_shapes(
        mean_q=mean_q, log_std_q=log_std_q, mean_p=mean_p, log_std_p=log_std_p
    )
    standardized = (mean_q - mean_p) * jnp.exp(-log_std_p)
    spread = _exp_less_linear(2.0 * (log_std_q - log_std_p))
    return 0.5 * jnp.sum(standardized**2 + spread)


def full_normal_to_standard_normal(
    mean: Float[Array, " D"], scale_tril: Float[Array, "D D"]
) -> Scalar:
    r"""KL(N(mean, L L^T) || N(0, I)) in nats, with L the lower triangle given.

    $\frac12\big(|\mu|^2 + \sum_{ij}L_{ij}^2 - D - 2\sum_d\log L_{dd}\big)$, which is
    $\frac12(\mu^T\mu + \mathrm{tr}\,\Sigma - D - \log\det\Sigma)$ at
    $\Sigma = LL^T$: the posterior of AEVB (arXiv:1312.6114) section 2.4 with a full
    covariance. The diagonal of L must be positive; above it nothing is read.

    Raises:
        ValueError: if scale_tril is not [D, D] for the D of mean.
    """
    if mean.ndim != 1 or scale_tril.shape != 2 * mean.shape:
        raise ValueError(
            f"scale_tril must be [D, D] for a mean of [D], got {scale_tril.shape} for "
            f"{mean.shape}"
        )
    log_scale = jnp.log(jnp.diagonal(scale_tril))
    below = jnp.sum(jnp.tril(scale_tril, -1) ** 2)
    return 0.5 * (below + jnp.sum(mean**2 + _exp_less_linear(2.0 * log_scale)))


def power_spherical_to_uniform_sphere(
    direction: Float[Array, " D"], log_concentration: Scalar
) -> Scalar:
    r"""KL(q || p) in nats of a `power_spherical` q to the uniform density of a sphere.

    $\log S_D - H(q)$, with $S_D$ the sphere's area and $H(q) = \log N_\kappa
    - \kappa(\log 2 + \psi(\beta + \kappa) - \psi(2\beta + \kappa))$ at
    $\beta = (D - 1) / 2$: De Cao & Aziz 2020 (arXiv:2006.04437). It is the same for
    every direction, of which only the size D is read. With $f(\kappa) =
    \log\Gamma(2\beta + \kappa) - \log\Gamma(\beta + \kappa)$ it is $f(\kappa) - f(0)
    - \kappa f'(\kappa)$, which `numerics.gamma_ratio` makes a sum of logarithms.
    """
    kappa, least = jnp.exp(log_concentration), 0.5 * (direction.shape[0] - 1)
    shifts, weights, rest = numerics.gamma_ratio(direction.shape[0] - 1)
    dtype = kappa.dtype
    of_logs = _exp_less_linear(-jnp.log1p(kappa / jnp.asarray(least + shifts, dtype)))
    end, slope = jax.value_and_grad(rest)(least + kappa)
    of_rest = end - rest(jnp.asarray(least, dtype)) - kappa * slope
    return (jnp.asarray(weights, dtype) * of_logs).sum() + of_rest


def diag_normal_entropy(log_std: Float[Array, " D"]) -> Scalar:
    r"""H(q) = -E_q[log q] in nats of N(mean, diag(std^2)), whatever its mean.

    $\sum_d(\frac12\log(2\pi e) + \log\sigma_d)$: AEVB (arXiv:1312.6114) Appendix B,
    which prints its negative. A differential entropy: negative when std is small.
    """
    return jnp.sum(log_std + 0.5 * (math.log(2.0 * math.pi) + 1.0))


def diag_normal_cross_entropy(
    mean_q: Float[Array, " D"],
    log_std_q: Float[Array, " D"],
    mean_p: Float[Array, " D"],
    log_std_p: Float[Array, " D"],
) -> Scalar:
    r"""H(q, p) = -E_q[log p] in nats: the logarithm is of the second argument.

    $\sum_d\big[\frac12\log 2\pi + \log\sigma_p
    + ((\mu_q-\mu_p)^2 + \sigma_q^2)/(2\sigma_p^2)\big]$, for a standard normal p the
    first integral of AEVB (arXiv:1312.6114) Appendix B with its sign changed.

    For KL(q || p) call `diag_normal_to_diag_normal`: the difference of this and
    `diag_normal_entropy` is the same number with fewer digits.

    Raises:
        ValueError: if the four arguments differ in shape.
    """
    numerics.check_shapes(
        mean_q=mean_q, log_std_q=log_std_q, mean_p=mean_p, log_std_p=log_std_p
    )
    standardized = (mean_q - mean_p) * jnp.exp(-log_std_p)
    spread = jnp.exp(2.0 * (log_std_q - log_std_p))
    log_normalizer = 0.5 * math.log(2.0 * math.pi) + log_std_p
    return jnp.sum(log_normalizer + 0.5 * (standardized**2 + spread))


def bernoulli_to_bernoulli(
    logits_q: Float[Array, " D"], logits_p: Float[Array, " D"]
) -> Scalar:
    r"""KL(q || p) in nats between products of Bernoullis, summed over D.

    $\sum_d\sum_{b\in\{0,1\}} q_d(b)\log(q_d(b)/p_d(b))$ at $q_d(1) = $
    sigmoid(logits_q), in the form of `categorical_to_categorical`. The value and its
    gradient are finite for any finite logits: 0 log 0 is 0, and probabilities that
    underflow are never divided by. An infinite logit of q is a certain bit; the result
    is infinite where p rules out what q allows.

    Raises:
        ValueError: if the two arguments differ in shape.
    """
    numerics.check_shapes(logits_q=logits_q, logits_p=logits_p)
    log_q = jax.nn.log_sigmoid(jnp.stack([-logits_q, logits_q]))
    log_p = jax.nn.log_sigmoid(jnp.stack([-logits_p, logits_p]))
    return jnp.sum(_kl_terms(log_q, log_p))


def categorical_to_categorical(
    logits_q: Float[Array, "*D C"], logits_p: Float[Array, "*D C"]
) -> Scalar:
    r"""KL(q || p) in nats between categoricals over the last axis, summed over D.

    $\sum_d\sum_c q_{dc}\log(q_{dc}/p_{dc})$ at q = softmax(logits_q), so adding a
    constant to the logits of one variable changes nothing. Summed as
    $\sum_c(q_c\log(q_c/p_c) - q_c + p_c)$, whose terms are never negative and whose
    last two parts cancel because q and p each sum to one.

    The value and its gradient are finite where differences of logits are: 0 log 0 is 0,
    and probabilities that underflow are never divided by. A logit of minus infinity
    removes a class; the result is infinite where p removes a class that q keeps.

    Raises:
        ValueError: if the two arguments differ in shape or have no class axis.
    """
    numerics.check_shapes(logits_q=logits_q, logits_p=logits_p)
    if logits_q.ndim == 0 or logits_q.shape[-1] == 0:
        raise ValueError(f"logits need a last axis of classes, got {logits_q.shape}")
    log_q, log_p = jax.nn.log_softmax(logits_q), jax.nn.log_softmax(logits_p)
    return jnp.sum(_kl_terms(log_q, log_p))


def closed_kl(q: str, p: str) -> Callable[..., Float[Array, " G"]] | None:
    """KL(q || p) by the names of the two families, in nats of each group of latents.

    Takes q's parameters and then p's (`types.Family`). Each latent is a group of its
    own where both families factorize; else there is one. None where no closed form is
    known.

    Raises:
        ValueError: when traced, if q and p are of different sizes.
    """
    factorized = _FACTORIZED.get((q, p))
    if factorized is not None:

        def of_each(*parameters: Array) -> Float[Array, " G"]:
            shapes = [parameter.shape for parameter in parameters]
            if len(set(shapes)) > 1:
                raise ValueError(
                    f"the parameters of {q} as q and of {p} as the prior must have one "
                    f"shape, got {', '.join(map(str, shapes))}"
                )
            groups = [parameter[:, None] for parameter in parameters]
            return jax.vmap(factorized)(*groups)

        return of_each
    joint = _JOINT.get((q, p))
    return None if joint is None else lambda *parameters: joint(*parameters)[None]


_FACTORIZED: dict[tuple[str, str], Callable[..., Scalar]] = {
    ("diag_normal", "standard_normal"): diag_normal_to_standard_normal,
    ("diag_normal", "diag_normal"): diag_normal_to_diag_normal,
    ("bernoulli", "bernoulli"): bernoulli_to_bernoulli,
    ("categorical", "categorical"): categorical_to_categorical,
}
_JOINT: dict[tuple[str, str], Callable[..., Scalar]] = {
    ("full_normal", "standard_normal"): full_normal_to_standard_normal,
    ("power_spherical", "uniform_sphere"): power_spherical_to_uniform_sphere,
}


def _kl_terms(
    log_q: Float[Array, "*X"], log_p: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """q log(q/p) - q + p >= 0 for each outcome.

    Equal to q (exp(u) - 1 - u) at u = log(p/q); where u is large, exp(u) would
    overflow and the sum is as precise. Each branch sees only arguments of its own, so
    that neither sends a NaN back through the gradient of the other.
    """
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    impossible = jnp.isneginf(log_q)
    forbidden = jnp.isneginf(log_p) & ~impossible  # q may underflow: inf, not 0 * inf
    u = jnp.where(impossible | forbidden, 0.0, log_p - log_q)
    unlikely = u > 1.0  # under q, compared with p
    close = q * _exp_less_linear(jnp.where(unlikely, 0.0, u))
    far = p - q - q * jnp.where(unlikely, u, 0.0)
    possible = jnp.where(forbidden, jnp.inf, jnp.where(unlikely, far, close))
    return jnp.where(impossible, p, possible)


@jax.custom_jvp
def _exp_less_linear(u: Float[Array, "*X"]) -> Float[Array, "*X"]:
    """exp(u) - 1 - u >= 0 to full relative precision, with derivative expm1(u).

    Below |u| = 1/2 by the Taylor series, whose first dropped term is under 1e-16 of
    the result: there the subtraction would cancel.
    """
    small = jnp.abs(u) < 0.5
    v = jnp.where(small, u, 0.0)
    series = jnp.zeros_like(v)
    for n in range(15, 1, -1):
        series = series * v + 1.0 / math.factorial(n)
    return jnp.where(small, v**2 * series, jnp.expm1(u) - u)


@_exp_less_linear.defjvp
def _exp_less_linear_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (u,), (du,) = primals, tangents
    return _exp_less_linear(u), jnp.expm1(u) * du
