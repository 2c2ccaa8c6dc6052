r"""The rate-distortion curve of a fixed decoder, by annealing (Huang et al. 2020).

arXiv:2008.06653. For a decoder, its prior p(z) and a distortion d(x, z), the q of least
$R + \beta D$, $R = \mathrm{KL}(q || p)$ and $D = E_q[d]$, is $q_\beta(z) \propto p(z)
e^{-\beta d(x, z)}$, and with its normalizer $Z_\beta$,

$$D = -\frac{d \log Z_\beta}{d\beta}, \qquad R = -\log Z_\beta - \beta D.$$

Chains that are annealed from the prior (`annealing`) pass every beta on their way, and
their weights estimate log Z, from below, and D. No encoder has a part in it: the curve
says what decoder and prior can do, and an encoder's own (R, D) lies above it.

With $d = -\log p(x | z)$, the default, $R(1) + D(1) = -\log p(x)$; the slope dR/dD is
-beta, the curve of one x is convex, and so is that of means over x at equal beta, which
is the curve of all of them together.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vae_jax import numerics
from vae_jax.estimators import sgvb
from vae_jax.evaluation import annealing
from vae_jax.types import Generative, Model, Params, PRNGKey, Scalar, log_likelihood

Distortion: TypeAlias = Callable[[Params, Array, Array], Scalar]
"""(params, x, z) -> d(x, z); a rate is in nats whatever its unit."""


class Curve(NamedTuple):
    """Estimates at B values of beta, of one x or stacked on many.

    Standard errors are over the chains, by the delta method; infinite of one.

    Attributes:
        rate: R, nats.
        distortion: D, in the unit of the distortion.
        log_z: log Z, nats.
        rate_standard_error: of R.
        distortion_standard_error: of D.
        effective_sample_size: of the chains' weights.
        acceptance: mean acceptance probability of the walk.
        step_size: at its largest beta.
    """

    rate: Float[Array, " B"]
    distortion: Float[Array, " B"]
    log_z: Float[Array, " B"]
    rate_standard_error: Float[Array, " B"]
    distortion_standard_error: Float[Array, " B"]
    effective_sample_size: Float[Array, " B"]
    acceptance: Scalar
    step_size: Scalar


class Point(NamedTuple):
    """Rate and distortion of one q, of one x or stacked on many.

    Attributes:
        rate: KL(q || p(z)), nats.
        distortion: E_q[d], in the unit of the distortion.
    """

    rate: Scalar
    distortion: Scalar


class Sides(NamedTuple):
    """The curve of an x that was simulated, walked from both of its ends.

    Attributes:
        x: the observation, drawn from the model.
        forward: from the prior to the largest beta; log Z from below.
        reverse: from the z that x was drawn with, beta = 1, to the prior, at the betas
            up to 1; log Z at 1 from above.
    """

    x: Array
    forward: Curve
    reverse: Curve


class Schedule(NamedTuple):
    """Inverse temperatures of a walk.

    Attributes:
        temperatures: from 0 to the largest beta.
        places: of the betas among them.
    """

    temperatures: Float[np.ndarray, " T+1"]
    places: Int[np.ndarray, " B"]


def negative_log_likelihood(generative: Generative) -> Distortion:
    """d(x, z) = -log p(x | z), nats."""

    def distortion(params: Params, x: Array, z: Array) -> Scalar:
        return -log_likelihood(generative, params, x, z)

    return distortion


def squared_error(generative: Generative) -> Distortion:
    """d(x, z) = |x - E[x | z]|^2, summed over the entries."""

    def distortion(params: Params, x: Array, z: Array) -> Scalar:
        return jnp.sum((x - generative.mean_observation(params, z)) ** 2)

    return distortion


def encoder_point(
    model: Model, *, num_samples: int, distortion: Distortion | None = None
) -> Callable[[PRNGKey, Params, Array], Point]:
    """(key, params, x) -> what the encoder's own q costs and loses.

    With -log p(x | z), the default, minus their sum is the ELBO.

    Raises:
        ValueError: if num_samples is below one.
    """
    terms = sgvb.elbo_terms(model, num_samples=num_samples)
    recognition = model.recognition

    def of_terms(key: PRNGKey, params: Params, x: Array) -> Point:
        reconstruction, kl = terms(key, params, x)
        return Point(kl, -reconstruction)

    if distortion is None:
        return of_terms
    measure = distortion

    def estimate(key: PRNGKey, params: Params, x: Array) -> Point:
        key_terms, key_z = jax.random.split(key)
        h = recognition.encode(params, x)

        def of_draw(key: PRNGKey) -> Scalar:
            return measure(params, x, recognition.sample(key, params, h))

        draws = numerics.over_samples(key_z, of_draw, num_samples=num_samples)
        return Point(of_terms(key_terms, params, x).rate, draws.mean())

    return estimate


def schedule(betas: Sequence[float], *, num_temperatures: int) -> Schedule:
    """About num_temperatures steps in equal shares up to and between the betas.

    Even steps up to the first beta, even steps of the logarithm from there on.

    Raises:
        ValueError: if betas are not positive, finite and rising, or num_temperatures is
            below their number.
    """
    ends = np.asarray(betas, np.float64)
    rise = ends.ndim == 1 and len(ends) and (np.diff(ends, prepend=0.0) > 0.0).all()
    if not rise or not np.isfinite(ends).all():
        raise ValueError(f"betas must be positive, finite and rising, got {betas}")
    if num_temperatures < len(ends):
        raise ValueError(
            f"num_temperatures={num_temperatures} is below the number of betas, "
            f"{len(ends)}"
        )
    steps = np.diff(np.arange(len(ends) + 1) * num_temperatures // len(ends))
    pieces = [np.linspace(0.0, ends[0], steps[0] + 1)]
    for low, high, number in zip(ends, ends[1:], steps[1:], strict=False):
        pieces.append(np.append(np.geomspace(low, high, number + 1)[1:-1], high))
    return Schedule(np.concatenate(pieces), np.cumsum(steps))


def annealed_curve(
    generative: Generative,
    *,
    betas: Sequence[float],
    num_temperatures: int,
    num_chains: int,
    distortion: Distortion | None = None,
    kernel: annealing.Kernel | None = None,
    num_pilot: int = 200,
) -> Callable[[PRNGKey, Params, Array], Curve]:
    """(key, params, x) -> the curve at these betas.

    E[exp log Z-hat] = Z at every beta, so log Z-hat is a stochastic lower bound, and R
    too large by as much but for the error of D. Step sizes are adapted on chains of
    their own and frozen for these, as in `annealing.chains`.

    Args:
        generative: the joint p(x, z).
        betas: rising; of their largest the chains are to reach the density.
        num_temperatures: transitions of each chain.
        num_chains: of each x.
        distortion: `negative_log_likelihood` where none is given.
        kernel: the transition; as in `annealing.chains`.
        num_pilot: likewise.

    Raises:
        ValueError: as `schedule` and `annealing.chains`.
    """
    walk, measure = schedule(betas, num_temperatures=num_temperatures), distortion
    measure = negative_log_likelihood(generative) if measure is None else measure
    largest = walk.temperatures[-1]
    chains = annealing.chains(
        temperatures=walk.temperatures / largest,
        num_chains=num_chains,
        kernel=kernel,
        num_pilot=num_pilot,
    )

    def estimate(key: PRNGKey, params: Params, x: Array) -> Curve:
        path = _path(generative, measure, params, x, largest)
        key_pilot, key_run = jax.random.split(key)
        sizes = chains.step_sizes(key_pilot, path)
        return _forward(chains.trace(key_run, path, sizes), walk, betas, sizes)

    return estimate


def simulated_curves(
    generative: Generative,
    *,
    betas: Sequence[float],
    num_temperatures: int,
    num_chains: int,
    kernel: annealing.Kernel | None = None,
    num_pilot: int = 200,
) -> Callable[[PRNGKey, Params], Sides]:
    r"""(key, params) -> the curve of an x that the model drew, from both ends.

    Bidirectional Monte Carlo (Grosse et al. 2015, arXiv:1511.02543) along the curve,
    with the same kernels both ways and $d = -\log p(x | z)$: the z that x was drawn
    with is a draw of $q_1$. At beta = 1 the two log Z bound log p(x), and the reverse D
    is that of an exact draw. At smaller betas log Z and D from above are of weighted
    chains, bounds no more; where both ends agree, the walks are long enough. The
    reverse standard errors leave out what another z would have given.

    Args:
        generative: the joint p(x, z).
        betas: as in `annealed_curve`, 1 among them.
        num_temperatures: likewise.
        num_chains: likewise.
        kernel: likewise.
        num_pilot: likewise.

    Raises:
        ValueError: as `annealed_curve`; if 1 is none of the betas.
    """
    if 1.0 not in betas:
        raise ValueError(
            f"betas must hold 1, at which a simulated x has a known z, got {betas}"
        )
    walk = schedule(betas, num_temperatures=num_temperatures)
    largest = walk.temperatures[-1]
    chains = functools.partial(
        annealing.chains, num_chains=num_chains, kernel=kernel, num_pilot=num_pilot
    )
    up = chains(temperatures=walk.temperatures / largest)
    num_below = list(betas).index(1.0) + 1
    end = int(walk.places[num_below - 1])
    down = chains(temperatures=walk.temperatures[: end + 1])
    measure = negative_log_likelihood(generative)

    def estimate(key: PRNGKey, params: Params) -> Sides:
        key_z, key_x, key_pilot, key_up, key_down = jax.random.split(key, 5)
        z = generative.sample_prior(key_z, params)
        x = generative.sample_observation(key_x, params, z)
        path = _path(generative, measure, params, x, largest)
        sizes = up.step_sizes(key_pilot, path)
        forward = _forward(up.trace(key_up, path, sizes), walk, betas, sizes)
        path = _path(generative, measure, params, x, 1.0)
        trace = down.reverse_trace(key_down, path, sizes[: end + 1], z)
        at = walk.places[:num_below]
        reverse = _curve(
            -trace.log_w[at],
            -trace.log_ratio[at],
            betas[:num_below],
            trace.acceptance,
            sizes[end],
            base=-trace.log_w[0],
        )
        return Sides(x, forward, reverse)

    return estimate


def rate_at(
    distortion: float, betas: Sequence[float], log_z: Float[np.ndarray, " B"]
) -> float:
    r"""R at a distortion, from the curve's tangents: max over beta of -log Z - beta D.

    With exact log Z never above the curve, equal to it at the betas' own distortions.
    What an encoder's rate is more than that is its distance from the curve.

    Args:
        distortion: D; the encoder's, for the gap below its rate.
        betas: of the curve.
        log_z: the mean over the rows that D is of.
    """
    tangents = -np.asarray(log_z, np.float64) - np.asarray(betas) * distortion
    return float(max(tangents.max(), 0.0))  # at beta = 0 both terms are zero


def _path(
    generative: Generative,
    distortion: Distortion,
    params: Params,
    x: Array,
    largest: float,
) -> annealing.Path:
    """From the prior to q at the largest beta."""
    return annealing.Path(
        lambda key: generative.sample_prior(key, params),
        lambda z: generative.log_prior(params, z),
        lambda z: -largest * distortion(params, x, z),
    )


def _forward(
    trace: annealing.Trace, walk: Schedule, betas: Sequence[float], sizes: Array
) -> Curve:
    at = walk.places
    distortion = -trace.log_ratio[at] / walk.temperatures[-1]
    return _curve(trace.log_w[at], distortion, betas, trace.acceptance, sizes[-1])


def _curve(
    log_w: Float[Array, "B C"],
    distortion: Float[Array, "B C"],
    betas: Sequence[float],
    acceptance: Scalar,
    step_size: Scalar,
    *,
    base: Float[Array, " C"] | None = None,
) -> Curve:
    """The curve of weighted chains; base: log weights whose mean is Z's unit."""
    beta = jnp.asarray(betas, log_w.dtype)
    if base is None:
        base = jnp.zeros(log_w.shape[1:], log_w.dtype)
    log_z = jax.vmap(numerics.log_mean_exp)(log_w) - numerics.log_mean_exp(base)
    share = jax.nn.softmax(log_w, axis=1)
    mean = jnp.sum(share * distortion, axis=1)
    # What each chain moves the estimates by, to first order.
    of_distortion = share * (distortion - mean[:, None])
    of_log_z = share - jax.nn.softmax(base)[None]
    of_rate = -of_log_z - beta[:, None] * of_distortion

    def error(moves: Float[Array, "B C"]) -> Float[Array, " B"]:
        return jnp.sqrt(numerics.unbiased((moves**2).sum(1), moves.shape[1]))

    return Curve(
        rate=-log_z - beta * mean,
        distortion=mean,
        log_z=log_z,
        rate_standard_error=error(of_rate),
        distortion_standard_error=error(of_distortion),
        effective_sample_size=1.0 / jnp.sum(share**2, axis=1),
        acceptance=acceptance,
        step_size=step_size,
    )
