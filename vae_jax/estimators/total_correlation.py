"""beta-TC-VAE: the ELBO whose gradient weighs the total correlation of the latents."""

import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import numerics
from vae_jax.estimators import aggregate_density, batch_penalty
from vae_jax.types import Model, Objective, Params, PRNGKey, PyTree, Scalar


def beta_tc(
    model: Model,
    *,
    num_samples: int,
    num_data: int,
    beta: float | Scalar,
    sampling: str = "stratified",
) -> Objective:
    r"""The ELBO, whose gradient weighs the total correlation of q(z) by beta.

    $ELBO - (\beta - 1)\,KL(q(z)\,||\,\prod_d q(z_d))$ is what it climbs: equation 4 of
    Chen et al. 2018 (arXiv:1802.04942) at alpha = gamma = 1, with the sum of the three
    parts in closed form and only the excess estimated, from the batch. At beta = 1 it
    is `sgvb.sgvb_b`, noise and all.

    Value: an unbiased draw of the ELBO. Gradient: biased for that objective too, as
    the logarithm of an estimate of q(z) is; exactly its own where the batch is the data
    set and sampling is stratified.

    Args:
        model: whose q is a normal of independent latents, with a closed-form KL.
        num_samples: L.
        num_data: N: the estimate of q(z) is of the data set, not of the batch.
        beta: weight of the total correlation; it may be traced.
        sampling: the estimator of log q(z), stratified or weighted
            (`aggregate_density`).

    Raises:
        ValueError: if beta is negative, or as `batch_penalty.penalized`.
    """
    numerics.check_not_negative(beta=beta)
    log_weights = aggregate_density.SAMPLING[sampling](num_data=num_data)

    def penalty(
        key: PRNGKey, params: Params, memory: PyTree, codes: batch_penalty.Codes
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        del key, params
        terms = batch_penalty.parts(codes, log_weights(codes.weight))
        excess = jnp.asarray(beta - 1.0, codes.z.dtype)
        return excess * terms.total_correlation, memory, {}

    return batch_penalty.penalized(
        model,
        num_samples=num_samples,
        num_data=num_data,
        penalty=penalty,
        sampling=sampling,
    )
