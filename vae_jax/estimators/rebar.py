"""REBAR: a score-function gradient for bits, with their relaxation subtracted."""

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


def rebar(
    model: Model,
    *,
    num_samples: int,
    temperature: float | Scalar,
    strength: float | Scalar = 1.0,
) -> ExampleObjective:
    r"""The ELBO with the score-function gradient and a relaxed control variate.

    Tucker et al. 2017 (arXiv:1703.07370) equation 5: bits are b = [z > 0] of logistic
    z = h + noise, z~ is another draw of z given b, and for any function c of z

    $(f(b) - c(\tilde z))\,\nabla\log q(b|x) + \nabla c(z) - \nabla c(\tilde z)$

    has the mean of the score-function gradient alone, z and z~ differentiated through
    their noise. Here c is strength times f = log p(x, b) - log q(b|x) at the relaxed
    bits sigmoid(z / T): it takes away more of the noise, the better it is correlated
    with f. In theta it is the mean of the gradients of log p(x, b).

    Value: the mean of f at bits, unbiased for the ELBO. Gradient: unbiased for the
    ELBO's, theta and phi alike, at any temperature and strength.

    Args:
        model: the joint p(x, z), whose densities must accept z inside [0, 1], and a
            factorial Bernoulli q (`posteriors.bernoulli`); a layered q is not covered.
        num_samples: of z, each decoded three times.
        temperature: T > 0; it may be traced.
        strength: eta; at 0 it is the score function without a baseline.

    Raises:
        ValueError: if num_samples is below one, temperature is a number that is not
            positive and finite, or q is not Bernoulli.
    """
    numerics.check_positive(num_samples=num_samples)
    relaxed.check_temperature(temperature)
    generative, recognition = model.generative, model.recognition
    logits_of = relaxed.logits(recognition, "bernoulli")

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        logits = logits_of(params, h)
        fixed, fixed_h = stop_gradient((params, h))
        heat = jnp.asarray(temperature, logits.dtype)

        def control(z: Array) -> Scalar:
            bits = jax.nn.sigmoid(z / heat)
            log_q = recognition.log_prob(fixed, fixed_h, bits)
            return strength * (log_joint(generative, fixed, x, bits) - log_q)

        def one(key: PRNGKey) -> Scalar:
            bits, z, again = relaxed_pair(key, logits)
            log_p = log_joint(generative, params, x, bits)
            log_q = recognition.log_prob(params, h, bits)
            f, at_z, at_again = log_p - log_q, control(z), control(again)
            signal = stop_gradient(f - at_again)
            return numerics.attach_gradient(f, log_p + signal * log_q + at_z - at_again)

        return numerics.over_samples(key, one, num_samples=num_samples).mean()

    return objective


def relaxed_pair(
    key: PRNGKey, logits: Float[Array, " D"]
) -> tuple[Float[Array, " D"], Float[Array, " D"], Float[Array, " D"]]:
    """Bits b, the logistic z of which they are the signs, and z~ of z given b.

    Tucker et al. 2017, appendix C: z~ is log(1 + e^n / (1 - p)) where b = 1 and
    -log(1 + e^n / p) where b = 0, for logistic n. The last two carry gradients.
    """
    key_z, key_again = jax.random.split(key)
    z = logits + jax.random.logistic(key_z, logits.shape, logits.dtype)
    noise = jax.random.logistic(key_again, logits.shape, logits.dtype)
    is_one = z > 0.0
    sign = jnp.where(is_one, 1.0, -1.0).astype(logits.dtype)
    again = sign * numerics.softplus(noise + numerics.softplus(sign * logits))
    return is_one.astype(logits.dtype), z, again
