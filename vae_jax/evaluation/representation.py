"""What the latents carry: posterior moments, KL per latent, active units."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vae_jax.types import Scalar


def kl_per_latent(
    h: Float[Array, " H"], *, kl: Callable[[Array, Array], Scalar]
) -> Float[Array, " D"]:
    """KL of each latent of a factorized normal q, in nats; they sum to the KL.

    Args:
        h: [mean, log_std], each of length D.
        kl: closed form from (mean, log_std), for a prior that factorizes alike, such as
            `divergences.diag_normal_to_standard_normal`.
    """
    mean, log_std = jnp.split(h[:, None], 2)
    return jax.vmap(kl)(mean, log_std)


def active_units(
    means: Float[Array, "N D"], *, threshold: float = 0.01
) -> Int[Array, ""]:
    """Number of latents whose posterior mean varies over the data by more than that.

    A_u = Var_x(E_q[u | x]) > 0.01, Burda et al. 2016 (arXiv:1509.00519) section 5.1.

    Raises:
        ValueError: if there are fewer than two rows to take a variance of.
    """
    if means.shape[0] < 2:
        raise ValueError(f"active_units needs two rows or more, got {means.shape[0]}.")
    return (means.var(axis=0) > threshold).sum()
