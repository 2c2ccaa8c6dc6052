r"""Completing a partial observation: draws of p(x_mis | x_obs), NaN marking the holes.

The conditional is $\int p(x_{mis}|z)\,p(z|x_{obs})\,dz$, as entries are independent
given z, and an encoder has learned q(z | x) of whole x. Three ways to draw: two chains
that fill the holes, encode, and fill them again, of which the first draws of the
conditional only where q is the posterior and the second whatever q is; and importance
sampling from the q of a partial x. All take the pair that `vae.masked` makes, as x has
holes. Where nothing is observed the conditional is the marginal, and all of them draw z
from the prior.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import numerics, vae
from vae_jax.evaluation import marginal, weights
from vae_jax.types import (
    Generative,
    Model,
    Params,
    PRNGKey,
    Recognition,
    Scalar,
    log_joint,
    log_weight,
)


class Completions(NamedTuple):
    """Draws of one method; observed entries are what they were in each of them.

    Attributes:
        x: multiple imputation: whole observations.
        z: what each was drawn from.
        mean: single imputation: averaged E[x_mis | z].
        acceptance: mean acceptance probability; one where nothing is refused.
        evidence: of log p(x_obs), by the same samples; None where they give none.
    """

    x: Float[Array, "S *X"]
    z: Float[Array, "S D"]
    mean: Float[Array, "*X"]
    acceptance: Scalar
    evidence: weights.LogEvidence | None = None


Complete: TypeAlias = Callable[[PRNGKey, Params, Array], Completions]
"""(key, params, x) -> draws of the holes of x."""


class _State(NamedTuple):
    """Where a chain stands.

    Attributes:
        x: without holes.
        z: the latents.
    """

    x: Float[Array, "*X"]
    z: Float[Array, " D"]


_Move: TypeAlias = Callable[[PRNGKey, Params, _State], tuple[Array, Scalar]]
# key, params, state -> z, acceptance probability
_Transition: TypeAlias = Callable[
    [PRNGKey, Params, Array, _State], tuple[_State, Scalar]
]


def pseudo_gibbs(
    model: Model,
    *,
    num_draws: int,
    num_warmup: int,
    thin: int = 1,
) -> Complete:
    r"""z ~ q(z | x_obs, x_mis), then x_mis ~ p(x_mis | z), again and again.

    Rezende et al. 2014 (arXiv:1401.4082) appendix F. Where q(z | x) is the posterior
    this is a Gibbs sampler of p(x_mis, z | x_obs). Where it is not, the chain converges
    to something else, which no number of steps mends: use `metropolis_within_gibbs`.

    The chain starts at z ~ q(z | x_obs); draws of successive steps are correlated.

    Args:
        model: of x with holes, by `vae.masked`.
        num_draws: S, draws that are kept.
        num_warmup: steps before the first.
        thin: steps from one draw to the next.

    Raises:
        ValueError: if num_draws or thin is below one or num_warmup is negative; when
            traced, if q's z has not the shape of the model's.
    """
    _check_steps(num_draws=num_draws, thin=thin, num_warmup=num_warmup)
    generative = model.generative
    step = _transition(generative, _encoded(model.recognition))
    start = _start(model)

    def complete(key: PRNGKey, params: Params, x: Array) -> Completions:
        key_start, key_warmup, key_draws = jax.random.split(key, 3)
        state = start(key_start, params, x)
        state, _ = _run(key_warmup, step, params, x, state, num_warmup)
        draws = _draws(key_draws, step, params, x, state, num_draws, thin)
        return _completions(generative, params, x, *draws)

    return complete


def metropolis_within_gibbs(
    model: Model,
    *,
    num_draws: int,
    num_warmup: int,
    num_burn_in: int = 0,
    thin: int = 1,
) -> Complete:
    r"""`pseudo_gibbs` whose z is a proposal, so that it draws of the conditional.

    Mattei & Frellsen 2018 (arXiv:1802.04826) algorithm 1: z' ~ q(z | x) is accepted
    with probability $\min(1, \frac{p(x, z')\,q(z|x)}{p(x, z)\,q(z'|x)})$, x with the
    holes as they are filled now, and else z stays; then x_mis ~ p(x_mis | z). It leaves
    p(x_mis, z | x_obs) invariant for any q that is nowhere zero, and accepts all where
    q is the posterior.

    As they advise, pseudo-Gibbs steps come first: from a poor start the first ratio
    may be such that nothing is ever accepted after.

    Args:
        model: of x with holes, by `vae.masked`.
        num_draws: S, draws that are kept.
        num_warmup: pseudo-Gibbs steps at the start.
        num_burn_in: steps of this chain before the first draw.
        thin: steps from one draw to the next.

    Raises:
        ValueError: if num_draws or thin is below one or num_warmup or num_burn_in is
            negative; when traced, if q's z has not the shape of the model's.
    """
    _check_steps(
        num_draws=num_draws, thin=thin, num_warmup=num_warmup, num_burn_in=num_burn_in
    )
    generative = model.generative
    rough = _transition(generative, _encoded(model.recognition))
    step = _transition(generative, _accepted(model))
    start = _start(model)

    def complete(key: PRNGKey, params: Params, x: Array) -> Completions:
        key_start, key_warmup, key_burn, key_draws = jax.random.split(key, 4)
        state = start(key_start, params, x)
        state, _ = _run(key_warmup, rough, params, x, state, num_warmup)
        state, _ = _run(key_burn, step, params, x, state, num_burn_in)
        draws = _draws(key_draws, step, params, x, state, num_draws, thin)
        return _completions(generative, params, x, *draws)

    return complete


def importance(
    model: Model,
    *,
    num_samples: int,
    num_draws: int,
    chunk_size: int = 500,
) -> Complete:
    r"""Completions by weighted samples of q(z | x_obs).

    Mattei & Frellsen 2019 (arXiv:1812.02633) section 3: with $w_k = p(x_{obs}|z_k)
    p(z_k) / q(z_k|x_{obs})$, self-normalized to $\tilde w$, the single imputation is
    $\sum_k\tilde w_k E[x_{mis}|z_k]$ and the multiple one draws z_k with odds w_k, with
    replacement, then x_mis given z_k (sampling importance resampling, Rubin 1987). Both
    are right as K grows, biased for K given: see the evidence's diagnostics, of which a
    few effective samples or a pareto_k above 0.7 say that few z carry all completions.
    An encoder that was trained on whole x has both where half of x is missing, as it
    takes the holes for what fills them: one trained by `missing_data.importance_bound`,
    or `mcem.fitted_normal` of the masked joint, is a proposal made for holes.

    Args:
        model: of x with holes, by `vae.masked` or with any q that takes NaN in x.
        num_samples: K, a multiple of the chunk size or smaller than it.
        num_draws: S.
        chunk_size: samples decoded at a time.

    Raises:
        ValueError: if a number is below one or K is no multiple of the chunk size; when
            traced, if q's z has not the shape of the model's.
    """
    numerics.check_positive(num_draws=num_draws)
    chunk = marginal.chunk_of(num_samples, chunk_size)
    generative = model.generative

    def samples(key: PRNGKey, params: Params, x: Array) -> tuple[Array, Array, Array]:
        """z [K, D], log w [K], and the weighted mean of E[x | z]."""
        nothing = jnp.isnan(x).all()
        h = model.recognition.encode(params, x)

        def one(key: PRNGKey) -> tuple[Array, Scalar, Array]:
            key_q, key_prior = jax.random.split(key)
            proposal = model.draw(key_q, params, x, h)
            z = jnp.where(
                nothing, generative.sample_prior(key_prior, params), proposal.z
            )
            mean = generative.mean_observation(params, z)
            return z, jnp.where(nothing, 0.0, log_weight(proposal)), mean

        def add(carry: tuple, i: Array) -> tuple[tuple, tuple[Array, Array]]:
            top, total, mean = carry
            keys = jax.random.split(jax.random.fold_in(key, i), chunk)
            z, log_w, means = jax.vmap(one)(keys)
            new_top = jnp.maximum(top, log_w.max())
            shrink, share = jnp.exp(top - new_top), jnp.exp(log_w - new_top)
            mean = shrink * mean + jnp.tensordot(share, means, 1)
            return (new_top, shrink * total + share.sum(), mean), (z, log_w)

        # The least finite number and not minus infinity: inf - inf is no number.
        zero = jnp.zeros((), x.dtype)
        least = jnp.full((), jnp.finfo(x.dtype).min, x.dtype)
        carry = least, zero, jnp.zeros_like(x)
        chunks = jnp.arange(num_samples // chunk)
        (_, total, mean), (z, log_w) = numerics.scan(add, carry, chunks)
        flat = z.reshape(num_samples, *z.shape[2:])
        return flat, log_w.reshape(-1), mean / total

    def complete(key: PRNGKey, params: Params, x: Array) -> Completions:
        key_samples, key_choice, key_x = jax.random.split(key, 3)
        vae.check_latents(model, params, x)
        z, log_w, mean = samples(key_samples, params, x)
        # By the inverse of their cumulative odds: `categorical` would draw S K numbers.
        odds = jax.nn.softmax(log_w)
        z = z[jax.random.choice(key_choice, num_samples, (num_draws,), p=odds)]
        sample = jax.vmap(generative.sample_observation, in_axes=(0, None, 0))
        x_sampled = sample(jax.random.split(key_x, num_draws), params, z)
        filled = jnp.where(jnp.isnan(x)[None], x_sampled, x[None])
        mean = jnp.where(jnp.isnan(x), mean, x)
        evidence = weights.of_all(log_w)
        return Completions(filled, z, mean, jnp.ones((), x.dtype), evidence)

    return complete


def log_likelihood_of_truth(
    generative: Generative,
) -> Callable[[Params, Array, Array, Array], Scalar]:
    r"""(params, x, truth, z [S, D]) -> log mean_s p(x_mis = truth | z_s), in nats.

    The density that a method's draws of z give to the true entries. For draws of
    p(z | x_obs) it is an estimate of $\log p(x_{mis}|x_{obs})$ that is too low in
    expectation (Jensen), the less so the more draws; for those of another density it is
    the score of that density's completions. Zero where x has no holes.
    """

    def score(params: Params, x: Array, truth: Array, z: Array) -> Scalar:
        terms = jax.vmap(generative.log_likelihood_terms, in_axes=(None, None, 0))
        hidden = jnp.isnan(x)[None]
        of_holes = jnp.where(hidden, terms(params, truth, z), 0.0)
        return numerics.log_mean_exp(of_holes.reshape(z.shape[0], -1).sum(1))

    return score


class LogLikelihood(NamedTuple):
    """log p(x_mis | x_obs) over N images in nats, and what speaks against it; host.

    Attributes:
        log_p_x: mean log p(x).
        log_p_observed: mean log p(x_obs).
        log_p_missing_given_observed: their difference.
        sampling_error: of that, by the standard errors of the estimates.
        standard_error: of that, as a mean over images of their kind; NaN of one image.
        smallest_effective_sample_size: of all estimates.
        largest_pareto_k: of those that were measured; None where none was.
        doubts: `weights.doubts`, each with the density that it is about.
    """

    log_p_x: float
    log_p_observed: float
    log_p_missing_given_observed: float
    sampling_error: float
    standard_error: float
    smallest_effective_sample_size: float
    largest_pareto_k: float | None
    doubts: list[str]


def log_likelihood(
    whole: weights.LogEvidence, observed: weights.LogEvidence
) -> LogLikelihood:
    """log p(x) - log p(x_obs), of independent estimates [N] of both, image by image."""
    pair = jax.tree.map(lambda *leaf: np.asarray(leaf, np.float64), whole, observed)
    difference = pair.log_p[0] - pair.log_p[1]  # pair's leaves are [2, N]
    num, shapes = len(difference), pair.pareto_k[np.isfinite(pair.pareto_k)]
    spread = difference.std(ddof=1) if num > 1 else np.nan
    return LogLikelihood(
        log_p_x=float(pair.log_p[0].mean()),
        log_p_observed=float(pair.log_p[1].mean()),
        log_p_missing_given_observed=float(difference.mean()),
        sampling_error=float(np.linalg.norm(pair.standard_error) / num),
        standard_error=float(spread / np.sqrt(num)),
        smallest_effective_sample_size=float(pair.effective_sample_size.min()),
        largest_pareto_k=float(shapes.max()) if shapes.size else None,
        doubts=[
            f"{density}: {doubt}"
            for density, e in (("log p(x)", whole), ("log p(x_obs)", observed))
            for doubt in weights.doubts(e)
        ],
    )


def _encoded(recognition: Recognition) -> _Move:
    """z ~ q(z | x), whatever it was."""

    def move(key: PRNGKey, params: Params, state: _State) -> tuple[Array, Scalar]:
        h = recognition.encode(params, state.x)
        z = recognition.sample(key, params, h)
        return z, jnp.ones((), state.x.dtype)

    return move


def _accepted(model: Model) -> _Move:
    """z ~ q(z | x), or what it was: a Metropolis-Hastings step on p(z | x)."""
    generative, recognition = model.generative, model.recognition

    def move(key: PRNGKey, params: Params, state: _State) -> tuple[Array, Scalar]:
        key_z, key_choice = jax.random.split(key)
        h = recognition.encode(params, state.x)

        def at(z: Array) -> Scalar:
            log_q = recognition.log_prob(params, h, z)
            return log_joint(generative, params, state.x, z) - log_q

        with jax.default_matmul_precision("highest"):
            proposed = recognition.sample(key_z, params, h)
            # In one call: two batched triangular solves that XLA runs side by side can
            # wait for each other for ever on a CPU (JAX 0.10.2).
            log_weights = jax.vmap(at)(jnp.stack([proposed, state.z]))
        log_ratio = log_weights[0] - log_weights[1]
        # A ratio that is no number accepts nothing.
        probability = jnp.where(
            jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0))
        )
        chance = jax.random.uniform(key_choice, (), state.x.dtype)
        return jnp.where(chance < probability, proposed, state.z), probability

    return move


def _transition(generative: Generative, move: _Move) -> _Transition:
    """A move of z, then x_mis ~ p(x_mis | z); z ~ p(z) where nothing is observed."""

    def step(
        key: PRNGKey, params: Params, x: Array, state: _State
    ) -> tuple[_State, Scalar]:
        key_z, key_prior, key_x = jax.random.split(key, 3)
        z, acceptance = move(key_z, params, state)
        nothing = jnp.isnan(x).all()
        z = jnp.where(nothing, generative.sample_prior(key_prior, params), z)
        x_sampled = generative.sample_observation(key_x, params, z)
        filled = jnp.where(jnp.isnan(x), x_sampled, x)
        return _State(filled, z), jnp.where(nothing, 1.0, acceptance)

    return step


def _start(model: Model) -> Callable[[PRNGKey, Params, Array], _State]:
    """(key, params, x) -> z ~ q(z | x_obs), and the holes filled from it."""
    generative = model.generative
    step = _transition(generative, _encoded(model.recognition))

    def start(key: PRNGKey, params: Params, x: Array) -> _State:
        vae.check_latents(model, params, x)
        like = generative.latents(params)
        nowhere = jnp.zeros(like.shape, like.dtype)
        return step(key, params, x, _State(x, nowhere))[0]

    return start


def _run(
    key: PRNGKey,
    step: _Transition,
    params: Params,
    x: Array,
    state: _State,
    num_steps: int,
) -> tuple[_State, Array]:
    """The state after so many steps, and their acceptance probabilities."""

    def one(state: _State, t: Array) -> tuple[_State, Scalar]:
        return step(jax.random.fold_in(key, t), params, x, state)

    return numerics.scan(one, state, jnp.arange(num_steps))


def _draws(
    key: PRNGKey,
    step: _Transition,
    params: Params,
    x: Array,
    state: _State,
    num_draws: int,
    thin: int,
) -> tuple[_State, Array]:
    """States [S], `thin` steps apart, and acceptance probabilities [S, thin]."""

    def one(state: _State, s: Array) -> tuple[_State, tuple[_State, Array]]:
        key_s = jax.random.fold_in(key, s)
        state, acceptance = _run(key_s, step, params, x, state, thin)
        return state, (state, acceptance)

    return numerics.scan(one, state, jnp.arange(num_draws))[1]


def _completions(
    generative: Generative, params: Params, x: Array, draws: _State, acceptance: Array
) -> Completions:
    means = jax.vmap(generative.mean_observation, in_axes=(None, 0))(params, draws.z)
    mean = jnp.where(jnp.isnan(x), means.mean(0), x)
    return Completions(draws.x, draws.z, mean, acceptance.mean())


def _check_steps(*, num_draws: int, thin: int, **before: int) -> None:
    numerics.check_positive(num_draws=num_draws, thin=thin)
    numerics.check_not_negative(**before)
