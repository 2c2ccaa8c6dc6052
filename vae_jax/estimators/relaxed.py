"""Biased pathwise gradients through discrete latents: straight-through and Concrete.

All are for a factorial q, `posteriors.bernoulli` or `posteriors.categorical`, and a
prior to which its KL has a closed form; a layered q is not covered. The value is a draw
of the ELBO of one example at true discrete samples, in nats, and never that of a
relaxed model: the KL is that of the discrete densities. The bias is in phi alone,
because theta sees discrete samples only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import (
    ExampleObjective,
    Model,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
    log_likelihood,
)


def straight_through(model: Model, *, num_samples: int) -> ExampleObjective:
    """The ELBO with the gradient of E_q[z] in place of that of the bits.

    Bengio et al. 2013 (arXiv:1308.3432), the straight-through estimator: forward z is a
    draw of q; backward dz/dh is that of its mean, as if log p(x | z) were affine in z.

    Value: unbiased for the ELBO. Gradient: unbiased for theta; biased for phi, except
    in the KL, whose gradient is exact.

    Args:
        model: with a factorial q of bits or choices.
        num_samples: of z.

    Raises:
        ValueError: if num_samples is below one, or q or its KL to the prior is not
            known in closed form.
    """
    numerics.check_positive(num_samples=num_samples)
    logits(model.recognition, "bernoulli", "categorical")
    kl, moments = _kl(model), model.recognition.moments
    assert moments is not None

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = model.recognition.encode(params, x)

        def reconstruct(key: PRNGKey) -> Scalar:
            z = model.recognition.sample(key, params, h)
            through = numerics.attach_gradient(z, moments(params, h)[0])
            return log_likelihood(model.generative, params, x, through)

        draws = numerics.over_samples(key, reconstruct, num_samples=num_samples)
        return draws.mean() - kl(params, h)

    return objective


def binary_concrete(
    model: Model, *, num_samples: int, temperature: float | Scalar
) -> ExampleObjective:
    r"""The ELBO of Bernoulli latents with phi's gradient through relaxed bits.

    Maddison et al. 2017 (arXiv:1611.00712), Jang et al. 2017 (arXiv:1611.01144): with
    logistic noise, $z = [h + \epsilon > 0]$ is a draw of q and
    $\sigma((h + \epsilon)/T)$ tends to it as T -> 0.

    Value: the ELBO at z, unbiased. Gradient for theta: at z, unbiased. Gradient for
    phi: of log p(x | z) at the relaxed bits, biased; the bias falls and the variance
    grows without bound as T -> 0. The KL's gradient is exact.

    Args:
        model: with a factorial Bernoulli q; its log p(x | z) must accept z inside
            [0, 1].
        num_samples: of z.
        temperature: T > 0; it may be traced, for a schedule.

    Raises:
        ValueError: if num_samples is below one, temperature is a number that is not
            positive and finite, q is not Bernoulli or its KL to the prior is not known
            in closed form.
    """

    def draw(
        key: PRNGKey, logits: Float[Array, " D"], temperature: Scalar
    ) -> tuple[Array, Array]:
        noisy = logits + jax.random.logistic(key, logits.shape, logits.dtype)
        hard = (noisy > 0.0).astype(logits.dtype)
        return hard, jax.nn.sigmoid(noisy / temperature)

    return _concrete(model, draw, "bernoulli", num_samples, temperature)


def gumbel_softmax(
    model: Model, *, num_samples: int, temperature: float | Scalar
) -> ExampleObjective:
    """The ELBO of categorical latents with phi's gradient through relaxed choices.

    Jang et al. 2017 (arXiv:1611.01144), Maddison et al. 2017 (arXiv:1611.00712): with
    Gumbel noise, the argmax of h + noise is a draw of q and softmax((h + noise) / T)
    tends to it as T -> 0. Value and gradients as in `binary_concrete`: theta unbiased;
    phi biased, less so and noisier as T -> 0.

    Args:
        model: with a factorial categorical q; its log p(x | z) must accept z on the
            simplex.
        num_samples: of z.
        temperature: T > 0; it may be traced, for a schedule.

    Raises:
        ValueError: if num_samples is below one, temperature is a number that is not
            positive and finite, q is not categorical or its KL to the prior is not
            known in closed form.
    """

    def draw(
        key: PRNGKey, logits: Float[Array, "D C"], temperature: Scalar
    ) -> tuple[Array, Array]:
        noisy = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
        num_classes = logits.shape[-1]
        hard = jax.nn.one_hot(noisy.argmax(-1), num_classes, dtype=logits.dtype)
        return hard, jax.nn.softmax(noisy / temperature)

    return _concrete(model, draw, "categorical", num_samples, temperature)


def logits(
    recognition: Recognition, *families: str
) -> Callable[[Params, PyTree], Array]:
    """(params, h) -> the logits of a q of one of these families.

    Raises:
        ValueError: if q is of another family.
    """
    name, parameters = recognition.family
    if name not in families or parameters is None:
        raise ValueError(
            f"q must be a factorial {' or '.join(families)} density, got {name}"
        )
    return lambda params, h: parameters(params, h)[0]


def check_temperature(temperature: float | Scalar) -> None:
    """Refuses a number that is no temperature of relaxed bits; traced ones pass.

    Raises:
        ValueError: if it is not positive and finite.
    """
    numerics.check_in("(0, inf)", temperature=temperature)


def _kl(model: Model) -> Callable[[Params, PyTree], Scalar]:
    of_groups = model.kl
    if of_groups is None:
        raise ValueError(
            f"the KL of a {model.recognition.family.name} q to "
            f"{model.generative.prior_family.name} has no closed form"
        )
    return lambda params, h: of_groups(params, h).sum()


def _concrete(
    model: Model,
    draw: Callable[[PRNGKey, Array, Scalar], tuple[Array, Array]],
    family: str,
    num_samples: int,
    temperature: float | Scalar,
) -> ExampleObjective:
    """Value and theta at the discrete z, phi at its relaxation; draw gives both."""
    numerics.check_positive(num_samples=num_samples)
    check_temperature(temperature)
    logits_of, kl = logits(model.recognition, family), _kl(model)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = model.recognition.encode(params, x)
        logits_of_x = logits_of(params, h)
        fixed = params._replace(generative=stop_gradient(params.generative))

        def reconstruct(key: PRNGKey) -> Scalar:
            hard, soft = draw(
                key, logits_of_x, jnp.asarray(temperature, logits_of_x.dtype)
            )
            at_hard = log_likelihood(model.generative, params, x, stop_gradient(hard))
            at_soft = log_likelihood(model.generative, fixed, x, soft)
            return numerics.attach_gradient(at_hard, at_hard + at_soft)

        draws = numerics.over_samples(key, reconstruct, num_samples=num_samples)
        return draws.mean() - kl(params, h)

    return objective
