"""Monte Carlo EM: maximum likelihood with the posterior sampled, and no q."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vae_jax import numerics, posteriors, vae
from vae_jax.estimators import sgvb
from vae_jax.inference import hmc
from vae_jax.training import gradient
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
    log_joint,
)

GAIN = 0.5  # nats of log step size for one of acceptance error


class MCEMState(NamedTuple):
    """Parameters, a chain for every example, and the step size that all share.

    Attributes:
        params: theta and phi.
        opt_state: the optimizer's memory of params.generative alone.
        chains: z of every row of the data.
        log_step_size: of the integrator.
        step: steps taken.
    """

    params: Params
    opt_state: Any
    chains: Float[Array, "N D"]
    log_step_size: Scalar
    step: Int[Array, ""]


class MCEMInfo(NamedTuple):
    """What one step reports. There is no q, so there is no bound.

    Attributes:
        log_joint: mean log p(x, z) at the new z before the updates, nats.
        acceptance: mean acceptance probability.
        energy_error: mean |H(end) - H(start)|, nats.
        step_size: of this step's trajectories, before the jitter.
        gradient_norm: of theta at the first update.
    """

    log_joint: Scalar
    acceptance: Scalar
    energy_error: Scalar
    step_size: Scalar
    gradient_norm: Scalar


def mcem(
    generative: Generative,
    optimizer: optax.GradientTransformation,
    *,
    num_data: int,
    num_leapfrog: int = 10,
    target_acceptance: float = 0.9,
    num_updates: int = 5,
    initial_step_size: float = 0.1,
    jitter: float = 0.2,
    weight_decay: float = 0.0,
) -> Algorithm:
    r"""Monte Carlo EM by Hamiltonian Monte Carlo: AEVB (arXiv:1312.6114) appendix E.

    E-step: each row of the batch moves its own chain on z by one trajectory under
    $p_\theta(z|x)\propto p_\theta(x, z)$, from where it was when the row was last seen.
    M-step: a few updates of theta up the batch's mean of $\log p_\theta(x, z)$, whose
    gradient at exact posterior draws has the expectation
    $\nabla_\theta\log p_\theta(x)$ (Fisher's identity). The draws lag behind theta, and
    updates after the first reuse the same draws.

    The chains start at draws from the prior. `Batch.index` names their rows, which must
    be distinct within a batch; the chains of other rows stay. Only theta is optimized:
    `params.recognition` is handed through.

    One step size serves all chains: a row comes by once an epoch, with one acceptance
    to learn from, while the batch's mean is precise at every step, and posteriors under
    one decoder have similar widths. It follows `hmc.adapted` with a constant gain, as
    theta moves the posteriors; each step uses what the steps before it left. Chains
    that adapt have no exact invariant density: do not read posterior moments from them.

    Args:
        generative: the joint p(x, z), with z [D] of real numbers.
        optimizer: any optax transformation, of theta.
        num_data: N, examples in the data set and chains in the state.
        num_leapfrog: leapfrog steps in a trajectory.
        target_acceptance: mean acceptance probability to adapt to.
        num_updates: of theta in each step.
        initial_step_size: of the integrator at the first step.
        jitter: relative half width of the step sizes drawn for the rows (`hmc`).
        weight_decay: theta's prior is N(0, I / weight_decay) (`sgvb`); 0 for maximum
            likelihood.

    Raises:
        ValueError: if a count is below one, weight_decay is negative, or as
            `hmc.samples` for the step size.
    """
    numerics.check_positive(
        num_data=num_data, num_leapfrog=num_leapfrog, num_updates=num_updates
    )
    hmc.check_step_size(target_acceptance, initial_step_size, jitter)
    numerics.check_not_negative(weight_decay=weight_decay)

    def init(key: PRNGKey, start: Params) -> MCEMState:
        keys = jax.random.split(key, num_data)
        chains = jax.vmap(generative.sample_prior, in_axes=(0, None))(keys, start)
        log_step_size = jnp.log(jnp.asarray(initial_step_size, chains.dtype))
        opt_state = optimizer.init(start.generative)
        return MCEMState(
            start, opt_state, chains, log_step_size, jnp.zeros((), jnp.int32)
        )

    def move(
        key: PRNGKey, params: Params, x: Array, z: Array, step_size: Scalar
    ) -> tuple[Array, hmc.Info]:
        key_size, key_move = jax.random.split(key)
        size = hmc.jittered(key_size, step_size, jitter=jitter)

        def log_density(z: Array) -> Scalar:
            return log_joint(generative, params, x, z)

        return hmc.transition(key_move, log_density, z, size, num_leapfrog)

    def step(
        key: PRNGKey, state: MCEMState, batch: Batch
    ) -> tuple[MCEMState, MCEMInfo]:
        batch = clear_weightless(batch)
        key_chains, _ = jax.random.split(key)
        keys = jax.random.split(key_chains, batch.x.shape[0])
        step_size = jnp.exp(state.log_step_size)
        z, moves = jax.vmap(move, in_axes=(0, None, 0, 0, None))(
            keys, state.params, batch.x, state.chains[batch.index], step_size
        )

        def objective(theta: PyTree) -> Scalar:
            params = state.params._replace(generative=theta)
            nats = jax.vmap(log_joint, in_axes=(None, None, 0, 0))(
                generative, params, batch.x, z
            )
            nats = sgvb.add_log_prior_of_theta(
                nats, params, num_data=num_data, weight_decay=weight_decay
            )
            return gradient.weighted_moments(nats, batch.weight)[0]

        theta, opt_state, values, norms = gradient.climb(
            objective,
            optimizer,
            state.params.generative,
            state.opt_state,
            num_updates=num_updates,
        )
        acceptance, _ = gradient.weighted_moments(moves.acceptance, batch.weight)
        adapted = hmc.adapted(
            state.log_step_size,
            acceptance,
            target=target_acceptance,
            gain=GAIN,
        )
        # A batch without weight has no acceptance to learn from.
        weighs = batch.weight.sum() > 0.0
        log_step_size = jnp.where(weighs, adapted, state.log_step_size)
        chains = state.chains.at[batch.index].set(z)
        error, _ = gradient.weighted_moments(jnp.abs(moves.energy_error), batch.weight)
        info = MCEMInfo(values[0], acceptance, error, step_size, norms[0])
        params = state.params._replace(generative=theta)
        return MCEMState(params, opt_state, chains, log_step_size, state.step + 1), info

    return Algorithm(init, step)


def fitted_normal(
    key: PRNGKey,
    generative: Generative,
    *,
    num_latents: int,
    num_samples: int,
    num_warmup: int,
    num_leapfrog: int,
    num_starts: int = 200,
    target_acceptance: float = 0.9,
    initial_step_size: float = 0.1,
    shrinkage: float = 1e-3,
    inflation: float = 1.0,
) -> Recognition:
    r"""q(z | x) = the normal fitted to a chain on p(z | x), for a model without a q.

    `encode` runs `hmc.samples` on $p_\theta(z|x)$ from `hmc.start` and returns
    the draws' mean and covariance (`hmc.normal_fit`) as h of `posteriors.full_normal`.
    So the ELBO and importance sampling apply to a model that was trained by MCEM. Any
    normal is a valid q: a chain that mixes badly makes a loose bound or weights of high
    variance, and no bias of theirs.

    `encode` takes no key, so all calls use the one given here: the same x gives the
    same h, and the noise is common to all examples. No gradient flows through `encode`,
    neither to theta nor to x: a gradient of the ELBO holds h fixed. It costs
    (num_warmup + num_samples) * num_leapfrog gradients of the log joint.

    Args:
        key: of the chains.
        generative: the joint p(x, z), with z [D] of real numbers.
        num_latents: D.
        num_samples: draws that the normal is fitted to, more than D.
        num_warmup: transitions before them, with adaptation.
        num_leapfrog: leapfrog steps in a transition.
        num_starts: draws of the prior among which `hmc.start` chooses.
        target_acceptance: as in `hmc.samples`.
        initial_step_size: as in `hmc.samples`.
        shrinkage: of the correlations toward zero, in (0, 1).
        inflation: factor of the standard deviations; above 1 for a proposal whose
            tails must cover the posterior's.

    Raises:
        ValueError: as `hmc.normal_fit` and `hmc.samples`.
    """
    density = posteriors.full_normal(num_latents)
    fit = hmc.normal_fit(
        num_latents=num_latents,
        num_samples=num_samples,
        shrinkage=shrinkage,
        inflation=inflation,
    )
    chain = hmc.samples(
        num_samples=num_samples,
        num_warmup=num_warmup,
        num_leapfrog=num_leapfrog,
        target_acceptance=target_acceptance,
        initial_step_size=initial_step_size,
    )

    def encode(params: Params, x: Array) -> Array:
        params, x = jax.lax.stop_gradient((params, x))
        key_start, key_chain = jax.random.split(jax.random.clone(key))

        def log_density(z: Array) -> Scalar:
            return log_joint(generative, params, x, z)

        start = hmc.start(key_start, generative, params, x, num_draws=num_starts)
        return fit(chain(key_chain, log_density, start).positions)

    return vae.recognition(encode, density)
