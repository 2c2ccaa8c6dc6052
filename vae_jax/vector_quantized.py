r"""Vector quantization: codes that are rows of a codebook (van den Oord et al. 2017).

The encoder gives a vector at each of N places; q is a point mass at the nearest of K
learned vectors (arXiv:1711.00937), or at a sum of several, each the nearest to what the
ones before leave (residual levels, as in Zeghidour et al. 2021, arXiv:2107.03312). The
bound is exact, and what it says is in `codes`.

The codebooks belong to p: they are the `codes` of the prior's parameters, which q reads
(`read`). No gradient of the bound reaches them or, but for an estimate, the encoder:
`estimators.codebook` learns both.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from vae_jax import codes, numerics
from vae_jax.types import Conditional, Network, Params, PRNGKey, PyTree

Codebooks = Float[Array, "R K W"]


class Quantized(NamedTuple):
    """What each level does to the vectors of one example.

    Attributes:
        nearest: the row of the level's codebook.
        remainder: what the level quantizes: the vector less the rows before, with its
            gradient to the vector.
        row: of the codebook, with its gradient to that.
    """

    nearest: Int[Array, "N R"]
    remainder: Float[Array, "N R W"]
    row: Float[Array, "N R W"]


def quantize(codebooks: Codebooks, h: Float[Array, " N*W"]) -> Quantized:
    """Level by level the nearest row to what is left of each vector."""
    remainder = h.reshape(-1, codebooks.shape[-1])
    levels = []
    for codebook in codebooks:
        nearest = _nearest(codebook, stop_gradient(remainder))
        row = codebook[nearest]
        levels.append(Quantized(nearest, remainder, row))
        remainder = remainder - stop_gradient(row)
    return Quantized(*(jnp.stack(of, axis=1) for of in zip(*levels, strict=True)))


def _nearest(
    codebook: Float[Array, "K W"], vectors: Float[Array, "N W"]
) -> Int[Array, " N"]:
    # Around the codebook's mean: far from 0 the differences are what cancels.
    center = codebook.mean(axis=0, keepdims=True)
    codebook, vectors = codebook - center, vectors - center
    half_squares = 0.5 * (codebook**2).sum(axis=1)[None]
    products = jnp.matmul(vectors, codebook.T, precision="highest")
    return jnp.argmax(products - half_squares, axis=1)


def rows(
    num_places: int, *, num_rows: int, width: int, num_levels: int = 1
) -> codes.Codes:
    """z of one row of a codebook at each place and level, [N, R, W] laid flat.

    All places share the codebooks [R, K, W]. Rows start normal, of a length of one on
    average.

    Args:
        num_places: N.
        num_rows: K, of each codebook.
        width: W, of a row.
        num_levels: R.

    Raises:
        ValueError: for a size below one, or a codebook of fewer than two rows.
    """
    numerics.check_positive(num_places=num_places, width=width, num_levels=num_levels)
    numerics.check_at_least(2, num_rows=num_rows)
    shape = num_levels, num_rows, width
    levels = np.tile(np.arange(num_levels), num_places)

    def init(key: PRNGKey) -> Codebooks:
        dtype: Any = jnp.result_type(float)
        return jax.random.normal(key, shape, dtype) / math.sqrt(width)

    def symbols(codebooks: Codebooks, z: Array) -> Int[Array, " N*R"]:
        # By differences: a row is at a distance of zero from itself, to the last bit.
        apart = z.reshape(-1, 1, width) - codebooks[levels]
        return jnp.argmin((apart**2).sum(axis=-1), axis=-1)

    def value(codebooks: Codebooks, k: Array, dtype: Any) -> Array:
        return codebooks[levels, k].astype(dtype).reshape(-1)

    return codes.Codes(np.full(len(levels), num_rows), width, init, symbols, value)


def posterior(
    num_places: int,
    *,
    num_rows: int,
    width: int,
    num_levels: int = 1,
    rotate: bool = False,
) -> Conditional:
    r"""The point mass at the rows that are nearest to h [N * W].

    Its parameters are the codebooks, [R, K, W], which are to be the prior's. The
    gradient with respect to z, all of it with respect to the sum over levels, passes to
    h straight through, or by `rotated`.

    Args:
        num_places: as in `rows`.
        num_rows: as in `rows`.
        width: as in `rows`.
        num_levels: as in `rows`.
        rotate: whether gradients are rotated.

    Raises:
        ValueError: as in `rows`.
    """
    values = rows(num_places, num_rows=num_rows, width=width, num_levels=num_levels)

    def quantized(codebooks: Codebooks, h: Array) -> tuple[Array, Array]:
        nearest, _, row = quantize(codebooks, h)
        row = stop_gradient(row)
        passed = h.reshape(num_places, width)
        if rotate:
            passed = rotated(passed, row.sum(axis=1))
        z = row.at[:, 0].add(passed - stop_gradient(passed))
        return z.reshape(-1), nearest.reshape(-1)

    return codes.point_mass(
        "vector_quantized", values, width=num_places * width, quantized=quantized
    )


def rotated(h: Float[Array, "*N W"], q: Float[Array, "*N W"]) -> Float[Array, "*N W"]:
    r"""q, as $\frac{\|q\|}{\|h\|} R h$, with the gradient to h that this map has.

    Fifty et al. 2024 (arXiv:2410.06424), section 4: $R = I - 2 r r^T + 2 \hat q \hat
    h^T$ with $r = (\hat q + \hat h) / \|\hat q + \hat h\|$ turns h into the direction
    of q, and is held fixed with the ratio of the norms. So the angle between a gradient
    and q becomes that between what h receives and h. Where h is zero, the gradient
    passes as it is.

    Args:
        h: vectors.
        q: what each was quantized to; no gradient passes to it.
    """
    fixed_h, q = stop_gradient(h), stop_gradient(q)
    norm_h, norm_q = _norm(fixed_h), _norm(q)
    ratio = jnp.where(norm_h > 0.0, norm_q / _divisor(norm_h), 1.0)
    unit_h, unit_q = fixed_h / _divisor(norm_h), q / _divisor(norm_q)
    between = unit_h + unit_q
    between = between / _divisor(_norm(between))

    def along(direction: Array) -> Array:
        return (direction * h).sum(axis=-1, keepdims=True)

    turned = h - 2.0 * along(between) * between + 2.0 * along(unit_h) * unit_q
    return ratio * jnp.where(norm_h > 0.0, turned, h)


def _norm(v: Array) -> Array:
    return jnp.linalg.norm(v, axis=-1, keepdims=True)


def _divisor(norm: Array) -> Array:
    return jnp.where(norm > 0.0, norm, 1.0)


def summed(decoder: Network, *, width: int, num_levels: int) -> Network:
    """The decoder of [N * W] as one of z [N * R * W]: it reads the sum over levels."""

    def apply(params: PyTree, z: Array) -> Array:
        rows = z.reshape(-1, num_levels, width)
        return decoder.apply(params, rows.sum(axis=1).reshape(-1))

    return Network(decoder.init, apply)


def read(params: Params) -> Codebooks:
    """The codebooks, which are parameters of p's prior over codes."""
    return params.generative["prior"]["codes"]


def with_codebooks(params: Params, codebooks: Codebooks) -> Params:
    """The parameters with other codebooks."""
    prior = {**params.generative["prior"], "codes": codebooks}
    return params._replace(generative={**params.generative, "prior": prior})
