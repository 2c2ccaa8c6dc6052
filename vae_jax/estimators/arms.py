"""ARMS: antithetic groups of bits of any size, for factorial Bernoulli posteriors."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.estimators import relaxed
from vae_jax.types import (
    ExampleObjective,
    Model,
    Params,
    PRNGKey,
    Scalar,
    log_joint,
)


def arms(model: Model, *, num_samples: int) -> ExampleObjective:
    r"""The ELBO with the gradient of n bits that repel each other.

    Dimitriev & Zhou 2021 (arXiv:2105.14141): n draws z_1, ..., z_n of q share noise by
    which any two bits of a latent have the correlation rho_d < 0, and with f = log
    p(x, z) - log q(z|x) and its mean over the n

    $\hat g_d = \frac{1}{n - 1}\sum_i (f(z_i) - \bar f)\,
    \frac{z_{id} - \sigma(h_d)}{1 - \rho_d}$:

    `score_function.leave_one_out`, whose samples are independent, divided by 1 - rho.
    At n = 2 it is `disarm`. The noise is a Dirichlet copula: $u_i = 1 - (1 -
    e_i)^{n-1}$ of e uniform on the simplex. In theta it is the mean of the gradients of
    log p(x, z).

    Value: the mean of f, unbiased for the ELBO. Gradient: unbiased for the ELBO's,
    theta and phi alike.

    Args:
        model: the joint p(x, z) and a factorial Bernoulli q (`posteriors.bernoulli`);
            a layered q is not covered.
        num_samples: n.

    Raises:
        ValueError: unless num_samples is at least two and q Bernoulli.
    """
    numerics.check_at_least(2, num_samples=num_samples)
    generative, recognition = model.generative, model.recognition
    logits_of = relaxed.logits(recognition, "bernoulli")

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        logits = logits_of(params, h)
        z = antithetic_bits(key, stop_gradient(logits), num_samples=num_samples)
        log_p = numerics.over_rows(lambda z: log_joint(generative, params, x, z), z)
        log_q = numerics.over_rows(lambda z: recognition.log_prob(params, h, z), z)
        f = log_p - log_q
        centered = (f - f.mean()) / (num_samples - 1)
        scores = (z - jax.nn.sigmoid(logits)[None]) / (
            1.0 - correlation(logits, num_samples=num_samples)
        )[None]
        slope = stop_gradient(centered @ scores)
        return numerics.attach_gradient(f.mean(), log_p.mean() + slope @ logits)

    return objective


def antithetic_bits(
    key: PRNGKey, logits: Float[Array, " D"], *, num_samples: int
) -> Float[Array, "n D"]:
    """n rows of bits, each row a draw of the Bernoulli, any two correlated alike.

    Of the rarer value of a bit, so that two rarely have it at once.
    """
    shape = (num_samples, *logits.shape)
    noise = jax.random.exponential(key, shape, logits.dtype)
    e = noise / noise.sum(0)[None]
    rare = e < _share(logits, num_samples)[None]
    return jnp.where((logits > 0.0)[None], ~rare, rare).astype(logits.dtype)


def correlation(logits: Float[Array, " D"], *, num_samples: int) -> Float[Array, " D"]:
    """rho of any two of `antithetic_bits`.

    With p the rarer value's probability and P(e_i < s) = p, both are rare with
    probability 2 p - 1 + max(0, 1 - 2 s)^(n - 1).
    """
    p = jax.nn.sigmoid(-jnp.abs(logits))
    s = _share(logits, num_samples)
    overlap = jnp.where(s < 0.5, s, 0.0)
    neither = jnp.expm1((num_samples - 1) * jnp.log1p(-2.0 * overlap))
    both = 2.0 * p + jnp.where(s < 0.5, neither, -1.0)
    occurs = p > float(jnp.finfo(p.dtype).tiny)  # else rho is as small as p
    safe = jnp.where(occurs, p, 1.0)
    return jnp.where(occurs, (both / safe - p) / (1.0 - p), 0.0)


def _share(logits: Float[Array, " D"], num_samples: int) -> Float[Array, " D"]:
    """s with P(e_i < s) = 1 - (1 - s)^(n - 1) = p, the rarer value's probability."""
    return -jnp.expm1(jax.nn.log_sigmoid(jnp.abs(logits)) / (num_samples - 1))
