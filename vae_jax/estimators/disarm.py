"""DisARM: an unbiased, low-variance gradient for factorial Bernoulli posteriors."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array

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


def disarm(model: Model, *, num_samples: int) -> ExampleObjective:
    r"""The ELBO with the gradient of antithetic pairs of bits.

    Dong, Mnih & Tucker 2020 (arXiv:2006.10680), the same estimator as Yin et al. 2020:
    bits $z_d = [h_d + \epsilon_d > 0]$ and $\tilde z_d = [h_d - \epsilon_d > 0]$ share
    the logistic noise, each is a draw of q, and with f = log p(x, z) - log q(z|x)

    $\hat g_d = \frac12 (f(z) - f(\tilde z)) (z_d - \tilde z_d)\,\sigma(|h_d|)$,

    the ARM estimator averaged over all noise that gives this pair; it is zero where
    the two bits agree. In theta it is the mean of the gradients of log p(x, z).

    Value: the mean of f over both members of every pair, unbiased for the ELBO.
    Gradient: unbiased for the ELBO's, theta and phi alike.

    Args:
        model: the joint p(x, z) and a factorial Bernoulli q (`posteriors.bernoulli`);
            a layered q is not covered.
        num_samples: of z, two a pair.

    Raises:
        ValueError: unless num_samples is even and at least two, and q Bernoulli.
    """
    if num_samples < 2 or num_samples % 2:
        raise ValueError(
            f"num_samples must be a positive even number, two a pair, got {num_samples}"
        )

    generative, recognition = model.generative, model.recognition
    logits_of = relaxed.logits(recognition, "bernoulli")

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        logits = logits_of(params, h)

        def pair(key: PRNGKey) -> Scalar:
            noise = jax.random.logistic(key, logits.shape, logits.dtype)
            z = (jnp.stack([logits + noise, logits - noise]) > 0.0).astype(x.dtype)
            log_p = jax.vmap(lambda z: log_joint(generative, params, x, z))(z)
            log_q = jax.vmap(lambda z: recognition.log_prob(params, h, z))(z)
            f = log_p - log_q
            slope = 0.5 * (f[0] - f[1]) * (z[0] - z[1])
            slope = stop_gradient(slope * jax.nn.sigmoid(jnp.abs(logits)))
            surrogate = log_p.mean() + slope @ logits
            return numerics.attach_gradient(f.mean(), surrogate)

        return numerics.over_samples(key, pair, num_samples=num_samples // 2).mean()

    return objective
