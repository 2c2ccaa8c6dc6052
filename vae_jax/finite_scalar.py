r"""Finite scalar quantization: codes that are rounded numbers (Mentzer et al. 2023).

Each latent is one of L_d values on a grid in [-1, 1], the nearest to a squashed output
of the encoder (arXiv:2309.15505). There is no codebook to learn or to lose. The bound
is exact, and what it says is in `codes`.

Gradients pass the rounding straight through (Bengio et al. 2013, arXiv:1308.3432), so
they are not those of the bound; log p(k) sends none to the encoder.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vae_jax import codes
from vae_jax.types import Conditional, PyTree


def grid(levels: Sequence[int]) -> codes.Codes:
    """All z of these numbers of values, $z_d = 2 k_d / (L_d - 1) - 1$.

    The paper shifts the grid of an even number of levels by half a step, so that zero
    is one of them: with two levels tanh is then flat where the encoder starts. Here
    every grid is symmetric.

    Args:
        levels: L_d of each latent, two or more.

    Raises:
        ValueError: for no latent or fewer than two levels.
    """
    if not levels or min(levels) < 2:
        raise ValueError(
            f"levels must be two or more of each of one latent or more, got {levels}"
        )
    sizes = np.asarray(levels)
    steps = sizes - 1

    def symbols(params: PyTree, z: Float[Array, " D"]) -> Int[Array, " D"]:
        del params
        return jnp.round(0.5 * (z + 1.0) * steps.astype(z.dtype)).astype(int)

    def value(params: PyTree, k: Int[Array, " D"], dtype: jnp.dtype) -> Array:
        del params
        return 2.0 * k.astype(dtype) / steps.astype(dtype) - 1.0

    return codes.Codes(sizes, 1, lambda key: (), symbols, value)


def posterior(levels: Sequence[int]) -> Conditional:
    r"""The point mass at the code of h [D].

    $z_d$ is the value that is nearest to tanh(h_d), whose slope the gradient of z is.

    Args:
        levels: as in `grid`.

    Raises:
        ValueError: as in `grid`.
    """
    values = grid(levels)

    def quantized(params: PyTree, h: Float[Array, " D"]) -> tuple[Array, Array]:
        smooth = jnp.tanh(h)
        k = values.symbols((), smooth)
        z = values.value((), k, h.dtype)
        del params
        return z + (smooth - jax.lax.stop_gradient(smooth)), k

    return codes.point_mass(
        "finite_scalar", values, width=len(levels), quantized=quantized
    )
