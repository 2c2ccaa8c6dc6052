r"""Probabilistic principal component analysis: the linear VAE, solved exactly.

z ~ N(0, I), x | z ~ N(W z + mu, s2 I) with x of P entries and z of D: Tipping & Bishop
1999 (Probabilistic principal component analysis), whose equation numbers are used here.
The posterior is normal, $N(M^{-1}W^T(x - \mu),\ s2\,M^{-1})$ with $M = W^TW + s2\,I$
(D x D), and log p(x) is closed.

Nothing here forms or inverts M, of which float32 would lose half the digits: W and
$\sqrt{s2}\,I$ stacked are factorized instead (QR), whose triangle has no singular value
below $\sqrt{s2}$. Products run at the highest precision.

Parameters are those of a linear decoder below `likelihoods.normal_learned_std`, so
whatever trains such a VAE trains this model. Functions that read s2 take the min_std
of that likelihood: a log_std below it counts as the bound.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import (
    divergences,
    likelihoods,
    networks,
    numerics,
    posteriors,
    priors,
    vae,
)
from vae_jax.types import (
    Algorithm,
    Batch,
    Generative,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
    clear_weightless,
)


class EMState(NamedTuple):
    """The parameters; EM remembers nothing else.

    Attributes:
        params: theta, and phi as it was.
    """

    params: Params


class EMInfo(NamedTuple):
    """What one step of EM reports: weighted means over the batch, nats per example.

    All at the batch's mean for mu. Equal, but for rounding, are the first two; each is
    at most the one after it.

    Attributes:
        log_p: log p(x) before the M-step, in closed form.
        bound_after_e_step: E_q[log p(x, z)] + H(q), q the posterior.
        bound_after_m_step: the same q, the new W and s2.
    """

    log_p: Scalar
    bound_after_e_step: Scalar
    bound_after_m_step: Scalar


def generative(
    num_latents: int,
    x_shape: tuple[int, ...],
    *,
    initial_std: float = 1.0,
    min_std: float = 1e-3,
    initializer: networks.Initializer | None = None,
) -> Generative:
    """z ~ N(0, I), x | z ~ N(W z + mu, s2 I), with W, mu and s2 learned.

    `params.generative` is the dictionary of `vae.decoder_model`: W^T [D, P] and mu are
    the kernel and the bias of the decoder's `output`, and the likelihood's `log_std` is
    half of log s2.

    Args:
        num_latents: D.
        x_shape: shape of one observation.
        initial_std: where the standard deviation starts.
        min_std: its lower bound, as in `likelihoods.normal_learned_std`.
        initializer: of W and mu; `networks.glorot()` where none is given.

    Raises:
        ValueError: for a size below one, or unless 0 < min_std <= initial_std.
    """
    likelihood = likelihoods.normal_learned_std(
        x_shape, initial_std=initial_std, min_std=min_std
    )
    return vae.decoder_model(
        networks.linear(num_latents, likelihood.width, initializer=initializer),
        priors.standard_normal(num_latents),
        likelihood,
    )


def parameters(w: PyTree, mu: PyTree, log_std: PyTree) -> PyTree:
    """params.generative of W [P, D], mu [P] and log(s2) / 2, arrays of any library."""
    return {
        "decoder": {"output": {"kernel": w.T, "bias": mu}},
        "prior": (),
        "likelihood": {"log_std": log_std},
    }


def read(
    params: Params, floor: float
) -> tuple[Float[Array, "P D"], Float[Array, " P"], Scalar]:
    """W, mu and log(s2) / 2, which is not below the floor: back from `parameters`."""
    layer = params.generative["decoder"]["output"]
    log_std = jnp.maximum(params.generative["likelihood"]["log_std"], floor)
    return layer["kernel"].T, layer["bias"], log_std


def recognition(num_latents: int, *, min_std: float = 1e-3) -> Recognition:
    """The exact posterior p(z | x), read from theta; it has no parameters.

    h is that of `posteriors.full_normal`. The gradient for theta flows through it; at
    the ELBO its mean there is zero, as q is optimal.

    Raises:
        ValueError: if num_latents is below one or min_std not positive and finite.
    """
    floor = numerics.log_of("min_std", min_std)
    density = posteriors.full_normal(num_latents)

    def encode(params: Params, x: Array) -> Array:
        w, mu, log_std = read(params, floor)
        gain, scale_tril = _posterior(w, log_std)
        with jax.default_matmul_precision("highest"):
            mean = gain @ centered(x, mu)
        return posteriors.packed(mean, scale_tril)

    return vae.recognition(encode, density)


def log_evidence(
    params: Params, x: Float[Array, "*X"], *, min_std: float = 1e-3
) -> Scalar:
    r"""log p(x) = log N(x; mu, W W^T + s2 I) in nats, in O(P D^2).

    Equation 5 by way of M: with m the posterior mean, $\log\det(WW^T + s2\,I) =
    (P - D)\log s2 + \log\det M$ and the squared distance is $|x - \mu - Wm|^2 / s2 +
    |m|^2$, a sum of squares where the usual form is a difference. Exact gradient in
    theta. Under `vmap` over x alone, W is factorized once.

    Raises:
        ValueError: if min_std is not positive and finite.
    """
    w, mu, log_std = read(params, numerics.log_of("min_std", min_std))
    gain, scale_tril = _posterior(w, log_std)
    return _log_evidence(centered(x, mu), w, log_std, gain, scale_tril)


def centered(x: Float[Array, "*X"], mu: Float[Array, " P"]) -> Float[Array, " P"]:
    """x - mu, of one observation whose entries are in the order of mu.

    Raises:
        ValueError: when traced, if x has more or fewer entries than mu.
    """
    if x.size != mu.size:
        raise ValueError(f"x of {x.shape} has {x.size} entries, but mu has {mu.size}")
    return x.reshape(-1) - mu


def maximum_likelihood(
    x: Float[Array, "N *X"], *, num_latents: int, min_std: float = 1e-3
) -> Params:
    r"""The parameters of greatest likelihood for data x [N, *X], in closed form.

    Equations 7 and 8: with $l_1 \ge l_2 \ge \dots$ the eigenvalues of the covariance
    (over N, not N - 1) and U_D its first D eigenvectors, s2 is the mean of the others
    and $W = U_D(L_D - s2\,I)^{1/2}$, with the rotation R = I: the columns of W are
    orthogonal, the longest first. Where s2 is below min_std^2 it is held there, which
    is the maximum under that bound; so constant features are no failure.

    On the host and in double precision; the result has the dtype of x, or the default
    float type for integers, and () for `recognition`.

    Raises:
        ValueError: if x has no rows or holds NaN or infinity, num_latents is not in
            1, ..., P - 1, or min_std is not positive and finite.
    """
    floor = numerics.log_of("min_std", min_std)
    if x.shape[0] < 1:
        raise ValueError(f"x must have at least one row, got the shape {x.shape}")
    rows = np.asarray(x, np.float64).reshape(x.shape[0], -1)
    _check_num_latents(num_latents, rows.shape[1])
    bad = int((~np.isfinite(rows)).any(1).sum())
    if bad:
        raise ValueError(f"x must be finite, got NaN or infinity in {bad} of its rows")

    mean = rows.mean(0)
    values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    variance = max(values[num_latents:].mean(), math.exp(2.0 * floor))
    scales = np.sqrt(np.maximum(values[:num_latents] - variance, 0.0))
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
    theta = parameters(
        vectors[:, :num_latents] * scales, mean, 0.5 * math.log(variance)
    )
    return Params(jax.tree.map(lambda a: jnp.asarray(a, dtype), theta), ())


def em(*, min_std: float = 1e-3) -> Algorithm:
    r"""Exact EM on every batch: (key, EMState, batch) -> EMState, `EMInfo`.

    Tipping & Bishop 1999, appendix B, equations 27 and 28, with weights. mu becomes
    the weighted mean of the batch first, which is its maximum likelihood whatever W and
    s2. E-step: q(z | x), the posterior. M-step: $W = [\sum_n w_n r_n m_n^T]
    [\sum_n w_n E(zz^T)]^{-1}$, with $r = x - \mu$ and m the posterior mean; s2 is the
    expected squared error over P, a sum of squares, or min_std^2 where that is more.
    Each raises the likelihood of the batch, so with all the data in every batch `log_p`
    never falls but for rounding. It starts from any Params of `generative`; W = 0 is a
    fixed point, and the nearer s2 is to zero the slower it moves. The key is not used.

    Nothing raises inside a compiled step: where a row that weighs anything holds NaN or
    infinity, the parameters stay as they are and `log_p` is NaN. So they do where the
    weights are all zero, and all three numbers are zero.

    Raises:
        ValueError: if min_std is not positive and finite; from `init`, if the model
            has not fewer latents than x has entries.
    """
    floor = numerics.log_of("min_std", min_std)

    def init(key: PRNGKey, start: Params) -> EMState:
        del key
        num_features, num_latents = read(start, floor)[0].shape
        _check_num_latents(num_latents, num_features)
        return EMState(start)

    def step(key: PRNGKey, state: EMState, batch: Batch) -> tuple[EMState, EMInfo]:
        del key
        with jax.default_matmul_precision("highest"):
            theta, info = _em_step(state.params, clear_weightless(batch), floor)
        weighs = batch.weight.sum() > 0.0
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(theta)]
        held = jax.tree.map(
            lambda new, old: jnp.where(jnp.stack([weighs, *finite]).all(), new, old),
            theta,
            state.params.generative,
        )
        info = jax.tree.map(lambda nats: jnp.where(weighs, nats, 0.0), info)
        return EMState(state.params._replace(generative=held)), info

    return Algorithm(init, step)


def _em_step(params: Params, batch: Batch, floor: float) -> tuple[PyTree, EMInfo]:
    x = batch.x.reshape(batch.x.shape[0], -1)
    weight = batch.weight.astype(x.dtype)
    share = weight / jnp.where(weight.sum() > 0.0, weight.sum(), 1.0)
    mu = share @ x
    r = x - mu[None]

    w, _, log_std = read(params, floor)
    gain, scale_tril = _posterior(w, log_std)
    m = r @ gain.T
    weighted = (share[:, None] * m).T
    second_moment = weighted @ m + scale_tril @ scale_tril.T
    new_w = _solve_positive(second_moment, weighted @ r).T

    def expected_error(w: Array) -> Scalar:
        """E_q |x - mu - W z|^2, averaged over the batch."""
        error = jnp.sum((r - m @ w.T) ** 2, axis=1)
        return share @ error + jnp.sum((w @ scale_tril) ** 2)

    kl = jax.vmap(divergences.full_normal_to_standard_normal, in_axes=(0, None))
    mean_kl = share @ kl(m, scale_tril)

    def bound(w: Array, log_std: Scalar) -> Scalar:
        """E_q[log p(x | z)] - KL(q || p(z)) = E_q[log p(x, z)] + H(q)."""
        error = expected_error(w) * jnp.exp(-2.0 * log_std)
        log_normalizer = x.shape[1] * (0.5 * math.log(2.0 * math.pi) + log_std)
        return -(log_normalizer + 0.5 * error) - mean_kl

    log_p = jax.vmap(_log_evidence, in_axes=(0, None, None, None, None))
    before = share @ log_p(r, w, log_std, gain, scale_tril)
    variance = expected_error(new_w) / x.shape[1]
    new_log_std = jnp.maximum(0.5 * jnp.log(variance), floor)
    info = EMInfo(before, bound(w, log_std), bound(new_w, new_log_std))
    return parameters(new_w, mu, new_log_std), info


def _solve_positive(a: Array, b: Array) -> Array:
    """a^{-1} b for a positive definite [D, D], finite also where rounding made it not.

    A QR factorization of all rows would keep more digits, at many times the time.
    """
    values, vectors = jnp.linalg.eigh(a)
    least = float(jnp.finfo(a.dtype).eps) * values[-1]
    return (vectors / jnp.maximum(values, least)[None]) @ (vectors.T @ b)


def _log_evidence(
    r: Array, w: Array, log_std: Scalar, gain: Array, scale_tril: Array
) -> Scalar:
    """log N(r; 0, W W^T + s2 I): `log_evidence` with W already factorized."""
    with jax.default_matmul_precision("highest"):
        m = gain @ r
        error = jnp.sum((r - w @ m) ** 2) * jnp.exp(-2.0 * log_std)
    # log det M = D log s2 - log det of the posterior's covariance.
    half_log_det = r.shape[0] * log_std - jnp.log(jnp.diagonal(scale_tril)).sum()
    log_normalizer = 0.5 * r.shape[0] * math.log(2.0 * math.pi) + half_log_det
    return -(log_normalizer + 0.5 * (error + jnp.sum(m**2)))


def _posterior(w: Array, log_std: Scalar) -> tuple[Array, Array]:
    """M^{-1} W^T [D, P], and the Cholesky factor [D, D] of s2 M^{-1}.

    With [W; s I] = Q R, M = R^T R. The columns are taken in reverse: the inverse of
    that R, turned back, is lower triangular.
    """
    num_features, num_latents = w.shape
    eye = jnp.eye(num_latents, dtype=w.dtype)
    std = jnp.exp(log_std)
    with jax.default_matmul_precision("highest"):
        q, triangle = jnp.linalg.qr(jnp.concatenate([w, std * eye])[:, ::-1])
        inverse = jax.scipy.linalg.solve_triangular(triangle, eye)
        gain = (inverse @ q[:num_features].T)[::-1]
    lower = std * inverse[::-1, ::-1]
    return gain, lower * jnp.sign(jnp.diagonal(lower))[None]


def _check_num_latents(num_latents: int, num_features: int) -> None:
    if not 1 <= num_latents < num_features:
        raise ValueError(
            f"num_latents must be positive and below the {num_features} entries of x, "
            f"got {num_latents}"
        )
