r"""Covariances of Gaussian mixtures: the four types as two kinds of scale.

A mixture's parameters are a dictionary with `logits` [K], `mean` [K, D] and the scale
of its covariance type:

| type | covariance of component k | entry | shape |
|---|---|---|---|
| full | $L_k L_k^T$ | `scale_tril` | [K, D, D], lower triangular, diagonal > 0 |
| tied | $L L^T$ | `scale_tril` | [D, D] |
| diag | diag(exp(2 log_std_k)) | `log_std` | [K, D] |
| spherical | exp(2 log_std_k) I | `log_std` | [K] |

The functions here take a scale in one of two forms that broadcast over components and
features, so that tied is a full one whose components are pooled and spherical a
diagonal one whose features are: factors [S, D, D] with S = K or 1, and logarithms of
standard deviations [K, E] with E = D or 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vae_jax.types import PyTree, Scalar

COVARIANCES = ("full", "diag", "tied", "spherical")
# Where rounding hides a standard deviation, in units of the dtype's eps.
LEAST_OF_STD = 128.0  # of a feature's own: along a direction across features
LEAST_OF_DISTANCE = 16.0  # of a mean's distance from the center of the mixture
ROUNDING = 8.0  # of second moments, in units of eps times their trace


class Tables(NamedTuple):
    """A mixture's parameters, with the scale as the functions here take it.

    Attributes:
        logits: of the components' shares.
        mean: of every component.
        scale: factors L, S of them: K, or 1 for all; or log standard deviations, E of
            them: D, or 1 for all.
    """

    logits: Float[Array, " K"]
    mean: Float[Array, "K D"]
    scale: Float[Array, "S D D"] | Float[Array, "K E"]


class Kind(NamedTuple):
    """What is done with a scale, for factors [S, D, D] or logarithms [K, E].

    Second moments have the shape of the scale and are sums over rows, in the whitened
    coordinates eps = L_k^{-1} (x - mu_k), pooled as the scale is.

    Attributes:
        whiten: scale, mean [K, D], x [D, R] -> eps [K, D, R].
        second_moments: scale, shares [K, R], eps [K, D, R] -> the moments.
        about: second moments, n [K], b [K, D], shift [K, D] -> those about the shifted
            means.
        identity: scale -> a unit variance in its coordinates.
        unwhiten: scale, eps [K, D] -> L_k eps.
        rescale: scale, variance in its coordinates, the second moments that it was
            centered from, *, least_std, added_variance -> the new scale, and which of
            it is at the floor.
        enlarge: scale, c -> the scale of c times x.
        log_det: scale, D -> log det L_k.
        quadratic: new scale, old scale, second moments in the old one's coordinates, D
            -> the sum over rows of the squared distances in the new one's.
    """

    whiten: Callable[[Array, Array, Array], Array]
    second_moments: Callable[[Array, Array, Array], Array]
    about: Callable[[Array, Array, Array, Array], Array]
    identity: Callable[[Array], Array]
    unwhiten: Callable[[Array, Array], Array]
    rescale: Callable[..., tuple[Array, Bool[Array, " S"]]]
    enlarge: Callable[[Array, Scalar], Array]
    log_det: Callable[[Array, int], Float[Array, " S"]]
    quadratic: Callable[[Array, Array, Array, int], Scalar]


def check(covariance: str) -> None:
    """Refuses a type that is none of the four.

    Raises:
        ValueError: naming them.
    """
    if covariance not in COVARIANCES:
        raise ValueError(
            f"covariance must be one of {', '.join(COVARIANCES)}, got {covariance!r}"
        )


def tables(theta: PyTree) -> Tables:
    """params.generative -> the scale as factors or logarithms of either width."""
    if "scale_tril" in theta:
        scale = theta["scale_tril"]
        scale = scale[None] if scale.ndim == 2 else scale
    else:
        scale = theta["log_std"]
        scale = scale[:, None] if scale.ndim == 1 else scale
    return Tables(theta["logits"], theta["mean"], scale)


def covariance_of(theta: PyTree) -> str:
    """The type of params.generative, by its entries and their axes."""
    if "scale_tril" in theta:
        return "full" if theta["scale_tril"].ndim == 3 else "tied"
    return "diag" if theta["log_std"].ndim == 2 else "spherical"


def covariances(theta: PyTree) -> Float[Array, "K D D"]:
    """The covariance of every component, of params.generative of any type."""
    _, mean, scale = tables(theta)
    if scale.ndim == 3:
        sigma = jnp.matmul(scale, scale.swapaxes(1, 2), precision="highest")
    else:
        eye = jnp.eye(mean.shape[1], dtype=mean.dtype)
        sigma = jnp.exp(2.0 * scale)[:, :, None] * eye[None]
    return jnp.broadcast_to(sigma, (*mean.shape, mean.shape[1]))


def variance_explained(theta: PyTree) -> Scalar:
    """1 - E[tr Cov(x | z)] / tr Cov(x): the share of the variance that z explains."""
    mixture = tables(theta)
    shares, mean = jax.nn.softmax(mixture.logits), mixture.mean
    center = (shares[:, None] * mean).sum(0)
    within = (shares * jnp.trace(covariances(theta), axis1=1, axis2=2)).sum()
    between = (shares * ((mean - center[None]) ** 2).sum(1)).sum()
    return between / (between + within)


def parameters(mixture: Tables, *, covariance: str) -> PyTree:
    """The dictionary that `tables` reads."""
    theta = {"logits": mixture.logits, "mean": mixture.mean}
    if covariance in ("full", "tied"):
        tied = covariance == "tied"
        return theta | {"scale_tril": mixture.scale[0] if tied else mixture.scale}
    spherical = covariance == "spherical"
    return theta | {"log_std": mixture.scale[:, 0] if spherical else mixture.scale}


def unit(mean: Float[Array, "K D"], *, covariance: str) -> Array:
    """The scale of unit covariances, in the dtype of `mean`."""
    num_components, num_features = mean.shape
    if covariance in ("full", "tied"):
        count = 1 if covariance == "tied" else num_components
        eye = jnp.eye(num_features, dtype=mean.dtype)
        return jnp.broadcast_to(eye, (count, num_features, num_features))
    width = 1 if covariance == "spherical" else num_features
    return jnp.zeros((num_components, width), mean.dtype)


def pool(scale: Array, by_component: Float[Array, "K *X"]) -> Float[Array, "S *X"]:
    """A sum over rows, of each component or of those that share its covariance."""
    return _over_components(by_component, scale.shape[0])


def expand(scale: Array, by_scale: Float[Array, " S"]) -> Array:
    """Values of each covariance with axes to broadcast with the scale."""
    return by_scale.reshape(-1, *(1,) * (scale.ndim - 1))


def kind(scale: Array) -> Kind:
    """The functions that fit a scale."""
    return _FACTORS if scale.ndim == 3 else _LOGARITHMS


def least_std(
    scale: Array,
    shares: Float[Array, " K"],
    distance: Float[Array, "K D"],
    *,
    min_std: float | Scalar,
) -> Array:
    """The floor of every feature's standard deviation, [S, D] or [K, E].

    min_std, or what the dtype resolves at a mean's distance
    from the center of the mixture where that is more. Where a covariance is shared, the
    root mean square of its components' and features'.
    """
    resolved = LEAST_OF_DISTANCE * jnp.finfo(distance.dtype).eps * distance
    if scale.shape[0] == distance.shape[0]:
        square = resolved**2
    else:
        square = (shares[:, None] * resolved**2).sum(0, keepdims=True)
    if scale.ndim == 2:
        square = _over_features(square, scale.shape[1])
    return jnp.maximum(jnp.sqrt(square), min_std)


def magnitude(x: Array) -> Scalar:
    """The power of two below the largest entry: dividing by it is exact."""
    _, exponent = jnp.frexp(jnp.abs(x).max())
    return jnp.ldexp(jnp.ones((), x.dtype), exponent - 1)


def lower_factor(rows: Float[Array, "*S D M"]) -> Float[Array, "*S D D"]:
    """The Cholesky factor of A A^T for rows A [D, M], M >= D, which is never formed.

    It is the R of a QR decomposition of A^T: rounding is relative to each row of A, not
    to the largest eigenvalue of A A^T.
    """
    upper = jnp.linalg.qr(rows.mT, mode="r")
    negative = jnp.diagonal(upper, axis1=-2, axis2=-1) < 0.0
    signs = jnp.where(negative, -1.0, 1.0).astype(upper.dtype)
    return jnp.tril(upper.mT * signs[..., None, :])


def inverse(scale_tril: Float[Array, "S D D"]) -> Float[Array, "S D D"]:
    r"""L^{-1}, lower triangular, by halves, from blocks of at most eight rows on.

    $\begin{pmatrix} A & 0 \\ C & B \end{pmatrix}^{-1} = \begin{pmatrix} A^{-1} & 0 \\
    -B^{-1} C A^{-1} & B^{-1} \end{pmatrix}$, products alone: two batched solves of
    LAPACK that XLA runs side by side wait for each other for ever on a CPU of two
    threads (JAX 0.10.2).
    """
    count, size = scale_tril.shape[:2]
    num_blocks = 1
    while size > 8 * num_blocks:
        num_blocks *= 2
    width = -(-size // num_blocks)
    more = width * num_blocks - size  # rows and columns of the identity
    full = jnp.pad(scale_tril, ((0, 0), (0, more), (0, more)))
    full += jnp.diag((jnp.arange(size + more) >= size).astype(full.dtype))[None]

    def blocks(width: int) -> Float[Array, "N S W W"]:
        """Those of this width along the diagonal."""
        n = (size + more) // width
        at = jnp.arange(n)
        return full.reshape(count, n, width, n, width)[:, at, :, at]

    inverses = _inverses_by_rows(blocks(width))
    while len(inverses) > 1:
        a, b = inverses[::2], inverses[1::2]
        c = blocks(2 * width)[:, :, width:, :width]
        below = jnp.matmul(b, c, precision="highest")
        below = -jnp.matmul(below, a, precision="highest")
        inverses = jnp.block([[a, jnp.zeros_like(a)], [below, b]])
        width *= 2
    return inverses[0, :, :size, :size]


def _inverses_by_rows(blocks: Float[Array, "N S W W"]) -> Float[Array, "N S W W"]:
    """L^{-1} of each, a row from those above it."""
    unit = jnp.eye(blocks.shape[-1], dtype=blocks.dtype)
    rows: list[Array] = []
    for i in range(len(unit)):
        row = jnp.broadcast_to(unit[i], blocks.shape[:-1])
        for j, above in enumerate(rows):
            row = row - blocks[:, :, i, j, None] * above
        rows.append(row / blocks[:, :, i, i, None])
    return jnp.stack(rows, axis=-2)


def _over_components(terms: Float[Array, "K *X"], count: int) -> Float[Array, "S *X"]:
    return terms if count == terms.shape[0] else terms.sum(0, keepdims=True)


def _over_features(terms: Float[Array, "K D"], width: int) -> Float[Array, "K E"]:
    return terms if width == terms.shape[1] else terms.mean(1, keepdims=True)


# Factors L [S, D, D]


def _whiten_by_factors(scale: Array, mean: Array, x: Array) -> Array:
    # One wide product [S D, D] @ [D, R], rows last: on a CPU half the time of products
    # of each component's own, and of rows first.
    inverses = inverse(scale)
    count, size = scale.shape[:2]
    whitened = jnp.matmul(inverses.reshape(-1, size), x, precision="highest")
    center = jnp.matmul(inverses, mean[:, :, None], precision="highest")
    return whitened.reshape(count, size, -1) - center


def _second_moments_of_factors(scale: Array, shares: Array, eps: Array) -> Array:
    weighted = shares[:, None, :] * eps
    if scale.shape[0] == shares.shape[0]:
        return jnp.einsum("kir,kjr->kij", weighted, eps, precision="highest")
    return jnp.einsum("kir,kjr->ij", weighted, eps, precision="highest")[None]


def _about_by_factors(second: Array, n: Array, b: Array, shift: Array) -> Array:
    cross = b[:, :, None] * shift[:, None, :]
    square = n[:, None, None] * shift[:, :, None] * shift[:, None, :]
    moved = square - cross - cross.mT
    return second + _over_components(moved, second.shape[0])


def _identity_of_factors(scale: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(scale.shape[-1], dtype=scale.dtype), scale.shape)


def _unwhiten_by_factors(scale: Array, eps: Array) -> Array:
    return jnp.matmul(scale, eps[:, :, None], precision="highest")[:, :, 0]


def _rescale_factors(
    scale: Array,
    variance: Array,
    second: Array,
    *,
    least_std: Array,
    added_variance: float,
) -> tuple[Array, Bool[Array, " S"]]:
    """Factors of L (V + added P P^T) L^T, raised to a covariance of least_std.

    L chol(V) is a product of triangular factors: neither forms the covariance, so that
    rounding is relative to the component's own scale in every direction. The raised
    form is taken only where Sigma - diag(least_std^2) is not positive definite.
    """
    dtype, inverses = jnp.finfo(scale.dtype), inverse(scale)
    if added_variance:
        precision = jnp.matmul(inverses, inverses.mT, precision="highest")
        variance = variance + added_variance * precision
    largest = jnp.abs(scale).max(2, keepdims=True)  # no square of it, to not overflow
    rows = scale / largest
    square = (jnp.matmul(rows, variance, precision="highest") * rows).sum(2)
    stds = largest[:, :, 0] * jnp.sqrt(jnp.maximum(square, 0.0))
    least_std = jnp.maximum(least_std, LEAST_OF_STD * dtype.eps * stds)
    least = inverses * least_std[:, None, :]
    margin = variance - jnp.matmul(least, least.mT, precision="highest")
    at_floor = ~jnp.isfinite(jnp.linalg.cholesky(margin)).all((1, 2))
    # Moments that rounding made too small would cost more than any floor gives. Only
    # then is the second factorization known: two batched ones that XLA runs side by
    # side wait for each other for ever on a CPU of two threads (JAX 0.10.2, from 16 of
    # size 64 on).
    unit = _identity_of_factors(scale)
    lost = ROUNDING * dtype.eps * jnp.trace(second + unit, axis1=1, axis2=2)
    variance = variance + jnp.where(at_floor, lost, 0.0)[:, None, None] * unit
    new = jnp.matmul(scale, jnp.linalg.cholesky(variance), precision="highest")

    def clipped() -> Array:
        return jnp.where(at_floor[:, None, None], clip(new, least_std), new)

    return jax.lax.cond(at_floor.any(), clipped, lambda: new), at_floor


def clip(
    factor: Float[Array, "S D D"], least_std: Float[Array, "S D"]
) -> Float[Array, "S D D"]:
    """The triangular factor of A A^T raised to at least F = diag(least_std^2).

    The greatest likelihood under Sigma >= F is that of the sample covariance S whose
    eigenvalues in the units of F, those of F^{-1/2} S F^{-1/2}, are raised to one. They
    are the squared singular values of F^{-1/2} A: in float32 those of a formed S are
    lost below 1e-7 of the largest.
    """
    least = least_std[:, :, None]
    vectors, stds, _ = jnp.linalg.svd(factor / least)
    return lower_factor(least * vectors * jnp.maximum(stds, 1.0)[:, None, :])


def _log_det_of_factors(scale: Array, num_features: int) -> Array:
    del num_features
    return jnp.log(jnp.diagonal(scale, axis1=1, axis2=2)).sum(1)


def _quadratic_of_factors(
    new: Array, old: Array, second: Array, num_features: int
) -> Scalar:
    del num_features
    across = jnp.matmul(inverse(new), old, precision="highest")
    return (jnp.matmul(across, second, precision="highest") * across).sum()


# Logarithms of standard deviations [K, E]


def _whiten_by_logarithms(scale: Array, mean: Array, x: Array) -> Array:
    return (x[None] - mean[:, :, None]) * jnp.exp(-scale)[:, :, None]


def _second_moments_of_logarithms(scale: Array, shares: Array, eps: Array) -> Array:
    squares = (shares[:, None, :] * eps**2).sum(2)
    return _over_features(squares, scale.shape[1])


def _about_by_logarithms(second: Array, n: Array, b: Array, shift: Array) -> Array:
    moved = n[:, None] * shift**2 - 2.0 * b * shift
    return second + _over_features(moved, second.shape[1])


def _unwhiten_by_logarithms(scale: Array, eps: Array) -> Array:
    return jnp.exp(scale) * eps


def _rescale_logarithms(
    scale: Array,
    variance: Array,
    second: Array,
    *,
    least_std: Array,
    added_variance: float,
) -> tuple[Array, Bool[Array, " K"]]:
    del second
    # Rounding may have left less than nothing.
    positive = jnp.maximum(variance, jnp.finfo(scale.dtype).tiny)
    log_std = scale + 0.5 * jnp.log(positive)
    if added_variance:
        added = jnp.log(jnp.asarray(added_variance, scale.dtype))
        log_std = 0.5 * jnp.logaddexp(2.0 * log_std, added)
    floor = jnp.log(least_std)
    return jnp.maximum(log_std, floor), (log_std < floor).any(1)


def _log_det_of_logarithms(scale: Array, num_features: int) -> Array:
    return scale.mean(1) * num_features


def _quadratic_of_logarithms(
    new: Array, old: Array, second: Array, num_features: int
) -> Scalar:
    return (second * jnp.exp(2.0 * (old - new))).mean(1).sum() * num_features


_FACTORS = Kind(
    _whiten_by_factors,
    _second_moments_of_factors,
    _about_by_factors,
    _identity_of_factors,
    _unwhiten_by_factors,
    _rescale_factors,
    jnp.multiply,
    _log_det_of_factors,
    _quadratic_of_factors,
)
_LOGARITHMS = Kind(
    _whiten_by_logarithms,
    _second_moments_of_logarithms,
    _about_by_logarithms,
    jnp.ones_like,
    _unwhiten_by_logarithms,
    _rescale_logarithms,
    lambda scale, c: scale + jnp.log(c),
    _log_det_of_logarithms,
    _quadratic_of_logarithms,
)
