r"""Variational EM: a q of its own for every example, fitted before each step of theta.

The link between EM and AEVB: the E-step raises the bound in q as EM does, within a
family and by gradients; AEVB (arXiv:1312.6114) replaces the search for each q by an
encoder. The variational parameters h_i of q(z | h_i) are the state, found by the
example's row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from vae_jax import bounds
from vae_jax.estimators import importance, sgvb
from vae_jax.training import gradient
from vae_jax.types import (
    Algorithm,
    Batch,
    Conditional,
    Generative,
    Objective,
    Params,
    PRNGKey,
    Recognition,
    Scalar,
)

Search = Callable[[PRNGKey, Params, Array, Array], tuple[Array, Array]]


class VariationalEMState(NamedTuple):
    """Theta with its optimizer's memory, and the variational parameters of each row."""

    ascent: gradient.AscentState
    h: Float[Array, "N H"]

    @property
    def params(self) -> Params:
        """The parameters, where an ascent's state has them."""
        return self.ascent.params


class VariationalEMInfo(NamedTuple):
    """What one step reports, means over the batch, nats per example."""

    bound: Scalar  # after the E-step, before theta moves
    starting_bound: Scalar  # of the q that the rows had
    gradient_norm: Scalar  # of theta's gradient


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
    r"""E: raise the bound in the batch's own h_i; M: one step of theta on that bound.

    $\max_{h_i} E_{q(z|h_i)}[\log p(x_i, z) - \log q(z|h_i)]$ by Adam on fresh samples,
    at a rate that falls to zero, from where the row's last search ended (zeros at
    first); then one optimizer step of theta on the mean bound of the batch at the h_i
    found. Theta's gradient is unbiased for that bound's. As the rows' q are warm, a
    short search an epoch converges with theta.

    Args:
        generative: the joint p(x, z).
        posterior: q(z | h), reparameterized and without parameters of its own, such as
            `posteriors.diag_normal`.
        optimizer: of theta, any optax transformation; phi is left as it is.
        num_data: N, rows of the data set.
        num_samples: L, of every estimate of the bound.
        num_steps: of each search.
        learning_rate: of its Adam, in the units of h.
        weight_decay: theta's prior is N(0, I / weight_decay) (`sgvb`); 0 for none.
        norm_every: as in `gradient.ascent`.

    Raises:
        ValueError: if a number is not positive, or weight_decay is negative.
    """
    if num_data < 1:
        raise ValueError(f"num_data must be positive, got {num_data}.")
    recognition = free(posterior)
    weights = importance.log_weights(generative, recognition, num_samples=num_samples)
    find = search(
        generative,
        recognition,
        num_samples=num_samples,
        num_steps=num_steps,
        learning_rate=learning_rate,
    )

    def bound(key: PRNGKey, params: Params, row: tuple[Array, Array]) -> Scalar:
        x, h = row
        return bounds.elbo(weights(key, params, x, h))

    objective = sgvb.with_normal_prior_on_theta(
        cast(Objective, bound), num_data=num_data, weight_decay=weight_decay
    )
    ascent = gradient.ascent(
        objective if weight_decay else cast(Objective, bound),
        gradient.of_theta(optimizer),
        norm_every=norm_every,
    )

    def init(key: PRNGKey, start: Params) -> VariationalEMState:
        h = jnp.zeros((num_data, posterior.width))
        return VariationalEMState(ascent.init(key, start), h)

    def step(
        key: PRNGKey, state: VariationalEMState, batch: Batch
    ) -> tuple[VariationalEMState, VariationalEMInfo]:
        key_e, key_m = jax.random.split(key)
        keys = jax.random.split(key_e, batch.index.shape[0])
        found, values = jax.vmap(find, in_axes=(0, None, 0, 0))(
            keys, state.params, batch.x, state.h[batch.index]
        )
        rows = batch._replace(x=(batch.x, found))
        inner, info = ascent.step(key_m, state.ascent, rows)
        h = state.h.at[batch.index].set(found)
        return VariationalEMState(inner, h), VariationalEMInfo(
            info.bound, values[:, 0].mean(), info.gradient_norm
        )

    return Algorithm(init, step)


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
        generative,
        free(posterior),
        num_samples=num_samples,
        num_steps=num_steps,
        learning_rate=learning_rate,
    )

    def encode(params: Params, x: Array) -> Array:
        start = jnp.zeros((posterior.width,), x.dtype)
        return stop_gradient(find(jax.random.clone(key), params, x, start)[0])

    return free(posterior)._replace(encode=encode)


def free(posterior: Conditional) -> Recognition:
    """q(z | h) at an h that is given: it encodes nothing, and has no parameters."""
    return Recognition(
        init=lambda key: (),
        encode=lambda params, x: jnp.zeros((posterior.width,), x.dtype),
        sample=lambda key, params, h: posterior.sample(key, (), h),
        log_prob=lambda params, h, z: posterior.log_prob((), h, z),
    )


def search(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    num_steps: int,
    learning_rate: float,
) -> Search:
    """(key, params, x, h) -> the h found, and the bound's draws [S] on the way.

    Adam on fresh samples from the h given, at a rate that falls to zero. The gradient
    leaves out the score of q: its noise vanishes as q nears the posterior.

    Args:
        generative: the joint p(x, z).
        recognition: q(z | h), reparameterized; its encoder is not used.
        num_samples: L, of every estimate of the bound.
        num_steps: S.
        learning_rate: where Adam's rate starts, in the units of h.

    Raises:
        ValueError: if a number is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be positive, got {num_steps}.")
    if not learning_rate > 0.0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
    draw = importance.log_weights(
        generative, recognition, num_samples=num_samples, with_score=False
    )
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
        (found, _), values = jax.lax.scan(step, (h, adam.init(h)), steps)
        return found, values

    return find
