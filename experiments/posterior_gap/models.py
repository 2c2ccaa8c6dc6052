"""The models of `experiments.posterior_gap`, whose log p(x), bound and gap are exact.

Three numbers for each row, each by a way of its own, so that log p(x) - ELBO = KL is
found and not assumed. In pPCA: a normal's log density, a reconstruction less a
divergence from the prior, a divergence from the posterior. With a tanh decoder of two
latents: a grid of the prior's scale; nodes of q's scale less the same closed form;
other nodes of q's scale, with the posterior normalized on another grid.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

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
from vae_jax.evaluation import exact
from vae_jax.latent_models import ppca, ppca_bounds
from vae_jax.types import (
    Conditional,
    Generative,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
    log_joint,
    log_likelihood,
)

NUM_LATENTS = 2
COLUMNS = ((1.0, 0.9), (1.0, 1.1), (0.0, 0.2))  # W of the linear model, correlated
LINEAR_STD = 0.5
NONLINEAR_STD = 0.3
NUM_FEATURES = 3
MIN_STD = 0.05
ROWS_AT_ONCE = 10
TURN_NODES, FINAL_NODES = 24, 60  # a side of q's grid, to choose a turn and after
TURN_ROWS = 100
_SMALL = networks.normal(std=0.1)  # q starts near the prior

Rows: TypeAlias = Callable[[PyTree, Array, Array], Float[Array, " N"]]
"""(theta, h [N, H], x [N, *X]) -> nats of each row."""


class Exact(NamedTuple):
    """Three numbers of every row, compiled apart: (theta, h [N, H], x [N, P])."""

    log_p: Rows
    bound: Rows
    divergence: Rows  # KL(q(z | h) || p(z | x))


class Model(NamedTuple):
    """What is trained, the truth that the data are drawn from, and what is exact."""

    generative: Generative
    recognition: Recognition
    posterior: Conditional
    truth: Callable[[PRNGKey], PyTree]  # -> theta
    exact: Exact


def linear(*, full: bool) -> Model:
    """Probabilistic PCA with a linear encoder; q with full or diagonal covariance."""
    posterior = (posteriors.full_normal if full else posteriors.diag_normal)(2)
    return Model(
        ppca.generative(NUM_LATENTS, (NUM_FEATURES,)),
        vae.encoder_model(
            networks.linear(NUM_FEATURES, posterior.width, initializer=_SMALL),
            posterior,
        ),
        posterior,
        lambda key: linear_theta(jnp.log(LINEAR_STD)),
        _closed_forms(),
    )


def linear_theta(log_std: Scalar) -> PyTree:
    """Theta of `ppca` with the columns above, no mean, and this noise."""
    columns = jnp.asarray(COLUMNS)
    layer = {"kernel": columns.T, "bias": jnp.zeros(len(columns))}
    noise = {"log_std": jnp.asarray(log_std)}
    return {"decoder": {"output": layer}, "prior": (), "likelihood": noise}


def nonlinear(*, hidden: int, num_nodes: int, q_nodes: int) -> Model:
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
        first = {
            "kernel": 1.25 * jax.random.normal(key_in, (NUM_LATENTS, hidden)),
            "bias": jax.random.normal(key_bias, (hidden,)),
        }
        scale = 1.5 / math.sqrt(hidden)
        last = {
            "kernel": scale * jax.random.normal(key_out, (hidden, NUM_FEATURES)),
            "bias": jnp.zeros(NUM_FEATURES),
        }
        return {
            "decoder": {"hidden_0": first, "output": last},
            "prior": (),
            "likelihood": {"log_std": jnp.log(NONLINEAR_STD)},
        }

    return Model(
        generative,
        vae.encoder_model(encoder, posterior),
        posterior,
        truth,
        _quadratures(generative, posterior, num_nodes=num_nodes, q_nodes=q_nodes),
    )


@functools.partial(jax.jit, static_argnames=("model", "num_rows"))
def draw(
    key: PRNGKey, model: Model, theta: PyTree, num_rows: int
) -> Float[Array, "N P"]:
    """Rows drawn from a model by ancestral sampling."""
    params = Params(theta, ())

    def one(key: PRNGKey) -> Array:
        key_z, key_x = jax.random.split(key)
        z = model.generative.sample_prior(key_z, params)
        return model.generative.sample_observation(key_x, params, z)

    return jax.vmap(one)(jax.random.split(key, num_rows))


def over_rows(function: Callable[[PyTree, Array, Array], PyTree]) -> Callable:
    """Compiles (theta, h, x) of one row to the same of many, some at a time."""

    def rows(theta: PyTree, h: Array, x: Array) -> PyTree:
        return jax.lax.map(
            lambda row: function(theta, *row), (h, x), batch_size=ROWS_AT_ONCE
        )

    return jax.jit(rows)


def at_h(posterior: Conditional) -> Recognition:
    """The q whose h stands where phi would: of an encoder or of a row's own search."""
    return vae.recognition(lambda params, x: params.recognition, posterior)


def moments(h: Float[Array, " H"]) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """Mean and Cholesky factor of the normal that h holds, diagonal or full."""
    if h.shape[0] > 2 * NUM_LATENTS:
        return posteriors.mean_and_scale_tril(h, NUM_LATENTS)
    mean, log_std = jnp.split(h, 2)
    return mean, jnp.diag(jnp.exp(log_std))


def _closed_forms() -> Exact:
    def log_p(theta: PyTree, h: Array, x: Array) -> Scalar:
        del h
        return ppca.log_evidence(Params(theta, ()), x)

    def bound(theta: PyTree, h: Array, x: Array) -> Scalar:
        return ppca_bounds.bound(Params(theta, ()), x, *moments(h))

    def divergence(theta: PyTree, h: Array, x: Array) -> Scalar:
        return ppca_bounds.posterior_divergence(Params(theta, ()), x, *moments(h))

    return Exact(over_rows(log_p), over_rows(bound), over_rows(divergence))


def _quadratures(
    generative: Generative, posterior: Conditional, *, num_nodes: int, q_nodes: int
) -> Exact:
    evidence = exact.grid_quadrature(
        generative, num_latents=NUM_LATENTS, num_nodes=num_nodes, limit=6.0
    )
    gap = exact.posterior_divergence(
        vae.model(generative, at_h(posterior)),
        # A grid of its own: coarser where log p(x) above is finer.
        exact.grid_quadrature(
            generative, num_latents=NUM_LATENTS, num_nodes=num_nodes - 17, limit=6.2
        ),
        num_latents=NUM_LATENTS,
        num_nodes=q_nodes,
    )
    eps, log_weight = numerics.grid(NUM_LATENTS, num_nodes=q_nodes, limit=8.0)
    weights = np.exp(log_weight - 0.5 * np.sum(eps**2, axis=1)) / (2.0 * math.pi)

    def log_p(theta: PyTree, h: Array, x: Array) -> Scalar:
        del h
        return evidence(Params(theta, ()), x)

    def bound(theta: PyTree, h: Array, x: Array) -> Scalar:
        mean, log_std = jnp.split(h, 2)
        z = mean[None] + jnp.exp(log_std)[None] * jnp.asarray(eps, h.dtype)
        terms = jax.vmap(log_likelihood, (None, None, None, 0))
        reconstruction = weights @ terms(generative, Params(theta, ()), x, z)
        return reconstruction - divergences.diag_normal_to_standard_normal(
            mean, log_std
        )

    def divergence(theta: PyTree, h: Array, x: Array) -> Scalar:
        return gap(Params(theta, h), x)

    return Exact(over_rows(log_p), over_rows(bound), over_rows(divergence))


class Distances(NamedTuple):
    """How far q and the model's own posterior are from the true one, means in nats."""

    divergence: float  # KL(q(z | x) || p_true(R z | x))
    of_posterior: float  # KL(p_theta(z | x) || p_true(R z | x)), of the same R
    degrees: float  # of R, a reflection first where it is negative


def distance_to_truth(
    model: Model, *, num_nodes: int
) -> Callable[[PyTree, PyTree, Array, Array, Array], Distances]:
    r"""(truth, theta, h, x, log_p) -> distances to the true posterior, means over rows.

    The prior N(0, I) is the same for every rotation and reflection R of z, and so is
    the likelihood of a model whose decoder turns with it: no data can tell which. So
    the R of the least mean KL(q || p_true(R z | x)) is taken, over all angles in steps
    of one degree. log_p is that of the true model.
    """
    posterior, generative = model.posterior, model.generative
    nodes, _ = numerics.grid(NUM_LATENTS, num_nodes=num_nodes, limit=5.0)

    def turned(turn: Array) -> Generative:
        c, s, flip = jnp.cos(turn[0]), jnp.sin(turn[0]), turn[1]
        rotation = jnp.stack([jnp.stack([c, -s]), jnp.stack([s * flip, c * flip])])

        def terms(params: Params, x: Array, z: Array) -> Array:
            return generative.log_likelihood_terms(params, x, rotation @ z)

        return generative._replace(log_likelihood_terms=terms)

    def mean_divergence(
        truth: PyTree, h: Array, x: Array, log_p: Array, turn: Array, num_nodes: int
    ) -> Scalar:
        def one(row: tuple[Array, Array, Array]) -> Scalar:
            h, x, log_p = row
            gap = exact.posterior_divergence(
                vae.model(turned(turn), at_h(posterior)),
                lambda params, x: log_p,
                num_latents=NUM_LATENTS,
                num_nodes=num_nodes,
            )
            return gap(Params(truth, h), x)

        return jax.lax.map(one, (h, x, log_p), batch_size=ROWS_AT_ONCE).mean()

    @jax.jit
    def search(truth: PyTree, h: Array, x: Array, log_p: Array, turns: Array) -> Array:
        """A few nodes a side: enough to choose the turn by."""
        return jax.lax.map(
            lambda turn: mean_divergence(truth, h, x, log_p, turn, TURN_NODES), turns
        )

    @jax.jit
    def final(
        truth: PyTree, theta: PyTree, h: Array, x: Array, log_p: Array, turn: Array
    ) -> tuple[Scalar, Scalar]:
        z = jnp.asarray(nodes, h.dtype)
        joint = jax.vmap(log_joint, in_axes=(None, None, None, 0))

        def one(x: Array) -> Scalar:
            own = jax.nn.log_softmax(joint(generative, Params(theta, ()), x, z))
            there = joint(turned(turn), Params(truth, ()), x, z)
            return jnp.exp(own) @ (own - jax.nn.log_softmax(there))

        of_posterior = jax.lax.map(one, x, batch_size=ROWS_AT_ONCE).mean()
        return mean_divergence(truth, h, x, log_p, turn, FINAL_NODES), of_posterior

    def distance(
        truth: PyTree, theta: PyTree, h: Array, x: Array, log_p: Array
    ) -> Distances:
        some = slice(0, TURN_ROWS)

        def best(degrees: np.ndarray, flips: np.ndarray) -> np.ndarray:
            turns = np.stack([np.radians(degrees), flips], axis=1)
            rows = h[some], x[some], log_p[some]
            found = search(truth, *rows, jnp.asarray(turns, h.dtype))
            return np.array([degrees, flips])[:, int(np.argmin(np.asarray(found)))]

        coarse = np.arange(0.0, 360.0, 10.0)
        both = np.repeat([1.0, -1.0], len(coarse))
        degrees, flip = best(np.tile(coarse, 2), both)
        near = degrees + np.arange(-9.0, 10.0)
        degrees, flip = best(near, np.full(len(near), flip))
        turn = jnp.asarray([np.radians(degrees), flip], h.dtype)
        divergence, of_posterior = final(truth, theta, h, x, log_p, turn)
        signed = float(flip * (degrees % 360.0))
        return Distances(float(divergence), float(of_posterior), signed)

    return distance
