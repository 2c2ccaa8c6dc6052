r"""Bounds on log p(x) as functions of log weights, for one example.

A log weight is log w_k = log p(x, z_k) - log q(z_k | x) with z_k ~ q. The average
$\hat p = \frac1K\sum_k w_k$ is an unbiased estimate of p(x) for every K, because
E_q[w] = integral of p(x, z) dz. Its logarithm is not an unbiased estimate of log p(x):
the logarithm is concave, so by Jensen's inequality E[log p-hat] <= log E[p-hat] =
log p(x), with equality only where p-hat is constant. For weights of finite variance the
bias is -Var(w) / (2 K p(x)^2) + o(1/K): it falls with K and is never zero, so the mean
of log p-hat over repeats is a lower bound, however many repeats there are.
"""

from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import Scalar


def elbo(log_w: Float[Array, " K"]) -> Scalar:
    r"""Mean of the log weights: an unbiased estimate of the ELBO, in nats.

    $E_q[\log p(x, z) - \log q(z|x)] = \log p(x) - KL(q(z|x) || p(z|x))$, AEVB
    (arXiv:1312.6114) equations 1 and 2. More samples reduce its variance and leave the
    bound where it is; `iwae` is the bound that tightens.
    """
    _check(log_w)
    return log_w.mean()


def iwae(log_w: Float[Array, " K"]) -> Scalar:
    r"""Log of the mean weight: one draw of the K-sample bound, in nats.

    $L_K = E[\log\frac1K\sum_k w_k]$, Burda et al. 2016 (arXiv:1509.00519), equation 8:
    L_1 is the ELBO, L_K does not decrease in K, and L_K <= log p(x).
    """
    _check(log_w)
    return numerics.log_mean_exp(log_w)


def _check(log_w: Float[Array, " K"]) -> None:
    if log_w.ndim != 1 or log_w.shape[0] == 0:
        raise ValueError(f"log_w must have shape [K] with K >= 1, got {log_w.shape}.")
