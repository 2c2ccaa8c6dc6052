r"""The density of the aggregate posterior q(z), from all rows or from a batch of them.

For a data set of N rows $q(z) = \frac1N\sum_n q(z|x_n)$. A batch sees few of its
components, so that an estimate of q(z_i) weighs those it sees: own and others apart. Of
a q that factorizes, the same weights give the density of each latent, and both give the
mean KL in three parts (Chen et al. 2018, arXiv:1802.04942, equation 2):

$$E\,KL(q(z|x)\,||\,p(z)) = I_q(n; z) + KL(q(z)\,||\,\textstyle\prod_d q(z_d)) +
\sum_d KL(q(z_d)\,||\,p(z_d)),$$

the information of z about the row, the total correlation of the latents, and the
divergence of each from its prior.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import Scalar

LogWeights: TypeAlias = Callable[[Float[Array, " B"]], Float[Array, "B B"]]
"""weights of a batch's rows -> log weight of q(z_i | x_j) in q(z_i)."""


class Parts(NamedTuple):
    """The three parts of the KL at one sample of z, in nats; their sum is exact.

    Attributes:
        mutual_information: log q(z | x) - log q(z).
        total_correlation: log q(z) - sum_d log q(z_d).
        dimension_wise_kl: sum_d log q(z_d) - log p(z), for a p that factorizes.
    """

    mutual_information: Scalar
    total_correlation: Scalar
    dimension_wise_kl: Scalar


def stratified(*, num_data: int) -> LogWeights:
    r"""The weights of stratified sampling: own row 1/N, the others what is left.

    $\hat q(z_i) = \frac1N q(z_i|x_i) + \frac{N-1}{N}\frac1{M-1}\sum_{j\ne i}q(z_i|x_j)$
    for M rows drawn without replacement, of which z_i is of the ith: unbiased for the
    full-data q(z_i), and q(z_i) itself where M = N. Chen et al. 2018 (appendix C.2)
    single one of the others out; these weights are the mean of theirs over which one
    that is, and so have the same expectation and no more variance. The logarithm of the
    estimate is not unbiased: it is too small on average, and by much where rows are
    told apart and M is far below N.

    A row of weight w is w rows with one z.

    Args:
        num_data: N; the batch does not know it.

    Raises:
        ValueError: if num_data is below one.
    """
    numerics.check_positive(num_data=num_data)

    def log_weights(weight: Float[Array, " B"]) -> Float[Array, "B B"]:
        others = jnp.maximum(weight.sum() - 1.0, 1.0)
        share = (num_data - 1.0) / num_data / others
        copies = jnp.maximum(weight - 1.0, 0.0)
        same = jnp.diag(1.0 / num_data + share * copies)
        return jnp.log(jnp.where(_is_same(weight), same, share * weight[None, :]))

    return log_weights


def weighted(*, num_data: int) -> LogWeights:
    r"""The weights of minibatch weighted sampling: 1/(N M) for each row of the batch.

    $\hat q(z_i) = \frac1{NM}\sum_j q(z_i|x_j)$, Chen et al. 2018 (appendix C.1). Its
    logarithm is on average below log q(z_i), by up to log N where the rows' posteriors
    are one: the total correlation of D latents is then (D - 1) log N too large.

    Args:
        num_data: N.

    Raises:
        ValueError: if num_data is below one.
    """
    numerics.check_positive(num_data=num_data)

    def log_weights(weight: Float[Array, " B"]) -> Float[Array, "B B"]:
        total = jnp.maximum(weight.sum(), 1.0)
        # A row of no weight has at least itself, so that no sum is empty.
        same = jnp.diag(jnp.where(weight > 0.0, weight, 1.0))
        rows = jnp.where(_is_same(weight), same, weight[None, :])
        return jnp.log(rows) - jnp.log(total) - math.log(num_data)

    return log_weights


SAMPLING: dict[str, Callable[..., LogWeights]] = {
    "stratified": stratified,
    "weighted": weighted,
}


def log_density(
    z: Float[Array, " D"],
    mean: Float[Array, "N D"],
    log_std: Float[Array, "N D"],
    log_weights: Float[Array, " N"],
) -> tuple[Scalar, Float[Array, " D"]]:
    """log q(z), and log q(z_d) of each latent, of a weighted mixture of normals.

    Args:
        z: where.
        mean: of each component, a normal of independent entries.
        log_std: likewise.
        log_weights: of the components; their exponentials need not sum to one.
    """
    eps = (z[None] - mean) * jnp.exp(-log_std)
    each = -(0.5 * eps**2 + log_std + 0.5 * math.log(2.0 * math.pi))
    log_q = jax.nn.logsumexp(log_weights + each.sum(axis=1))
    return log_q, jax.nn.logsumexp(log_weights[:, None] + each, axis=0)


def parts(
    log_q: Scalar,
    log_each: Float[Array, " D"],
    log_posterior: Scalar,
    log_prior: Scalar,
) -> Parts:
    """The parts of log q(z | x) - log p(z) at one z, from log q(z) and log q(z_d)."""
    independent = log_each.sum()
    return Parts(log_posterior - log_q, log_q - independent, independent - log_prior)


def _is_same(weight: Float[Array, " B"]) -> Array:
    return jnp.eye(weight.shape[0], dtype=bool)
