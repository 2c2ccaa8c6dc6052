"""log p(x), the bound and the gap between them where sums over few latents are exact.

For real z by quadrature: on a grid that all x share, or at nodes placed for each x. For
z of 0. and 1. by enumeration: `enumerated.log_evidence`, `enumerated.elbo` and
`enumerated.posterior` of the estimators. For a binary x with holes, by the sum over all
ways to fill them.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics, reparameterize, vae
from vae_jax.types import (
    ExampleObjective,
    Generative,
    Model,
    Params,
    PRNGKey,
    Recognition,
    Scalar,
    log_joint,
)

Exact: TypeAlias = Callable[[Params, Array], Scalar]
"""(params, x) -> nats."""

_joint = jax.vmap(log_joint, in_axes=(None, None, None, 0))  # of several z


def grid_quadrature(
    generative: Generative,
    *,
    num_latents: int,
    num_nodes: int = 64,
    limit: float = 4.5,
) -> Exact:
    r"""(params, x) -> log p(x) in nats, by the sum of p(x, z) over a grid of z.

    $\int p(x, z) dz$ by equal weights on [-limit, limit]^D, which converges faster than
    any power of the spacing for smooth p(x, z) that has died out at the limits. It
    fails, and unnoticed, where the posterior is narrower than the spacing: compare two
    num_nodes on the model at hand. Cost: num_nodes^D decodings, shared by all x under
    vmap. Differentiable in theta.

    Args:
        generative: the joint p(x, z), with z [D] of the scale of N(0, I).
        num_latents: D, one to three.
        num_nodes: a side of the grid.
        limit: as above.

    Raises:
        ValueError: as `numerics.grid`.
    """
    nodes, log_weight = numerics.grid(num_latents, num_nodes=num_nodes, limit=limit)

    def log_p(params: Params, x: Array) -> Scalar:
        z = jnp.asarray(nodes, x.dtype)
        return jax.nn.logsumexp(_joint(generative, params, x, z)) + log_weight

    return log_p


def shifted_grid(
    generative: Generative,
    *,
    num_latents: int,
    num_nodes: int = 32,
    limit: float = 4.5,
) -> ExampleObjective:
    r"""(key, params, x) -> log of an unbiased draw of p(x), nats, to be maximized.

    The sum of `grid_quadrature` with all nodes moved together, each axis by a uniform
    draw of at most half a cell either way, so that every z is a node as likely as any
    other and the sum's expectation is the integral itself, however few the nodes
    (Cranley & Patterson 1976, Randomization of number theoretic methods for multiple
    integration). A decoder trained on a grid that stands still can put its nodes on the
    data and mean nothing in between. Its log is below log p(x) in expectation.

    Args:
        generative: as in `grid_quadrature`.
        num_latents: D, one to three.
        num_nodes: a side of the grid.
        limit: the cells of all grids fill a cube that is half a cell wider.

    Raises:
        ValueError: as `numerics.grid`.
    """
    nodes, log_weight = numerics.grid(num_latents, num_nodes=num_nodes, limit=limit)
    cell = 2.0 * limit / (num_nodes - 1)

    def log_p(key: PRNGKey, params: Params, x: Array) -> Scalar:
        shift = jax.random.uniform(key, (num_latents,), x.dtype, -0.5, 0.5)
        z = jnp.asarray(nodes, x.dtype) + (cell * shift)[None]
        return jax.nn.logsumexp(_joint(generative, params, x, z)) + log_weight

    return log_p


def gauss_hermite(
    model: Model,
    *,
    num_latents: int,
    num_nodes: int = 32,
) -> Exact:
    r"""(params, x) -> log p(x) in nats, at nodes placed by a normal for each x.

    $p(x) = \int N(z)\,\frac{p(x, z)}{N(z)} dz$ by the product Gauss-Hermite rule of the
    normal N that h = encode(x) holds: Liu & Pierce 1994 (A note on Gauss-Hermite
    quadrature). A posterior of any width is met where it lies, and one node is enough
    where N is the posterior. `laplace.posterior` is the N to take. An encoder's
    diagonal one will do with more nodes, unless it is narrower than the posterior: the
    ratio then grows outwards and the sum may not converge. The prior is the wrong one,
    as its nodes are no finer than a grid's. Compare two num_nodes on the model at hand.

    Cost: num_nodes^D decodings for each x. Differentiable in theta: the nodes are held
    fixed, as the integral does not depend on them.

    Args:
        model: the joint p(x, z), with real z [D], and N, a `posteriors.diag_normal` or
            `full_normal`.
        num_latents: D, one to three.
        num_nodes: in each latent, 1 to 100.

    Raises:
        ValueError: if num_latents or num_nodes is out of its range, or N is no normal;
            when traced, if the two models' z differ in shape.
    """
    rule, normal = _hermite(num_latents, num_nodes), _normal(model.recognition)

    def log_p(params: Params, x: Array) -> Scalar:
        vae.check_latents(model, params, x)
        h = stop_gradient(model.recognition.encode(params, x))
        z, log_weights, log_normal = _placed(rule, *normal(stop_gradient(params), h))
        return jax.nn.logsumexp(
            _joint(model.generative, params, x, z) - log_normal + log_weights
        )

    return log_p


def all_completions(
    log_evidence: Exact, *, num_missing: int, chunk_size: int = 4096
) -> Exact:
    r"""(params, x) -> log p(x_obs) in nats, from every completion of a binary x.

    $\log\sum_{x_{mis}\in\{0,1\}^m} p(x_{obs}, x_{mis})$: marginalizing means that every
    completion is considered, 2^m times the work of one complete x. The model that
    `vae.masked` makes leaves the terms of the holes out instead; the two are equal.

    Args:
        log_evidence: log p(x) of a complete x, exactly: `grid_quadrature`,
            `enumerated.log_evidence`, or a closed form.
        num_missing: m, the holes of x; for any other number the result is NaN.
        chunk_size: completions side by side.

    Raises:
        ValueError: if num_missing is negative or above 24, or chunk_size is below one.
    """
    numerics.check_not_negative(num_missing=num_missing)
    if num_missing:
        numerics.check_binary_terms(num_bits=num_missing, max_terms=2**24)
    numerics.check_positive(chunk_size=chunk_size)

    def log_p(params: Params, x: Array) -> Scalar:
        flat = x.reshape(-1)
        missing = jnp.isnan(flat)
        (places,) = jnp.nonzero(missing, size=num_missing, fill_value=0)

        def of_completion(bits: Array) -> Scalar:
            return log_evidence(params, flat.at[places].set(bits).reshape(x.shape))

        if num_missing:
            total = numerics.log_sum_exp_over_binary(
                of_completion,
                num_bits=num_missing,
                chunk_size=chunk_size,
                dtype=x.dtype,
            )
        else:
            total = log_evidence(params, x)
        return jnp.where(missing.sum() == num_missing, total, jnp.nan)

    return log_p


def elbo(
    model: Model,
    *,
    num_latents: int,
    num_nodes: int = 48,
) -> Exact:
    r"""(params, x) -> the ELBO in nats, E_q[log p(x, z) - log q(z | x)], without noise.

    AEVB (arXiv:1312.6114) equation 2 for a normal q, by nodes of equal spacing over 8.5
    of its standard deviations on each side, weighted by its density. It converges with
    the smoothness of log p(x | z) on q's own scale, wherever the posterior is. The
    equal spacing is for that: on a tanh decoder of two latents and 64^2 nodes its error
    was 2e-11 nats, that of the Gauss-Hermite rule 4e-7 (Trefethen 2022, Exactness of
    quadrature formulas, says why). Gradient: exact, for theta and phi.

    Args:
        model: the joint p(x, z), with real z [D], and q, a `posteriors.diag_normal` or
            `full_normal`.
        num_latents: D, one to three.
        num_nodes: in each latent; num_nodes^D decodings for each x.

    Raises:
        ValueError: as `numerics.grid` and `gauss_hermite`.
    """
    ratio = _expected_log_ratio(model, _equal_spacing(num_latents, num_nodes))

    def bound(params: Params, x: Array) -> Scalar:
        vae.check_latents(model, params, x)
        return -ratio(params, x, model.recognition.encode(params, x))

    return bound


def posterior_divergence(
    model: Model,
    log_evidence: Exact,
    *,
    num_latents: int,
    num_nodes: int = 48,
) -> Exact:
    r"""(params, x) -> KL(q(z | x) || p(z | x)) in nats.

    $E_q[\log q(z|x) - \log p(z|x)]$ with log p(z | x) = log p(x, z) - log p(x): the
    first term of AEVB (arXiv:1312.6114) equation 1, by the nodes of `elbo`. It does not
    read a bound, so log p(x) - ELBO can be held against it; that says something where
    the two sums have different num_nodes and log p(x) another source.

    Args:
        model: the joint p(x, z), with real z [D], and q, a `posteriors.diag_normal` or
            `full_normal`.
        log_evidence: log p(x), by `gauss_hermite`, `grid_quadrature` or a closed form.
        num_latents: D, one to three.
        num_nodes: in each latent; num_nodes^D decodings for each x.

    Raises:
        ValueError: as `elbo`.
    """
    ratio = _expected_log_ratio(model, _equal_spacing(num_latents, num_nodes))

    def divergence(params: Params, x: Array) -> Scalar:
        vae.check_latents(model, params, x)
        log_p = log_evidence(params, x)
        h = model.recognition.encode(params, x)
        # The density of q waits for log p(x): two batched factorizations that XLA runs
        # side by side can wait for each other for ever on a CPU (JAX 0.10.2).
        h = jnp.where(jnp.isnan(log_p), jnp.nan, h)
        return ratio(params, x, h) + log_p

    return divergence


def divergence_between_posteriors(
    generative: Generative,
    *,
    num_latents: int,
    num_nodes: int = 64,
    limit: float = 4.5,
) -> Callable[[Params, Params, Array], Scalar]:
    r"""(params, others, x) -> KL(p(z | x) || p'(z | x)) in nats, of two parameters.

    $\sum_i p_i(\log p_i - \log p'_i)$ of both posteriors normalized on the nodes of
    `grid_quadrature`: how far a model's own inference is from another's, such as the
    truth's that data were drawn from.

    Args:
        generative: the joint p(x, z) of both.
        num_latents: D, one to three.
        num_nodes: a side of the grid.
        limit: the grid spans [-limit, limit] in each latent.

    Raises:
        ValueError: as `numerics.grid`.
    """
    nodes, _ = numerics.grid(num_latents, num_nodes=num_nodes, limit=limit)

    def divergence(params: Params, others: Params, x: Array) -> Scalar:
        z = jnp.asarray(nodes, x.dtype)
        log_p, log_other = (
            jax.nn.log_softmax(_joint(generative, theta, x, z))
            for theta in (params, others)
        )
        return numerics.weighed(jnp.exp(log_p), log_p - log_other).sum()

    return divergence


def _expected_log_ratio(
    model: Model, rule: tuple[np.ndarray, np.ndarray]
) -> Callable[[Params, Array, Array], Scalar]:
    """(params, x, h) -> E_q[log q(z | x) - log p(x, z)] for a normal q."""
    normal = _normal(model.recognition)

    def ratio(params: Params, x: Array, h: Array) -> Scalar:
        z, log_weights, log_q = _placed(rule, *normal(params, h))
        log_ratio = log_q - _joint(model.generative, params, x, z)
        return (jnp.exp(log_weights) * log_ratio).sum()

    return ratio


def _equal_spacing(num_latents: int, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes [Q, D] and log weights [Q] of E[f(eps)], eps ~ N(0, I): the trapezoids."""
    nodes, log_weight = numerics.grid(num_latents, num_nodes=num_nodes, limit=8.5)
    log_total = 0.5 * num_latents * math.log(2.0 * math.pi)
    return nodes, log_weight - 0.5 * np.sum(nodes**2, axis=1) - log_total


def _hermite(num_latents: int, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes [Q, D] and log weights [Q] of E[f(eps)], eps ~ N(0, I)."""
    if not 1 <= num_latents <= 3:
        raise ValueError(f"num_latents must be 1 to 3, got {num_latents}")
    # Of more nodes the outer weights underflow.
    if not 1 <= num_nodes <= 100:
        raise ValueError(f"num_nodes must be 1 to 100, got {num_nodes}")
    node, weight = np.polynomial.hermite_e.hermegauss(num_nodes)
    nodes = np.meshgrid(*[node] * num_latents, indexing="ij")
    log_weights = np.meshgrid(*[np.log(weight)] * num_latents, indexing="ij")
    log_total = 0.5 * num_latents * math.log(2.0 * math.pi)
    return (
        np.stack(nodes, axis=-1).reshape(-1, num_latents),
        np.sum(log_weights, axis=0).reshape(-1) - log_total,
    )


def _placed(
    rule: tuple[np.ndarray, np.ndarray], mean: Array, scale_tril: Array
) -> tuple[Float[Array, "Q D"], Float[Array, " Q"], Float[Array, " Q"]]:
    """The rule's z for a normal, their log weights and their log densities."""
    eps, log_weights = (jnp.asarray(part, mean.dtype) for part in rule)
    if mean.shape != eps.shape[1:]:
        raise ValueError(
            f"num_latents is {eps.shape[1]}, but q's mean has shape {mean.shape}"
        )
    place = jax.vmap(reparameterize.location_cholesky_from_noise, (0, None, None))
    log_scale = jnp.log(jnp.diagonal(scale_tril))
    terms = 0.5 * eps**2 + (log_scale + 0.5 * math.log(2.0 * math.pi))[None]
    return place(eps, mean, scale_tril), log_weights, -terms.sum(1)


def _normal(recognition: Recognition) -> Callable[[Params, Array], tuple[Array, Array]]:
    """(params, h) -> the mean [D] and Cholesky factor [D, D] of a normal q."""
    name, parameters = recognition.family
    if name not in ("diag_normal", "full_normal") or parameters is None:
        raise ValueError(f"q must be a diag_normal or a full_normal, got {name}")

    def of_h(params: Params, h: Array) -> tuple[Array, Array]:
        mean, scale = parameters(params, h)
        return mean, jnp.diag(jnp.exp(scale)) if name == "diag_normal" else scale

    return of_h
