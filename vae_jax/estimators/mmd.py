"""InfoVAE and WAE-MMD: the ELBO whose gradient matches q(z) to p(z) by a kernel."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.estimators import batch_penalty
from vae_jax.types import Model, Objective, Params, PRNGKey, PyTree, Scalar

Kernel: TypeAlias = Callable[[Float[Array, "*X"], int], Float[Array, "*X"]]
"""squared distances, and latents D -> k, 1 at distance 0."""


def mmd(
    model: Model,
    *,
    num_samples: int,
    num_data: int,
    alpha: float | Scalar,
    strength: float | Scalar,
    kernel: Kernel,
) -> Objective:
    r"""The ELBO, with a gradient that weighs the KL less and an MMD of q(z) more.

    $E_q[\log p(x|z)] - (1-\alpha)KL - (\alpha+\lambda-1)\,MMD^2(q(z), p(z))$ is what it
    climbs: InfoVAE, Zhao et al. 2019 (arXiv:1706.02262), equation 6. Alpha = 1 leaves
    the KL out: WAE-MMD, Tolstikhin et al. 2018 (arXiv:1711.01558), algorithm 2.
    Alpha = 0 and lambda = 1 are the ELBO. MMD^2 is estimated without bias from the
    batch's z and as many draws of the prior; it logs it as `mmd`.

    Value: an unbiased draw of the ELBO. Gradient: unbiased for that objective in phi,
    of rows drawn independently. None reaches the prior through its draws.

    Args:
        model: whose q is a normal of independent latents, with a closed-form KL.
        num_samples: L, each with draws of the prior of its own.
        num_data: N, of the parts of the KL that are logged.
        alpha: between 0 and 1; it may be traced.
        strength: lambda, at least 1 - alpha; it may be traced.
        kernel: `rbf` or `imq`, of a scale.

    Raises:
        ValueError: for other numbers, or as `batch_penalty.penalized`; when traced, for
            a batch of one row, as `unbiased`.
    """
    numerics.check_in("[0, 1]", alpha=alpha)
    numerics.check_not_negative(strength=strength)
    are_numbers = all(isinstance(n, float | int) for n in (alpha, strength))
    if are_numbers and not strength >= 1.0 - alpha:
        raise ValueError(
            f"strength must be at least 1 - alpha, got {strength} at alpha={alpha}"
        )

    def penalty(
        key: PRNGKey, params: Params, memory: PyTree, codes: batch_penalty.Codes
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        sample_prior = jax.vmap(model.generative.sample_prior, in_axes=(0, None))

        def of_draw(key: PRNGKey, z: Float[Array, "B D"]) -> Scalar:
            priors = sample_prior(jax.random.split(key, z.shape[0]), params)
            return unbiased(z, stop_gradient(priors), codes.weight, kernel)

        z = jnp.swapaxes(codes.z, 0, 1)
        keys = jax.random.split(key, z.shape[0])
        squared = jax.vmap(of_draw)(keys, z).mean()
        weight = jnp.asarray(alpha + strength - 1.0, squared.dtype)
        return weight * squared, memory, {"mmd": stop_gradient(squared)}

    return batch_penalty.penalized(
        model,
        num_samples=num_samples,
        num_data=num_data,
        penalty=penalty,
        kl_weight=1.0 - alpha,
    )


def rbf(*, scales: tuple[float, ...]) -> Kernel:
    r"""The mean over scales s of $\exp(-|x-y|^2 / 2Ds^2)$: Gaussian, for D latents.

    Two draws of N(0, s^2 I) are $2Ds^2$ apart in squared distance on average, so that 1
    is the prior's own scale whatever D is.

    Raises:
        ValueError: without scales, or for one that is not positive.
    """
    return _mean_over(scales, lambda squared, unit: jnp.exp(-squared / unit))


def imq(*, scales: tuple[float, ...]) -> Kernel:
    r"""The mean over scales s of $C / (C + |x-y|^2)$, C = 2 D s^2: inverse quadratic.

    As Tolstikhin et al. 2018 (arXiv:1711.01558), section 4, have it; its tails pull at
    codes that are far out, where those of `rbf` do not.

    Raises:
        ValueError: without scales, or for one that is not positive.
    """
    return _mean_over(scales, lambda squared, unit: unit / (unit + squared))


def unbiased(
    z: Float[Array, "B D"],
    others: Float[Array, "M D"],
    weight: Float[Array, " B"],
    kernel: Kernel,
) -> Scalar:
    r"""An unbiased estimate of MMD^2, which may be negative (Gretton et al. 2012).

    $E\,k(z,z') + E\,k(y,y') - 2E\,k(z,y)$, no row against itself (JMLR 13, lemma 6).
    Of fewer than two rows of some weight no estimate is unbiased, and it is 0.

    Args:
        z: draws of one distribution, a row each, at least two.
        others: draws of the other, at least two.
        weight: of the rows of z, 0 for those that are not there.
        kernel: of the squared distances.

    Raises:
        ValueError: when traced, for one row of z or of the others.
    """
    if min(len(z), len(others)) < 2:
        raise ValueError(
            "MMD^2 is of two rows of each distribution at least, got "
            f"{len(z)} and {len(others)}"
        )
    ones = jnp.ones_like(others, shape=others.shape[:1])
    size = z.shape[1]

    def mean(a: Array, b: Array, weights: Array) -> Scalar:
        squared = ((a[:, None] - b[None]) ** 2).sum(axis=2)
        total = weights.sum()
        total = jnp.where(total > 0.0, total, 1.0)
        return (weights * kernel(squared, size)).sum() / total

    def between_rows(weight: Array) -> Array:
        return jnp.outer(weight, weight) * (1.0 - jnp.eye(len(weight), dtype=z.dtype))

    between = between_rows(weight)
    same = mean(z, z, between) + mean(others, others, between_rows(ones))
    squared = same - 2.0 * mean(z, others, jnp.outer(weight, ones))
    return jnp.where(between.any(), squared, 0.0)


def _mean_over(
    scales: tuple[float, ...], kernel: Callable[[Array, float], Array]
) -> Kernel:
    if not scales or not min(scales) > 0.0:
        raise ValueError(f"scales must be positive, at least one, got {scales}")

    def mean(squared: Array, num_latents: int) -> Array:
        each = [kernel(squared, 2.0 * num_latents * s**2) for s in scales]
        return sum(each[1:], start=each[0]) / len(each)

    return mean
