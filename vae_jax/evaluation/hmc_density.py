"""log p(x) from posterior draws and a density fitted to them, for few latents."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import posteriors
from vae_jax.evaluation import weights
from vae_jax.inference import hmc
from vae_jax.types import Generative, Params, PRNGKey, Scalar, log_joint


class ReciprocalEvidence(NamedTuple):
    """An estimate of log p(x) from posterior draws, with its diagnostics.

    Attributes:
        log_p: log p-hat, nats: in expectation above log p(x).
        standard_error: of log p-hat, nats, as though the draws were independent.
        effective_sample_size: (sum r)^2 / sum r^2, between 1 and L.
        pareto_k: shape of the tail of r, as in `weights.LogEvidence`.
        acceptance: mean acceptance probability of the 2 L transitions.
        step_size: as the warm-up left it.
    """

    log_p: Scalar
    standard_error: Scalar
    effective_sample_size: Scalar
    pareto_k: Scalar
    acceptance: Scalar
    step_size: Scalar


def hmc_density(
    generative: Generative,
    *,
    num_latents: int,
    num_samples: int,
    num_warmup: int,
    num_leapfrog: int = 4,
    num_starts: int = 200,
    target_acceptance: float = 0.9,
    initial_step_size: float = 0.1,
    shrinkage: float = 1e-3,
) -> Callable[[PRNGKey, Params, Array], ReciprocalEvidence]:
    r"""(key, params, x) -> log p-hat by AEVB (arXiv:1312.6114) appendix D.

    L draws of p(z|x) by Hamiltonian Monte Carlo, a normal q(z) with full covariance
    fitted to them, and L new draws of the chain, for
    $\hat p = \left(\frac1L\sum_l r_l\right)^{-1}$ with $r_l = q(z_l) / p(x, z_l)$.

    Given q and exact posterior draws, 1 / p-hat is unbiased for 1 / p(x), so by
    Jensen's inequality log p-hat lies in expectation above log p(x), where importance
    sampling lies below. It is no bound: the draws are exact only in the limit of a long
    chain, and a chain that visits a share s of the posterior's mass finds about
    log p(x) + log s.

    The chain starts at `hmc.start`, and its step size is adapted in the
    warm-up alone. Good below about five latents: past that the normal and the posterior
    part, and a few r_l carry the sum. The reciprocal weights have finite variance only
    where q's tails are no heavier than the square root of the posterior's. The standard
    error, sqrt(((mean r^2) / (mean r)^2 - 1) / (L - 1)), trusts the weights seen and
    takes the draws as independent: it is too small where the chain mixes slowly, and
    where q reaches beyond what the draws have visited (on a decoder of three latents
    and 784 pixels, at L = 50 and 500, it was half of the deviation from importance
    sampling). An effective sample size of a few is a sign, and so is a pareto_k above
    0.7; an acceptance near 0 says that the draws did not move, and then nothing here
    holds.

    Args:
        generative: the joint p(x, z), with z [D] of real numbers.
        num_latents: D.
        num_samples: L, above D; the chain draws 2 L.
        num_warmup: transitions before them, with adaptation; some hundreds.
        num_leapfrog: leapfrog steps in a transition.
        num_starts: draws of the prior among which `hmc.start` chooses.
        target_acceptance: as in `hmc.samples`.
        initial_step_size: as in `hmc.samples`.
        shrinkage: of q's correlations toward zero, in (0, 1).

    Raises:
        ValueError: as `hmc.normal_fit` and `hmc.samples`.
    """
    density = posteriors.full_normal(num_latents)
    fit = hmc.normal_fit(
        num_latents=num_latents, num_samples=num_samples, shrinkage=shrinkage
    )
    chain = hmc.samples(
        num_samples=2 * num_samples,
        num_warmup=num_warmup,
        num_leapfrog=num_leapfrog,
        target_acceptance=target_acceptance,
        initial_step_size=initial_step_size,
    )

    def estimate(key: PRNGKey, params: Params, x: Array) -> ReciprocalEvidence:
        key_start, key_chain = jax.random.split(key)

        def log_posterior(z: Array) -> Scalar:
            return log_joint(generative, params, x, z)

        start = hmc.start(key_start, generative, params, x, num_draws=num_starts)
        draws = chain(key_chain, log_posterior, start)
        fitted, new = jnp.split(draws.positions, 2)
        h = fit(fitted)

        def log_weight(z: Array) -> Scalar:
            return density.log_prob((), h, z) - log_posterior(z)

        with jax.default_matmul_precision("highest"):
            log_r = jax.vmap(log_weight)(new)
        mean = weights.of_all(log_r)
        return ReciprocalEvidence(
            -mean.log_p, *mean[1:], draws.acceptance, draws.step_size
        )

    return estimate
