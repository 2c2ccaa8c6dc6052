r"""Variational EM: a q of its own for every example, fitted before each step of theta.

The link between EM and AEVB: the E-step raises the bound in q as EM does, within a
family and by gradients; AEVB (arXiv:1312.6114) replaces the search for each q by an
encoder. The variational parameters h_i of q(z | h_i) are the state, found by the
example's row.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from vae_jax import bounds, numerics, vae
from vae_jax.estimators import importance, sgvb
from vae_jax.training import gradient
from vae_jax.types import (
    Algorithm,
    Batch,
    Conditional,
    Generative,
    Model,
    Objective,
    Params,
    PRNGKey,
    Recognition,
    Scalar,
)

Search = Callable[[PRNGKey, Params, Array, Array], tuple[Array, Array]]


def variational_em(
    generative: Generative,
    posterior: Conditional,
    optimizer: optax.GradientTransformation,
    *,
    num_data: int,
    num_samples: int = 1,
    num_steps: int = 20,
    learning_rate: float = 0.1,
    weight_decay: float = 0.0,
    norm_every: int = 1,
) -> Algorithm:
    """Ascent of theta alone on `local_bound`: each step is an E-step and an M-step.

    Args:
        generative: the joint p(x, z).
        posterior: as in `local_bound`.
        optimizer: of theta, any optax transformation; phi is left as it is.
        num_data: N, rows of the data set.
        num_samples: as in `local_bound`.
        num_steps: as in `local_bound`.
        learning_rate: as in `local_bound`.
        weight_decay: as in `local_bound`.
        norm_every: as in `gradient.ascent`.

    Raises:
        ValueError: if a number is not positive, or weight_decay is negative.
    """
    bound = local_bound(
        generative,
        posterior,
        num_data=num_data,
        num_samples=num_samples,
        num_steps=num_steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
    return gradient.ascent(bound, gradient.of_theta(optimizer), norm_every=norm_every)


def local_bound(
    generative: Generative,
    posterior: Conditional,
    *,
    num_data: int,
    num_samples: int = 1,
    num_steps: int = 20,
    learning_rate: float = 0.1,
    weight_decay: float = 0.0,
) -> Objective:
    r"""The bound of a batch at the best q that each of its rows has for itself.

    $\max_{h_i} E_{q(z|h_i)}[\log p(x_i, z) - \log q(z|h_i)]$ by Adam on fresh samples,
    at a rate that falls to zero, from where the row's last search ended (zeros at
    first): the memory is the table of all h_i [N, H]. The value is on fresh samples at
    the h_i found, whose gradient for theta is unbiased for that bound's; none reaches
    the search. As the rows' q are warm, a short search an epoch converges with theta.
    It logs `starting_bound`, of the q that the rows had.

    Args:
        generative: the joint p(x, z).
        posterior: q(z | h), reparameterized and without parameters of its own, such as
            `posteriors.diag_normal`.
        num_data: N, rows of the data set.
        num_samples: L, of every estimate of the bound.
        num_steps: of each search.
        learning_rate: of its Adam, in the units of h.
        weight_decay: theta's prior is N(0, I / weight_decay) (`sgvb`); 0 for none.

    Raises:
        ValueError: if a number is not positive, or weight_decay is negative.
    """
    numerics.check_positive(num_data=num_data)
    model = vae.model(generative, free(posterior))
    weights = importance.log_weights(model, num_samples=num_samples)
    find = search(
        model,
        num_samples=num_samples,
        num_steps=num_steps,
        learning_rate=learning_rate,
    )

    def init(params: Params) -> Float[Array, "N H"]:
        del params
        return jnp.zeros((num_data, posterior.width))

    def value(
        key: PRNGKey, params: Params, memory: Float[Array, "N H"], batch: Batch
    ) -> tuple[Array, Float[Array, "N H"], dict[str, Scalar]]:
        key_e, key_m = jax.random.split(key)
        num_rows = batch.index.shape[0]
        h, values = jax.vmap(find, in_axes=(0, None, 0, 0))(
            jax.random.split(key_e, num_rows),
            stop_gradient(params),
            batch.x,
            memory[batch.index],
        )

        def bound(key: PRNGKey, params: Params, x: Array, h: Array) -> Scalar:
            return bounds.elbo(weights(key, params, x, h))

        nats = jax.vmap(bound, in_axes=(0, None, 0, 0))(
            jax.random.split(key_m, num_rows), params, batch.x, h
        )
        nats = sgvb.add_log_prior_of_theta(
            nats, params, num_data=num_data, weight_decay=weight_decay
        )
        first, _ = gradient.weighted_moments(values[:, 0], batch.weight)
        return nats, memory.at[batch.index].set(h), {"starting_bound": first}

    numerics.check_not_negative(weight_decay=weight_decay)
    return Objective(init, value)


def optimized(
    key: PRNGKey,
    generative: Generative,
    posterior: Conditional,
    *,
    num_samples: int = 1,
    num_steps: int = 200,
    learning_rate: float = 0.1,
) -> Recognition:
    """q(z | x) whose encode is the search of `variational_em`, started from zeros.

    A model that was fitted without an encoder is evaluated through it, on any x.
    `encode` takes no key, so every search draws its noise from the one given here, and
    h is a function of params and x. No gradient flows through `encode`.

    Args:
        key: of the searches' noise.
        generative: the joint p(x, z).
        posterior: as in `variational_em`.
        num_samples: L, of every estimate of the bound.
        num_steps: of the search.
        learning_rate: of its Adam.

    Raises:
        ValueError: if a number is not positive.
    """
    find = search(
        vae.model(generative, free(posterior)),
        num_samples=num_samples,
        num_steps=num_steps,
        learning_rate=learning_rate,
    )

    def encode(params: Params, x: Array) -> Array:
        start = jnp.zeros((posterior.width,), x.dtype)
        return stop_gradient(find(jax.random.clone(key), params, x, start)[0])

    return vae.recognition(encode, posterior)


def free(posterior: Conditional) -> Recognition:
    """q(z | h) at an h that is given: it encodes nothing, and has no parameters."""
    return vae.recognition(
        lambda params, x: jnp.zeros((posterior.width,), x.dtype), posterior
    )


def search(
    model: Model, *, num_samples: int, num_steps: int, learning_rate: float
) -> Search:
    """(key, params, x, h) -> the h found, and the bound's draws [S] on the way.

    Adam on fresh samples from the h given, at a rate that falls to zero. The gradient
    leaves out the score of q: its noise vanishes as q nears the posterior.

    Args:
        model: the joint p(x, z) and q(z | h), reparameterized; its encoder is not used.
        num_samples: L, of every estimate of the bound.
        num_steps: S.
        learning_rate: where Adam's rate starts, in the units of h.

    Raises:
        ValueError: if a number is not positive.
    """
    numerics.check_positive(num_steps=num_steps)
    numerics.check_in("(0, inf)", learning_rate=learning_rate)
    draw = importance.log_weights(model, num_samples=num_samples, with_score=False)
    adam = gradient.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def find(key: PRNGKey, params: Params, x: Array, h: Array) -> tuple[Array, Array]:
        def loss(h: Array, key: PRNGKey) -> Scalar:
            return -bounds.elbo(draw(key, params, x, h))

        def step(
            carry: tuple[Array, Any], t: Int[Array, ""]
        ) -> tuple[tuple[Array, Any], Scalar]:
            h, memory = carry
            value, slope = jax.value_and_grad(loss)(h, jax.random.fold_in(key, t))
            updates, memory = adam.update(slope, memory)
            return (cast(Array, optax.apply_updates(h, updates)), memory), -value

        steps = jnp.arange(num_steps)
        (best, _), values = jax.lax.scan(step, (h, adam.init(h)), steps)
        return best, values

    return find
