"""The ELBO less a penalty on the codes of a whole batch.

What several objectives share that look at the aggregate posterior: `total_correlation`,
`factor`, `dip` and `mmd`. Each reports the ELBO and climbs something else, on purpose.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.estimators import aggregate_density
from vae_jax.types import (
    Batch,
    Draw,
    Model,
    Objective,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    each_example,
)


class Codes(NamedTuple):
    """The codes of a batch: L draws of z for each of its rows, and the q they are of.

    Attributes:
        z: the draws, with their gradients.
        mean: of each row's q.
        log_std: likewise.
        log_prior: log p(z) of each draw, nats.
        weight: of the rows, which a penalty must heed: those of weight 0 are not there.
    """

    z: Float[Array, "B L D"]
    mean: Float[Array, "B D"]
    log_std: Float[Array, "B D"]
    log_prior: Float[Array, "B L"]
    weight: Float[Array, " B"]


Penalty: TypeAlias = Callable[
    [PRNGKey, Params, PyTree, Codes], tuple[Array, PyTree, dict[str, Scalar]]
]
"""key, params, memory, codes -> nats, [] or [B], memory, and what is to be logged."""


def penalized(
    model: Model,
    *,
    num_samples: int,
    penalty: Penalty,
    num_data: int,
    sampling: str = "stratified",
    kl_weight: float | Scalar = 1.0,
    init: Callable[[Params], PyTree] = lambda params: (),
) -> Objective:
    r"""The ELBO of each row, with the gradient of what else is climbed.

    $E_q[\log p(x|z)] - \beta\,KL(q(z|x)||p(z)) - R$ is what it climbs, R a penalty of
    the batch. Value: unbiased draws of the ELBO, by the noise of `sgvb.sgvb_b` at the
    same key. Gradient: unbiased for theta; that of the penalty is for phi alone.

    It logs the mean KL of the batch in its three parts (`aggregate_density.Parts`), by
    their names and that of the estimator of log q(z), as
    `total_correlation_stratified`.

    Args:
        model: whose q is a normal of independent latents, with a closed-form KL.
        num_samples: L.
        penalty: what R is; its memory is the objective's.
        num_data: N, rows of the data set.
        sampling: the estimator of log q(z), stratified or weighted.
        kl_weight: beta; it may be traced.
        init: params -> the memory at the start.

    Raises:
        ValueError: if num_samples or num_data is below one, kl_weight is negative, q is
            of another family or its KL has no closed form.
    """
    numerics.check_positive(num_samples=num_samples)
    numerics.check_not_negative(kl_weight=kl_weight)
    log_weights = aggregate_density.SAMPLING[sampling](num_data=num_data)
    recognition, of_q = model.recognition, model.recognition.family.parameters
    if recognition.family.name != "diag_normal" or of_q is None or model.kl is None:
        raise ValueError(
            "objectives of a batch's codes need a diag_normal q with a closed-form KL, "
            f"got {recognition.family.name} to {model.generative.prior_family.name}"
        )

    def of_example(
        key: PRNGKey, params: Params, x: Array
    ) -> tuple[Draw, tuple[Array, ...]]:
        h = recognition.encode(params, x)

        def one(key: PRNGKey) -> Draw:
            sample = model.draw(key, params, x, h)
            log_likelihood = sample.log_likelihood.sum()
            return sample._replace(log_likelihood=log_likelihood)

        draws = numerics.over_samples(key, one, num_samples=num_samples)
        return draws, of_q(params, h)

    def value(
        key: PRNGKey, params: Params, memory: PyTree, batch: Batch
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        draws, (mean, log_std) = each_example(of_example)(key, params, batch.x)
        weight = batch.weight.astype(mean.dtype)
        codes = Codes(draws.z, mean, log_std, draws.log_prior, weight)
        key_penalty = numerics.apart(key)
        nats, memory, logged = penalty(key_penalty, params, memory, codes)
        reconstruction = draws.log_likelihood.mean(axis=1)
        kl = draws.kl.sum(axis=2).mean(axis=1)
        climbed = reconstruction - kl_weight * kl - nats
        elbo = numerics.attach_gradient(reconstruction - kl, climbed)
        split = parts(stop_gradient(codes), log_weights(weight))._asdict()
        means = {
            f"{name}_{sampling}": weighted_mean(terms, weight)
            for name, terms in split.items()
        }
        return elbo, stop_gradient(memory), means | logged

    return Objective(init, value)


def parts(codes: Codes, log_weights: Float[Array, "B B"]) -> aggregate_density.Parts:
    """The parts [B] of each row's KL, means over its draws, with their gradients."""

    def of_draw(
        z: Array, log_prior: Array, mean: Array, log_std: Array, log_weights: Array
    ) -> aggregate_density.Parts:
        log_q, each = aggregate_density.log_density(
            z, codes.mean, codes.log_std, log_weights
        )
        one = jnp.zeros_like(log_prior, shape=(1,))
        separate, _ = aggregate_density.log_density(z, mean[None], log_std[None], one)
        return aggregate_density.parts(log_q, each, separate, log_prior)

    of_row = jax.vmap(of_draw, in_axes=(0, 0, None, None, None))
    rows = codes.z, codes.log_prior, codes.mean, codes.log_std, log_weights
    return jax.tree.map(lambda terms: terms.mean(axis=1), jax.vmap(of_row)(*rows))


def weighted_mean(values: Float[Array, "B *X"], weight: Float[Array, " B"]) -> Any:
    """The mean over rows that count as often as they weigh; 0 where none does."""
    total = weight.sum()
    total = jnp.where(total > 0.0, total, 1.0)
    return jnp.tensordot(weight, values, axes=1, precision="highest") / total
