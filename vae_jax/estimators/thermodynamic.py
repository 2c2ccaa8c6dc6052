"""The thermodynamic variational objective, between the ELBO and log p(x)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.estimators import importance
from vae_jax.types import ExampleObjective, Model, Params, PRNGKey, Scalar


def thermodynamic(
    model: Model, *, num_samples: int, num_terms: int, first_beta: float = 0.03
) -> ExampleObjective:
    r"""The left Riemann sum of thermodynamic integration, and its covariance gradient.

    Masrani et al. 2019 (arXiv:1907.00031): with $\pi_\beta \propto q(z|x)^{1-\beta}
    p(x, z)^\beta$, $\log p(x) = \int_0^1 E_{\pi_\beta}[\log w]\,d\beta$, whose
    integrand rises with beta. So $\sum_k (\beta_{k+1} - \beta_k)\,
    E_{\pi_{\beta_k}}[\log w]$ is a lower bound, with $\beta_1 = 0$, the others rising
    by one factor from first_beta, and the last interval up to 1: with one term the
    ELBO, and with more of them closer to log p(x). The gradient of each term is
    $E[\nabla\log w] + Cov(\log w, \nabla\log\pi_\beta)$ under pi_beta, with q
    reparameterized or not.

    Each expectation is taken by the S samples of q with weights proportional to
    w^beta. Value: one draw of the sum, unbiased for one term and else with a bias of
    order 1/S, as normalized weights have. Gradient: likewise, theta and phi alike; one
    term is `score_function.leave_one_out`.

    Args:
        model: the joint p(x, z) and q.
        num_samples: S.
        num_terms: values of beta.
        first_beta: beta_2, inside (0, 1).

    Raises:
        ValueError: if num_samples is below two, num_terms below one, or first_beta not
            inside (0, 1).
    """
    numerics.check_positive(num_terms=num_terms)
    numerics.check_at_least(2, num_samples=num_samples, why=": a covariance is of two")
    numerics.check_in("(0, 1)", first_beta=first_beta)
    powers = np.arange(num_terms - 1, 0, -1) / max(num_terms - 1, 1)
    betas = np.concatenate([[0.0], first_beta**powers])
    draw = importance.log_densities(model, num_samples=num_samples)
    steps = np.diff(betas, append=1.0)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        log_p, log_q = draw(key, params, x)
        log_w = stop_gradient(log_p - log_q)
        beta = jnp.asarray(betas, log_w.dtype)
        weights = jax.nn.softmax(beta[:, None] * log_w[None], axis=1)  # [T, S]
        means = weights @ log_w
        each = jnp.asarray(steps, log_w.dtype)

        def covariance(
            weights: Float[Array, " S"], mean: Scalar, beta: Scalar
        ) -> Scalar:
            log_pi = (1.0 - beta) * log_q + beta * log_p
            return (weights * (log_w - mean)) @ log_pi

        covariances = jax.vmap(covariance)(weights, means, beta)
        # Under q itself: the score has mean zero, and the covariance is unbiased.
        at_q = beta == 0.0
        covariances *= jnp.where(at_q, num_samples / (num_samples - 1), 1.0)
        slopes = weights @ log_p - jnp.where(at_q, 0.0, weights @ log_q)
        return numerics.attach_gradient(each @ means, each @ (slopes + covariances))

    return objective
