"""The doubly reparameterized gradient where the prior is learned: GDReG."""

import jax
from jax.lax import stop_gradient
from jaxtyping import Array

from vae_jax import bounds, numerics
from vae_jax.types import (
    ExampleObjective,
    Model,
    Params,
    PRNGKey,
    Scalar,
    log_likelihood,
)


def gdreg(model: Model, *, num_samples: int) -> ExampleObjective:
    r"""The K-sample bound with the path gradient for phi and for the prior's theta.

    Bauer & Mnih 2021 (arXiv:2101.11046). Where the prior is z = T(eps; theta) of fixed
    noise, for any function g of z

    $E_q[g\,\nabla_\theta\log p(z)] = E_q[(\nabla_z g + g\,\nabla_z\log\frac{q(z|x)}
    {p(z)})^T\,\nabla_\theta T(\tilde\epsilon; \theta)]$ at $\tilde\epsilon =
    T^{-1}(z; \theta)$,

    equation 8 there. With $g = \tilde w_k$, the normalized weight, theta's gradient
    through log p(z_k) becomes $\sum_k(\tilde w_k\nabla_z\log p(x|z_k) - \tilde
    w_k^2\nabla_z\log w_k)^T\,\nabla_\theta T$. For phi it is `importance.dreg`, as it
    is for theta where q reads it (a ladder's does: there T is the map of all its
    layers, so that the conditional priors have this gradient too). The likelihood's
    own theta has the ordinary one.

    Value: one draw of L_K. Gradient: unbiased for that of L_K, theta and phi alike.
    Where q(z | x) = p(z) at K = 1 the prior's is zero.

    Args:
        model: the joint p(x, z) and q, reparameterized, and a prior that is a map of
            noise (`Generative.transport`) and does not read phi.
        num_samples: K.

    Raises:
        ValueError: if num_samples is below one, or the prior is no map of noise.
    """
    numerics.check_positive(num_samples=num_samples)
    generative, recognition = model.generative, model.recognition
    transport = generative.transport
    if transport is None:
        raise ValueError(
            f"the prior {generative.prior_family.name} is no map of noise: use dreg, "
            "or a prior such as a flow, a normal or a ladder's"
        )

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        fixed, fixed_h = stop_gradient((params, h))

        def draw(key: PRNGKey) -> Array:
            return recognition.sample(key, params, h)

        def reconstruct(z: Array) -> Scalar:
            return log_likelihood(generative, fixed, x, z)

        def log_ratio(z: Array) -> Scalar:
            log_q = recognition.log_prob(fixed, fixed_h, z)
            return generative.log_prior(fixed, z) - log_q

        z = numerics.over_samples(key, draw, num_samples=num_samples)
        at = stop_gradient(z)
        log_p, slope = numerics.over_rows(jax.value_and_grad(reconstruct), at)
        ratio, slope_of_ratio = numerics.over_rows(jax.value_and_grad(log_ratio), at)
        log_w = log_p + ratio
        weights = jax.nn.softmax(log_w)
        along_q = (weights**2)[:, None] * (slope + slope_of_ratio)
        along_p = weights[:, None] * slope - along_q

        def moved(z: Array) -> Array:
            return transport.forward(params, stop_gradient(transport.inverse(fixed, z)))

        terms = numerics.over_rows(
            lambda z: log_likelihood(generative, params, x, z), at
        )
        surrogate = (
            weights @ terms
            + (along_q * z).sum()
            + (along_p * numerics.over_rows(moved, at)).sum()
        )
        return numerics.attach_gradient(bounds.iwae(log_w), surrogate)

    return objective
