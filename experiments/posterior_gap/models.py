"""The models of `experiments.posterior_gap`, whose log p(x), bound and gap are exact.

Three numbers of each row, each by a way of its own, so that log p(x) - ELBO = KL is
found and not assumed. In pPCA: a normal's log density, a reconstruction less a
divergence from the prior, a divergence from the posterior. With a tanh decoder of two
latents: a grid of the prior's scale; nodes of q's scale; other nodes of q's scale, with
the posterior normalized on another grid.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import compilation, likelihoods, networks, posteriors, priors, vae
from vae_jax.evaluation import exact
from vae_jax.latent_models import ppca, ppca_bounds
from vae_jax.types import (
    Conditional,
    Model,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
    sample_joint,
)

NUM_LATENTS = 2
COLUMNS = ((1.0, 0.9), (1.0, 1.1), (0.0, 0.2))  # W of the linear model, correlated
LINEAR_STD = 0.5
NONLINEAR_STD = 0.3
NUM_FEATURES = 3
MIN_STD = 0.05
ROWS_AT_ONCE = 10
_SMALL = networks.normal(std=0.1)  # q starts near the prior

Rows: TypeAlias = Callable[[PyTree, PyTree, Array], Float[Array, " N"]]
"""(theta, h [N, H] or () where it is not read, x [N, P]) -> nats of each row."""


class Problem(NamedTuple):
    """What is trained, the truth that the data are drawn from, and what is exact."""

    model: Model
    posterior: Conditional  # the model's q, given h
    truth: Callable[[PRNGKey], PyTree]  # -> theta
    log_p: Rows
    bound: Rows
    divergence: Rows  # KL(q(z | h) || p(z | x))


def linear(*, full: bool) -> Problem:
    """Probabilistic PCA with a linear encoder; q with full or diagonal covariance."""
    posterior = (posteriors.full_normal if full else posteriors.diag_normal)(2)
    encoder = networks.linear(NUM_FEATURES, posterior.width, initializer=_SMALL)

    def bound(params: Params, x: Array) -> Scalar:
        return ppca_bounds.bound(params, x, *moments(params.recognition))

    def divergence(params: Params, x: Array) -> Scalar:
        return ppca_bounds.posterior_divergence(params, x, *moments(params.recognition))

    return Problem(
        vae.model(
            ppca.generative(NUM_LATENTS, (NUM_FEATURES,)),
            vae.encoder_model(encoder, posterior),
        ),
        posterior,
        lambda key: linear_theta(jnp.log(LINEAR_STD)),
        *map(over_rows, (ppca.log_evidence, bound, divergence)),
    )


def linear_theta(log_std: Scalar) -> PyTree:
    """Theta of `ppca` with the columns above, no mean, and this noise."""
    w = jnp.asarray(COLUMNS)
    return ppca.parameters(w, jnp.zeros(len(w)), jnp.asarray(log_std))


def nonlinear(*, hidden: int, num_nodes: int, q_nodes: int) -> Problem:
    """A tanh decoder of two latents with learned noise; q a diagonal normal.

    Args:
        hidden: units of the decoder, of the truth's and of the encoder's hidden layer.
        num_nodes: a side of the finest grid of z.
        q_nodes: a side of those of q's scale. They must be dense where the decoder
            bends, so a wide q, as at the start, takes more than a narrow one.
    """
    generative = vae.decoder_model(
        networks.mlp(NUM_LATENTS, (hidden,), NUM_FEATURES),
        priors.standard_normal(NUM_LATENTS),
        likelihoods.normal_learned_std((NUM_FEATURES,), min_std=MIN_STD),
    )
    posterior = posteriors.diag_normal(NUM_LATENTS)
    encoder = networks.mlp(NUM_FEATURES, (hidden,), posterior.width, initializer=_SMALL)

    def truth(key: PRNGKey) -> PyTree:
        """Weights larger than at the start of training, so that posteriors bend."""
        key_in, key_bias, key_out = jax.random.split(key, 3)
        first = 1.25 * jax.random.normal(key_in, (NUM_LATENTS, hidden))
        bias, scale = jax.random.normal(key_bias, (hidden,)), 1.5 / math.sqrt(hidden)
        last = scale * jax.random.normal(key_out, (hidden, NUM_FEATURES))
        decoder = {
            "hidden_0": {"kernel": first, "bias": bias},
            "output": {"kernel": last, "bias": jnp.zeros(NUM_FEATURES)},
        }
        noise = {"log_std": jnp.log(NONLINEAR_STD)}
        return {"decoder": decoder, "prior": (), "likelihood": noise}

    def grid(num_nodes: int, limit: float) -> exact.Exact:
        return exact.grid_quadrature(
            generative, num_latents=NUM_LATENTS, num_nodes=num_nodes, limit=limit
        )

    at_h = vae.model(generative, free(posterior))
    bound = exact.elbo(at_h, num_latents=NUM_LATENTS, num_nodes=q_nodes + 11)
    divergence = exact.posterior_divergence(
        at_h,
        grid(num_nodes - 17, 6.2),
        num_latents=NUM_LATENTS,
        num_nodes=q_nodes,
    )
    return Problem(
        vae.model(generative, vae.encoder_model(encoder, posterior)),
        posterior,
        truth,
        *map(over_rows, (grid(num_nodes, 6.0), bound, divergence)),
    )


def sample(
    key: PRNGKey, problem: Problem, theta: PyTree, num_rows: int
) -> Float[Array, "N P"]:
    """Rows drawn from a model by ancestral sampling."""
    generative, params = problem.model.generative, Params(theta, ())
    draw = compilation.program(
        jax.vmap(lambda key: sample_joint(key, generative, params)[1])
    )
    return draw(jax.random.split(key, num_rows))


def over_rows(function: Callable[[Params, Array], Scalar]) -> Rows:
    """Compiles a function of one row for many, whose phi is each row's own."""

    def rows(theta: PyTree, recognition: PyTree, x: Array) -> PyTree:
        return jax.lax.map(
            lambda row: function(Params(theta, row[0]), row[1]),
            (recognition, x),
            batch_size=ROWS_AT_ONCE,
        )

    return compilation.program(rows)


def free(posterior: Conditional) -> Recognition:
    """The q whose h stands where phi would: of an encoder or of a row's own search."""
    return vae.recognition(lambda params, x: params.recognition, posterior)


def moments(h: Float[Array, " H"]) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """Mean and Cholesky factor of the normal that h holds, diagonal or full."""
    if h.shape[0] > 2 * NUM_LATENTS:
        return posteriors.mean_and_scale_tril(h, NUM_LATENTS)
    mean, log_std = jnp.split(h, 2)
    return mean, jnp.diag(jnp.exp(log_std))
