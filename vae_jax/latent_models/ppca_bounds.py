r"""The bound and the posterior gap of probabilistic PCA under a normal q: closed forms.

The model is that of `ppca`: z ~ N(0, I), x | z ~ N(W z + mu, s2 I), whose posterior has
the precision $\Lambda = W^TW / s2 + I$ whatever x is. q(z | x) = N(m, L L^T) is any
normal. Each function takes its own way: the bound is a reconstruction less a divergence
from the prior, the gap is a divergence from the posterior, and log p(x) is
`ppca.log_evidence`; that the three fit together is a theorem, and a test.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import divergences, numerics, posteriors
from vae_jax.latent_models import ppca
from vae_jax.types import Params, Scalar


class RateDistortion(NamedTuple):
    """Rate and distortion of one x, nats.

    Attributes:
        rate: KL(q || p(z)).
        distortion: E_q[-log p(x | z)].
    """

    rate: Scalar
    distortion: Scalar


def bound(
    params: Params,
    x: Float[Array, "*X"],
    mean: Float[Array, " D"],
    scale_tril: Float[Array, "D D"],
    *,
    min_std: float = 1e-3,
) -> Scalar:
    r"""E_q[log p(x | z)] - KL(q || N(0, I)) in nats, for q = N(mean, L L^T).

    AEVB (arXiv:1312.6114) equation 3, with $E_q|x - \mu - Wz|^2 = |x - \mu - Wm|^2 +
    |WL|^2$ (the sum of the squares of W L).

    Args:
        params: as `ppca.generative` has them.
        x: one observation.
        mean: of q.
        scale_tril: L, lower triangular with a positive diagonal.
        min_std: as in `ppca`.

    Raises:
        ValueError: if min_std is not positive and finite, or a shape does not fit.
    """
    w, mu, log_std = ppca.read(params, numerics.log_of("min_std", min_std))
    with jax.default_matmul_precision("highest"):
        error = jnp.sum((ppca.centered(x, mu) - w @ mean) ** 2)
        error += jnp.sum((w @ jnp.tril(scale_tril)) ** 2)
    log_normalizer = mu.shape[0] * (0.5 * math.log(2.0 * math.pi) + log_std)
    reconstruction = -(log_normalizer + 0.5 * error * jnp.exp(-2.0 * log_std))
    return reconstruction - divergences.full_normal_to_standard_normal(mean, scale_tril)


def posterior_divergence(
    params: Params,
    x: Float[Array, "*X"],
    mean: Float[Array, " D"],
    scale_tril: Float[Array, "D D"],
    *,
    min_std: float = 1e-3,
) -> Scalar:
    r"""KL(q || p(z | x)) in nats, for q = N(mean, L L^T): the posterior gap.

    With the posterior $N(m_*, L_*L_*^T)$ it is the divergence of a normal of mean
    $L_*^{-1}(m - m_*)$ and factor $L_*^{-1}L$ from the standard one, as no invertible
    map of z changes it.

    Raises:
        ValueError: as `bound`.
    """
    num_latents = mean.shape[0]
    h = ppca.recognition(num_latents, min_std=min_std).encode(params, x)
    exact_mean, exact_tril = posteriors.mean_and_scale_tril(h, num_latents)
    # One solve for both: two side by side are two factorizations at once to XLA.
    tril = jnp.tril(scale_tril)  # above it the caller may keep anything
    sides = jnp.concatenate([(mean - exact_mean)[:, None], tril], axis=1)
    whitened = jax.scipy.linalg.solve_triangular(exact_tril, sides, lower=True)
    return divergences.full_normal_to_standard_normal(whitened[:, 0], whitened[:, 1:])


def rate_distortion(
    params: Params, x: Float[Array, "*X"], *, beta: float, min_std: float = 1e-3
) -> RateDistortion:
    r"""Rate and distortion of the q that minimizes R + beta D, in closed form.

    $q_\beta(z) \propto p(z)\, p(x | z)^\beta$ (Huang et al. 2020, arXiv:2008.06653) is
    the posterior of the same model with the variance s2 / beta. At beta = 1 the two sum
    to -log p(x), and along beta the rate changes by -beta times what the distortion
    does.

    Raises:
        ValueError: if beta is not positive and finite, or as `bound`.
    """
    numerics.check_in("(0, inf)", beta=beta)
    w, mu, log_std = ppca.read(params, numerics.log_of("min_std", min_std))
    num_latents = w.shape[1]
    shift = 0.5 * math.log(beta)
    sharper = params._replace(generative=ppca.parameters(w, mu, log_std - shift))
    floor = min_std * math.exp(-shift)
    h = ppca.recognition(num_latents, min_std=floor).encode(sharper, x)
    mean, scale_tril = posteriors.mean_and_scale_tril(h, num_latents)
    rate = divergences.full_normal_to_standard_normal(mean, scale_tril)
    elbo = bound(params, x, mean, scale_tril, min_std=min_std)
    return RateDistortion(rate, -(elbo + rate))


def best_diagonal(
    params: Params, x: Float[Array, "*X"], *, min_std: float = 1e-3
) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    r"""Mean and log std of the diagonal normal with the greatest bound for x.

    The posterior's mean, and the variances $1/\Lambda_{dd}$, which are the posterior's
    conditional and not its marginal ones: at most those (Bishop 2006, section 10.1.2).

    Raises:
        ValueError: if min_std is not positive and finite.
    """
    w, _, log_std = ppca.read(params, numerics.log_of("min_std", min_std))
    num_latents = w.shape[1]
    h = ppca.recognition(num_latents, min_std=min_std).encode(params, x)
    return h[:num_latents], -0.5 * jnp.log(_precisions(w, log_std))


def diagonal_gap(params: Params, *, min_std: float = 1e-3) -> Scalar:
    r"""log p(x) - L[q*] in nats for the best diagonal normal q*, the same for every x.

    $\frac12\big(\sum_d\log\Lambda_{dd} - \log\det\Lambda\big)$, the approximation gap:
    zero where the columns of W are orthogonal, and never negative (Hadamard).

    Raises:
        ValueError: if min_std is not positive and finite.
    """
    w, mu, log_std = ppca.read(params, numerics.log_of("min_std", min_std))
    num_latents = w.shape[1]
    h = ppca.recognition(num_latents, min_std=min_std).encode(params, mu)
    _, exact_tril = posteriors.mean_and_scale_tril(h, num_latents)
    # log det of the posterior's covariance, which is minus that of its precision.
    half_log_det = jnp.log(jnp.diagonal(exact_tril)).sum()
    return 0.5 * jnp.log(_precisions(w, log_std)).sum() + half_log_det


def _precisions(w: Array, log_std: Scalar) -> Float[Array, " D"]:
    """The diagonal of the posterior's precision."""
    return 1.0 + jnp.sum(w**2, axis=0) * jnp.exp(-2.0 * log_std)
