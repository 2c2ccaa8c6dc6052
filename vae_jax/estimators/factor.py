"""FactorVAE: the total correlation by a discriminator trained beside the model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.estimators import batch_penalty
from vae_jax.types import (
    Model,
    Network,
    Objective,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
)


class Discriminator(NamedTuple):
    """What tells codes from permuted ones: the memory of the objective.

    Attributes:
        params: of its network.
        opt_state: of its optimizer.
    """

    params: PyTree
    opt_state: optax.OptState


def factor(
    model: Model,
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    num_samples: int,
    num_data: int,
    gamma: float | Scalar,
    start: PyTree,
) -> Objective:
    r"""The ELBO, with a gradient that lowers what a discriminator sees of dependence.

    $ELBO - \gamma\,E_{q(z)}[f(z)]$ is what it climbs: Kim & Mnih 2018
    (arXiv:1802.05983), algorithm 2. The logit f tells z of q(z) from z whose every
    latent is of a row of its own; at its optimum $f = \log q(z) - \sum_d \log q(z_d)$,
    whose mean is the total correlation. Each step climbs with the f there is, and then
    takes one step of f's logistic likelihood, on the batch's z and on permuted ones of
    a second draw. It logs the mean of f as `total_correlation_discriminator` and f's
    likelihood in nats, log(1/2) where it knows nothing, as `discriminator`.

    Rows of permuted latents are drawn with replacement, from those of some weight,
    where the paper permutes: so a row of weight 2 counts as two.

    Value: an unbiased draw of the ELBO. Gradient: as right as f is.

    Args:
        model: whose q is a normal of independent latents, with a closed-form KL.
        network: f, z [D] -> [1].
        optimizer: of the discriminator.
        num_samples: L.
        num_data: N, of the parts of the KL that are logged.
        gamma: weight of the total correlation; it may be traced.
        start: parameters of the network.

    Raises:
        ValueError: if gamma is negative, or as `batch_penalty.penalized`.
    """
    numerics.check_not_negative(gamma=gamma)

    def init(params: Params) -> Discriminator:
        del params
        return Discriminator(start, optimizer.init(start))

    def logits(params: PyTree, z: Float[Array, "B L D"]) -> Float[Array, "B L"]:
        def one(z: Array) -> Scalar:
            return network.apply(params, z).sum()

        return jax.vmap(jax.vmap(one))(z)

    def penalty(
        key: PRNGKey, params: Params, memory: Discriminator, codes: batch_penalty.Codes
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        del params
        seen = logits(memory.params, codes.z).mean(axis=1)
        fixed = stop_gradient(codes)
        permuted = independent_latents(key, fixed)

        def loss(of_network: PyTree) -> Scalar:
            true = jax.nn.log_sigmoid(logits(of_network, fixed.z))
            false = jax.nn.log_sigmoid(-logits(of_network, permuted))
            each = 0.5 * (true + false).mean(axis=1)
            return -batch_penalty.weighted_mean(each, fixed.weight)

        value, slopes = jax.value_and_grad(loss)(memory.params)
        updates, opt_state = optimizer.update(slopes, memory.opt_state, memory.params)
        new = Discriminator(optax.apply_updates(memory.params, updates), opt_state)
        has_rows = fixed.weight.sum() > 0.0
        new = jax.tree.map(lambda a, b: jnp.where(has_rows, a, b), new, memory)
        logged = {
            "total_correlation_discriminator": batch_penalty.weighted_mean(
                stop_gradient(seen), fixed.weight
            ),
            "discriminator": -value,
        }
        return jnp.asarray(gamma, seen.dtype) * seen, new, logged

    return batch_penalty.penalized(
        model, num_samples=num_samples, num_data=num_data, penalty=penalty, init=init
    )


def independent_latents(
    key: PRNGKey, codes: batch_penalty.Codes
) -> Float[Array, "B L D"]:
    """New draws of z, each latent of the q of a row of its own, drawn by weight."""
    key_rows, key_noise = jax.random.split(key)
    shape = codes.z.shape
    rows = jax.random.choice(key_rows, shape[0], shape, p=codes.weight)
    columns = jnp.arange(shape[2])[None, None]
    eps = jax.random.normal(key_noise, shape, codes.z.dtype)
    return codes.mean[rows, columns] + jnp.exp(codes.log_std[rows, columns]) * eps
