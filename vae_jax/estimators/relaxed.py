"""Biased pathwise gradients through discrete latents: straight-through and Concrete.

All are for a factorial q whose h is its logits, `posteriors.bernoulli` or
`posteriors.categorical`; a layered q is not covered. The value is a draw of the ELBO of
one example at true discrete samples, in nats, and never that of a relaxed model: the KL
is the closed form of the discrete densities. The bias is in phi alone, because theta
sees discrete samples only.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array

from vae_jax import numerics
from vae_jax.types import (
    Generative,
    Objective,
    Params,
    PRNGKey,
    Recognition,
    Scalar,
    log_likelihood,
)

LogitsKL = Callable[[Params, Array], Scalar]  # params, h -> KL(q || prior), nats


def straight_through(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    kl: LogitsKL,
    mean: Callable[[Array], Array] = jax.nn.sigmoid,
) -> Objective:
    """The ELBO with the gradient of E_q[z] in place of that of the bits.

    Bengio et al. 2013 (arXiv:1308.3432), the straight-through estimator: forward z is a
    draw of q; backward dz/dh is that of its mean, as if log p(x | z) were affine in z.

    Value: unbiased for the ELBO. Gradient: unbiased for theta; biased for phi, except
    in the KL, whose gradient is exact.

    Args:
        generative: the joint p(x, z).
        recognition: a factorial q whose h is its logits.
        num_samples: of z.
        kl: (params, h) -> KL(q || prior), such as `divergences.bernoulli_to_bernoulli`
            at h and the prior's logits.
        mean: h -> E_q[z] in the shape of z; for a categorical q the softmax.

    Raises:
        ValueError: if num_samples is below one, or E_q[z] does not have the shape of z.
    """
    numerics.check_positive(num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)

        def reconstruct(key: PRNGKey) -> Scalar:
            z = recognition.sample(key, params, h)
            expected = mean(h)
            if expected.shape != z.shape:
                raise ValueError(
                    f"z has shape {z.shape} and its mean {expected.shape}: q must be "
                    f"factorial, with its logits as h."
                )
            through = numerics.attach_gradient(z, expected)
            return log_likelihood(generative, params, x, through)

        draws = numerics.over_samples(key, reconstruct, num_samples=num_samples)
        return draws.mean() - kl(params, h)

    return objective


def binary_concrete(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    kl: LogitsKL,
    temperature: float | Scalar,
) -> Objective:
    r"""The ELBO of Bernoulli latents with phi's gradient through relaxed bits.

    Maddison et al. 2017 (arXiv:1611.00712), Jang et al. 2017 (arXiv:1611.01144): with
    logistic noise, $z = [h + \epsilon > 0]$ is a draw of q and
    $\sigma((h + \epsilon)/T)$ tends to it as T -> 0.

    Value: the ELBO at z, unbiased. Gradient for theta: at z, unbiased. Gradient for
    phi: of log p(x | z) at the relaxed bits, biased; the bias falls and the variance
    grows without bound as T -> 0. The KL's gradient is exact.

    Args:
        generative: the joint p(x, z); log p(x | z) must accept z inside [0, 1].
        recognition: a factorial Bernoulli q whose h is its logits [D].
        num_samples: of z.
        kl: (params, h) -> KL(q || prior) of the discrete densities, such as
            `divergences.bernoulli_to_bernoulli` at h and the prior's logits.
        temperature: T > 0; it may be traced, for a schedule.

    Raises:
        ValueError: if num_samples is below one or temperature is a number that is not
            positive and finite.
    """

    def draw(key: PRNGKey, h: Array, temperature: Scalar) -> tuple[Array, Array]:
        noisy = h + jax.random.logistic(key, h.shape, h.dtype)
        return (noisy > 0.0).astype(h.dtype), jax.nn.sigmoid(noisy / temperature)

    return _concrete(generative, recognition, draw, num_samples, kl, temperature)


def gumbel_softmax(
    generative: Generative,
    recognition: Recognition,
    *,
    num_classes: int,
    num_samples: int,
    kl: LogitsKL,
    temperature: float | Scalar,
) -> Objective:
    """The ELBO of categorical latents with phi's gradient through relaxed choices.

    Jang et al. 2017 (arXiv:1611.01144), Maddison et al. 2017 (arXiv:1611.00712): with
    Gumbel noise, the argmax of h + noise is a draw of q and softmax((h + noise) / T)
    tends to it as T -> 0. Value and gradients as in `binary_concrete`: theta unbiased;
    phi biased, less so and noisier as T -> 0.

    Args:
        generative: the joint p(x, z); log p(x | z) must accept z on the simplex.
        recognition: a factorial categorical q whose h is its logits, [D, C] flattened.
        num_classes: C.
        num_samples: of z.
        kl: (params, h) -> KL(q || prior) of the discrete densities, such as
            `divergences.categorical_to_categorical` at h [D, C] and the prior's logits.
        temperature: T > 0; it may be traced, for a schedule.

    Raises:
        ValueError: if num_classes is below two, num_samples below one or temperature a
            number that is not positive and finite.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least two, got {num_classes}.")

    def draw(key: PRNGKey, h: Array, temperature: Scalar) -> tuple[Array, Array]:
        logits = h.reshape(-1, num_classes)
        noisy = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
        hard = jax.nn.one_hot(noisy.argmax(-1), num_classes, dtype=h.dtype)
        return hard, jax.nn.softmax(noisy / temperature)

    return _concrete(generative, recognition, draw, num_samples, kl, temperature)


def _concrete(
    generative: Generative,
    recognition: Recognition,
    draw: Callable[[PRNGKey, Array, Scalar], tuple[Array, Array]],
    num_samples: int,
    kl: LogitsKL,
    temperature: float | Scalar,
) -> Objective:
    """Value and theta at the discrete z, phi at its relaxation; draw gives both."""
    numerics.check_positive(num_samples=num_samples)
    if isinstance(temperature, float | int) and not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}.")

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        fixed = params._replace(generative=stop_gradient(params.generative))
        drawn = jax.eval_shape(recognition.sample, key, params, h).shape

        def reconstruct(key: PRNGKey) -> Scalar:
            hard, soft = draw(key, h, jnp.asarray(temperature, h.dtype))
            if hard.shape != drawn:
                raise ValueError(
                    f"q draws z of shape {drawn}, its logits {hard.shape}: q must be "
                    "factorial, with its logits as h."
                )
            at_hard = log_likelihood(generative, params, x, stop_gradient(hard))
            at_soft = log_likelihood(generative, fixed, x, soft)
            return numerics.attach_gradient(at_hard, at_hard + at_soft)

        draws = numerics.over_samples(key, reconstruct, num_samples=num_samples)
        return draws.mean() - kl(params, h)

    return objective
