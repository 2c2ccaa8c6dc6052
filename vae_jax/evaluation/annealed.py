r"""log p(x) from both sides by annealed importance sampling (Neal 2001).

Chains walk from a base density to the posterior along
$f_\beta(z) = b(z)^{1-\beta} p(x, z)^\beta$, and what they gather on the way estimates
log p(x): from below when they start at the base, from above when they walk backwards
from a draw of the posterior, which is at hand where x was simulated. The two together
are bidirectional Monte Carlo (Grosse et al. 2015, arXiv:1511.02543). They need no q,
and no tails of q.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from vae_jax.evaluation import annealing
from vae_jax.types import (
    Generative,
    Params,
    PRNGKey,
    Recognition,
    Scalar,
    log_joint,
    log_likelihood,
)

_LEAST_ACCEPTANCE = 0.01


class Sandwich(NamedTuple):
    """Both sides of log p(x) for an x that was simulated.

    Attributes:
        x: the observation, drawn from the model.
        lower: by annealing from the base to the posterior.
        upper: by annealing back from the z that x was drawn with.
    """

    x: Array
    lower: annealing.AnnealedEvidence
    upper: annealing.AnnealedEvidence


def ais(
    generative: Generative,
    chains: annealing.Chains,
    *,
    recognition: Recognition | None = None,
) -> Callable[[PRNGKey, Params, Array], annealing.AnnealedEvidence]:
    r"""(key, params, x) -> log p-hat by annealed importance sampling, from below.

    $\log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) [\log p(x, z_{t-1}) -
    \log b(z_{t-1})]$, z_0 from the base b and z_t from z_{t-1} by a transition that
    leaves f_{beta_t} invariant (Neal 2001, Statistics and Computing 11). E[w] = p(x)
    whatever the transitions, so log mean w is a stochastic lower bound on log p(x), and
    tight as T grows: with transitions that mix, the mean of log w lies about J / (2 T)
    below for linear temperatures, J the difference of the bracket's means under the
    posterior and under the base. Transitions that leave a correlation r of the bracket
    make it (1 + r) / (1 - r) times that.

    Rounding: log w is a sum of T terms, in float32 good to about 1e-4 nats at T = 10^4
    and log p(x) = -100.

    Args:
        generative: the joint p(x, z).
        chains: from `annealing.chains`.
        recognition: its q(z | x) is the base; the prior where none is given.
    """

    def estimate(key: PRNGKey, params: Params, x: Array) -> annealing.AnnealedEvidence:
        path = _path(generative, recognition, params, x)
        key_pilot, key_run = jax.random.split(key)
        return chains.forward(key_run, path, chains.step_sizes(key_pilot, path))

    return estimate


def reverse_ais(
    generative: Generative,
    chains: annealing.Chains,
    *,
    recognition: Recognition | None = None,
) -> Callable[[PRNGKey, Params, Array, Array], annealing.AnnealedEvidence]:
    """(key, params, x, z) -> log p-hat by `ais` walked backwards, from above.

    z must be an exact draw of p(z | x), as the z is that a simulated x came from. The
    chains start there and go down the temperatures, and E[1 / w] = 1 / p(x), so
    -log mean 1 / w is a stochastic upper bound on log p(x). All chains start at one z:
    the standard error over them leaves out what another z would have given.

    Step sizes depend on the first half of the key's split alone, as in `ais`: the same
    key gives both the same kernels.

    Args:
        generative: the joint p(x, z).
        chains: from `annealing.chains`.
        recognition: its q(z | x) is the base; the prior where none is given.
    """

    def estimate(
        key: PRNGKey, params: Params, x: Array, z: Array
    ) -> annealing.AnnealedEvidence:
        path = _path(generative, recognition, params, x)
        key_pilot, key_run = jax.random.split(key)
        sizes = chains.step_sizes(key_pilot, path)
        return chains.reverse(key_run, path, sizes, z)

    return estimate


def bidirectional(
    generative: Generative,
    chains: annealing.Chains,
    *,
    recognition: Recognition | None = None,
) -> Callable[[PRNGKey, Params], Sandwich]:
    """(key, params) -> both sides of log p(x) of an x that the model drew.

    Bidirectional Monte Carlo (Grosse et al. 2015, arXiv:1511.02543): (z, x) from the
    model makes z an exact posterior draw, and `ais` and `reverse_ais` on it, with the
    same kernels, bound log p(x) from below and above. The gap of the two, averaged over
    draws, bounds the error of `ais` on data that are like the model's own.
    """

    def estimate(key: PRNGKey, params: Params) -> Sandwich:
        key_z, key_x, key_pilot, key_up, key_down = jax.random.split(key, 5)
        z = generative.sample_prior(key_z, params)
        x = generative.sample_observation(key_x, params, z)
        path = _path(generative, recognition, params, x)
        sizes = chains.step_sizes(key_pilot, path)
        lower = chains.forward(key_up, path, sizes)
        return Sandwich(x, lower, chains.reverse(key_down, path, sizes, z))

    return estimate


def check(log_p: np.ndarray, acceptance: np.ndarray, step_size: np.ndarray) -> None:
    """Refuses estimates whose log weights overflowed or whose chains stood still.

    Chains that stand still bound log p(x) by nothing near.

    Args:
        log_p: of any number of examples.
        acceptance: likewise, as in `annealing.AnnealedEvidence`.
        step_size: likewise.

    Raises:
        ValueError: if a log p-hat is infinite or no number, saying how many and the
            first, or if a mean acceptance is below 0.01, naming the step size.
    """
    _check_finite(np.ravel(log_p))
    _check_accepted(np.ravel(acceptance), np.ravel(step_size))


def _check_finite(log_p: np.ndarray) -> None:
    lost = ~np.isfinite(log_p)
    if lost.any():
        first = int(np.argmax(lost))
        raise ValueError(
            f"log p-hat is {log_p[first]} for example {first}, and not finite in "
            f"{lost.sum()} of {lost.size}: its log weights overflow {log_p.dtype}; "
            "look at that x, or at a standard deviation of the model near zero"
        )


def _check_accepted(acceptance: np.ndarray, step_size: np.ndarray) -> None:
    worst = int(np.argmin(acceptance))
    if not acceptance[worst] >= _LEAST_ACCEPTANCE:
        raise ValueError(
            f"the chains do not move: mean acceptance {acceptance[worst]:.2g} at "
            f"step_size={step_size[worst]:.3g}; take a smaller initial_step_size, or a "
            "longer pilot to adapt it"
        )


def _path(
    generative: Generative, recognition: Recognition | None, params: Params, x: Array
) -> annealing.Path:
    """From the prior, whose ratio to the joint is the likelihood, or from q(z | x)."""
    if recognition is None:
        return annealing.Path(
            lambda key: generative.sample_prior(key, params),
            lambda z: generative.log_prior(params, z),
            lambda z: log_likelihood(generative, params, x, z),
        )
    h = recognition.encode(params, x)

    def log_ratio(z: Array) -> Scalar:
        log_q = recognition.log_prob(params, h, z)
        return log_joint(generative, params, x, z) - log_q

    return annealing.Path(
        lambda key: recognition.sample(key, params, h),
        lambda z: recognition.log_prob(params, h, z),
        log_ratio,
    )
