"""Hamiltonian Monte Carlo on the latents of one example.

The only module that runs a chain: Monte Carlo EM, the fitted normals and the evaluators
take their transitions from here. Products of matrices inside a log density run at the
"highest" precision, since an error of the energy is an error of the acceptance.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vae_jax import numerics, posteriors
from vae_jax.types import Generative, Params, PRNGKey, Scalar, log_likelihood

LogDensity: TypeAlias = Callable[[Array], Scalar]
"""z [D] -> the log of a density up to a constant, in nats."""

State: TypeAlias = Any
"""blackjax's HMCState: a position, its log density and the gradient of that."""

_GAIN, _DECAY = 2.0, 0.6


class Info(NamedTuple):
    """What one transition reports.

    Attributes:
        acceptance: the probability min(1, exp(-energy_error)), not the outcome.
        energy_error: H(end) - H(start), nats; infinite where H(end) is no number.
        divergent: whether the energy error exceeds 1000 nats.
    """

    acceptance: Scalar
    energy_error: Scalar
    divergent: Bool[Array, ""]


class Draws(NamedTuple):
    """A chain's draws after its warm-up, and what they report on average.

    Attributes:
        positions: the draws of z.
        acceptance: mean acceptance probability.
        energy_error: mean |H(end) - H(start)|, nats.
        divergent: share of divergent transitions.
        step_size: as the warm-up left it.
    """

    positions: Float[Array, "S D"]
    acceptance: Scalar
    energy_error: Scalar
    divergent: Scalar
    step_size: Scalar


def transition(
    key: PRNGKey,
    log_density: LogDensity,
    position: Float[Array, " D"],
    step_size: float | Scalar,
    num_leapfrog: int,
) -> tuple[Float[Array, " D"], Info]:
    r"""One trajectory of leapfrog steps from `position`, accepted or rejected.

    With $H(z, m) = -\log p(z) + \frac12 m^\top m$ and $m\sim N(0, I)$, the end of the
    trajectory is accepted with probability $\min(1, e^{H - H'})$: Neal 2011
    (arXiv:1206.1901), section 3. It leaves the density invariant at any step size that
    does not depend on the position. The mass matrix is the identity. A trajectory that
    ends where the energy is no number is rejected.

    Args:
        key: of the momentum and of the acceptance.
        log_density: up to a constant; differentiated num_leapfrog + 1 times.
        position: where the chain is.
        step_size: of the integrator; may be traced.
        num_leapfrog: leapfrog steps in the trajectory.

    Raises:
        ValueError: if num_leapfrog is below one.
    """
    numerics.check_positive(num_leapfrog=num_leapfrog)
    with jax.default_matmul_precision("highest"):
        state = _kernel().init(position, log_density)
        state, info = _advance(key, log_density, state, step_size, num_leapfrog)
    return cast(Array, state.position), info


def _advance(
    key: PRNGKey,
    log_density: LogDensity,
    state: State,
    step_size: float | Scalar,
    num_leapfrog: int,
) -> tuple[State, Info]:
    """`transition` of a state that holds the log density and its gradient."""
    dtype = cast(Array, state.position).dtype
    size = cast(float, jnp.asarray(step_size, dtype))  # what the kernel declares
    mass = jnp.ones_like(cast(Array, state.position))
    step = _kernel().build_kernel()
    moved, info = step(key, state, log_density, size, mass, num_leapfrog)
    start = 0.5 * jnp.sum(cast(Array, info.momentum) ** 2) - state.logdensity
    error = info.energy - start
    error = jnp.where(jnp.isnan(error), jnp.inf, error)
    accepted = jnp.asarray(info.acceptance_rate, dtype)
    return moved, Info(accepted, error, jnp.asarray(info.is_divergent))


def jittered(key: PRNGKey, step_size: Scalar, *, jitter: float) -> Scalar:
    """step_size times a uniform draw from [1 - jitter, 1 + jitter].

    A trajectory of fixed length can come back to where it began, and near-normal
    densities bring it there; a random step size breaks the period and, as it is drawn
    apart from the position, keeps the density invariant (Neal 2011, arXiv:1206.1901,
    section 3.2).
    """
    factor = jax.random.uniform(
        key, (), step_size.dtype, minval=1.0 - jitter, maxval=1.0 + jitter
    )
    return step_size * factor


def adapted(
    log_step_size: Scalar, acceptance: Scalar, *, target: float, gain: float | Scalar
) -> Scalar:
    r"""The log step size after a transition: $\log\epsilon + \gamma (a - a^*)$.

    Stochastic approximation (Robbins & Monro 1951) of the step size at which the
    expected acceptance is the target: larger after too many acceptances, smaller after
    too few. `acceptance` may be the mean over chains that share the step size. A chain
    whose step size depends on its past does not leave its density invariant, so
    whatever is measured is measured with the step size frozen.
    """
    return log_step_size + gain * (acceptance - target)


def samples(
    *,
    num_samples: int,
    num_warmup: int,
    num_leapfrog: int,
    target_acceptance: float = 0.9,
    initial_step_size: float = 0.1,
    jitter: float = 0.5,
) -> Callable[[PRNGKey, LogDensity, Float[Array, " D"]], Draws]:
    r"""(key, log_density, position) -> draws of one chain started at `position`.

    Warm-up transitions adapt the step size by `adapted` with gain
    $2 t^{-0.6}$ at transition t. Then the step size is frozen, and what is returned
    comes from the transitions after: adaptation inside the measurement would bias it.
    The draws are those of successive transitions, so they are correlated.

    The step size can grow during T warm-up transitions by a factor of about
    $\exp(5 (1 - a^*) T^{0.4})$: 20 for a target of 0.9 and T = 100.

    Args:
        num_samples: S, draws kept.
        num_warmup: transitions before them, with adaptation.
        num_leapfrog: leapfrog steps in each transition.
        target_acceptance: mean acceptance probability to adapt to.
        initial_step_size: of the first transition.
        jitter: relative half width of the step sizes drawn around the current one. A
            narrow one leaves trajectories of half a period, which map z to -z, and
            squares of the draws that are hardly independent.

    Raises:
        ValueError: if num_samples or num_leapfrog is below one, num_warmup is negative,
            initial_step_size is not positive, target_acceptance does not lie in (0, 1)
            or jitter does not lie in [0, 1).
    """
    numerics.check_positive(num_samples=num_samples, num_leapfrog=num_leapfrog)
    numerics.check_not_negative(num_warmup=num_warmup)
    check_step_size(target_acceptance, initial_step_size, jitter)

    def run(
        key: PRNGKey, log_density: LogDensity, position: Float[Array, " D"]
    ) -> Draws:
        key_warmup, key_draws = jax.random.split(key)
        dtype = position.dtype

        def move(
            key: PRNGKey, state: State, log_step_size: Scalar
        ) -> tuple[State, Info]:
            key_size, key_move = jax.random.split(key)
            step_size = jittered(key_size, jnp.exp(log_step_size), jitter=jitter)
            return _advance(key_move, log_density, state, step_size, num_leapfrog)

        def warm_up(
            carry: tuple[State, Scalar], t: Array
        ) -> tuple[tuple[State, Scalar], None]:
            state, log_step_size = carry
            # Keys split beforehand are an input of the scan, which `vmap` transposes;
            # jax_debug_key_reuse takes a transposed key for a used one.
            state, info = move(jax.random.fold_in(key_warmup, t), state, log_step_size)
            gain = _GAIN * (1.0 + t.astype(dtype)) ** -_DECAY
            log_step_size = adapted(
                log_step_size, info.acceptance, target=target_acceptance, gain=gain
            )
            return (state, log_step_size), None

        with jax.default_matmul_precision("highest"):
            start = _kernel().init(position, log_density)
            log_initial = jnp.log(jnp.asarray(initial_step_size, dtype))
            (start, log_step_size), _ = jax.lax.scan(
                warm_up, (start, log_initial), jnp.arange(num_warmup)
            )

            def draw(state: State, t: Array) -> tuple[State, tuple[Array, Info]]:
                key_t = jax.random.fold_in(key_draws, t)
                state, info = move(key_t, state, log_step_size)
                return state, (cast(Array, state.position), info)

            _, (positions, info) = jax.lax.scan(draw, start, jnp.arange(num_samples))
        return Draws(
            positions,
            info.acceptance.mean(),
            jnp.abs(info.energy_error).mean(),
            info.divergent.astype(dtype).mean(),
            jnp.exp(log_step_size),
        )

    return run


def start(
    key: PRNGKey, generative: Generative, params: Params, x: Array, *, num_draws: int
) -> Float[Array, " D"]:
    """One of num_draws draws of the prior, chosen with odds p(x | z).

    Sampling importance resampling (Rubin 1987): a draw of p(z | x) in the limit of many
    draws, and with few still near it, so that a chain does not have to find its way
    from the prior, where sharp posteriors have local modes that hold it.

    Raises:
        ValueError: if num_draws is below one.
    """
    numerics.check_positive(num_draws=num_draws)
    key_draws, key_choice = jax.random.split(key)
    keys = jax.random.split(key_draws, num_draws)
    z = jax.vmap(generative.sample_prior, in_axes=(0, None))(keys, params)
    odds = jax.vmap(log_likelihood, in_axes=(None, None, None, 0))
    return z[jax.random.categorical(key_choice, odds(generative, params, x, z))]


def normal_fit(
    *,
    num_latents: int,
    num_samples: int,
    shrinkage: float = 1e-3,
    inflation: float = 1.0,
) -> Callable[[Float[Array, "S D"]], Float[Array, " H"]]:
    """draws -> the normal of their mean and covariance, h of `posteriors.full_normal`.

    The covariances are multiplied by 1 - shrinkage and the variances are not, which
    makes the matrix positive definite for any draws that differ in every latent.
    Variances below the square of the dtype's epsilon are raised to it: draws of a
    chain that never moved give a spike, and no NaN.

    Args:
        num_latents: D.
        num_samples: S, above D.
        shrinkage: of the correlations toward zero, in (0, 1).
        inflation: factor of the standard deviations.

    Raises:
        ValueError: if num_latents is below one, num_samples is not above it, shrinkage
            does not lie in (0, 1) or inflation is not positive.
    """
    numerics.check_positive(num_latents=num_latents)
    if num_samples <= num_latents:
        raise ValueError(
            f"num_samples={num_samples} draws do not span num_latents={num_latents}"
        )
    numerics.check_in("(0, 1)", shrinkage=shrinkage)
    numerics.check_in("(0, inf)", inflation=inflation)

    def fit(draws: Float[Array, "S D"]) -> Float[Array, " H"]:
        mean = draws.mean(0)
        with jax.default_matmul_precision("highest"):
            centered = draws - mean[None]
            covariance = centered.T @ centered / (num_samples - 1)
        least = jnp.finfo(draws.dtype).eps ** 2
        variances = jnp.maximum(jnp.diagonal(covariance), least)
        off_diagonal = covariance - jnp.diag(jnp.diagonal(covariance))
        shrunk = (1.0 - shrinkage) * off_diagonal + jnp.diag(variances)
        return posteriors.packed(mean, inflation * jnp.linalg.cholesky(shrunk))

    return fit


def check_step_size(
    target_acceptance: float, initial_step_size: float, jitter: float
) -> None:
    """Refuses numbers of an adaptation that cannot work.

    Raises:
        ValueError: if target_acceptance does not lie in (0, 1), initial_step_size is
            not positive or jitter does not lie in [0, 1).
    """
    numerics.check_in("(0, 1)", target_acceptance=target_acceptance)
    numerics.check_in("(0, inf)", initial_step_size=initial_step_size)
    numerics.check_in("[0, 1)", jitter=jitter)


def _kernel() -> ModuleType:
    """blackjax's kernel, imported when a chain is built.

    blackjax computes as it is imported, and a run of several processes must be joined
    (`parallel.initialize`) before anything is computed.
    """
    from blackjax.mcmc import hmc

    return hmc
