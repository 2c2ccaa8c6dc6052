"""Chains that walk between a base density and a posterior, with frozen step sizes.

Temperatures, kernels, the pilot run that tunes them, and the walks up and down;
`annealed` makes estimates of log p(x) of them.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.evaluation import weights
from vae_jax.inference import hmc
from vae_jax.types import PRNGKey, Scalar

Kernel: TypeAlias = Callable[
    [PRNGKey, hmc.LogDensity, Array, Scalar], tuple[Array, Scalar]
]
"""(key, log_density, z, step_size) -> z, acceptance; reversible at any step size."""

_GAIN, _DECAY, _LEAST_GAIN = 2.0, 0.6, 0.05


class AnnealedEvidence(NamedTuple):
    """An estimate of log p(x) by annealing C chains, with its diagnostics.

    Attributes:
        log_p: forward log mean w, reverse -log mean 1 / w; nats.
        mean_log_weight: mean log w, nats: further out than log_p on its side.
        standard_error: of log_p, nats, by the delta method over the chains; inf: one.
        effective_sample_size: of the weights that were averaged, between 1 and C.
        pareto_k: as in `weights`: not measured below 25 chains.
        acceptance: mean acceptance probability over chains and temperatures.
        step_size: at the posterior's end.
    """

    log_p: Scalar
    mean_log_weight: Scalar
    standard_error: Scalar
    effective_sample_size: Scalar
    pareto_k: Scalar
    acceptance: Scalar
    step_size: Scalar


class Path(NamedTuple):
    """The way between base and posterior for one x.

    Attributes:
        sample_base: key -> z.
        log_base: log b(z), of the density that `sample_base` draws from.
        log_ratio: log p(x, z) - log b(z).
    """

    sample_base: Callable[[PRNGKey], Array]
    log_base: hmc.LogDensity
    log_ratio: hmc.LogDensity


class Trace(NamedTuple):
    r"""What C chains have gathered at each temperature of a walk.

    Row t has the chains at z_t. Walked up, the weights w_t make them draws of
    $f_{\beta_t}$, and E[w_t] is its integral, that of the base being one. Walked down
    from a draw of $f_{\beta_T}$, so do the weights 1 / w_t, whose mean is the ratio of
    its integral to that of $f_{\beta_T}$.

    Attributes:
        log_w: nats.
        log_ratio: of the path, at z_t.
        acceptance: mean acceptance probability of the walk.
    """

    log_w: Float[Array, "T+1 C"]
    log_ratio: Float[Array, "T+1 C"]
    acceptance: Scalar


class Chains(NamedTuple):
    """What C chains do on a path, with kernels frozen after a pilot run.

    Attributes:
        step_sizes: key, path -> the pilot's step size at each temperature.
        forward: key, path, step sizes -> the evidence, from below.
        reverse: key, path, step sizes, z of the posterior -> the evidence, from above.
        trace: key, path, step sizes -> what `forward` has gathered on the way.
        reverse_trace: key, path, step sizes, z of the posterior -> likewise `reverse`.
    """

    step_sizes: Callable[[PRNGKey, Path], Float[Array, " T+1"]]
    forward: Callable[[PRNGKey, Path, Array], AnnealedEvidence]
    reverse: Callable[[PRNGKey, Path, Array, Array], AnnealedEvidence]
    trace: Callable[[PRNGKey, Path, Array], Trace]
    reverse_trace: Callable[[PRNGKey, Path, Array, Array], Trace]


def linear(num_temperatures: int) -> Float[np.ndarray, " T+1"]:
    """beta_t = t / T for t = 0, ..., T.

    Raises:
        ValueError: if num_temperatures is below one.
    """
    numerics.check_positive(num_temperatures=num_temperatures)
    return np.linspace(0.0, 1.0, num_temperatures + 1)


def sigmoid(
    num_temperatures: int, *, sharpness: float = 4.0
) -> Float[np.ndarray, " T+1"]:
    r"""Temperatures that are dense at both ends, where densities change fastest.

    $\beta_t = (s_t - s_0) / (s_T - s_0)$ with $s_t = \sigma(\delta (2t/T - 1))$: Grosse
    et al. 2015 (arXiv:1511.02543), whose $\delta$ is 4.

    Raises:
        ValueError: if num_temperatures is below one or sharpness is not positive.
    """
    numerics.check_positive(num_temperatures=num_temperatures)
    numerics.check_in("(0, inf)", sharpness=sharpness)
    s = np.tanh(0.5 * sharpness * np.linspace(-1.0, 1.0, num_temperatures + 1))
    return (s - s[0]) / (s[-1] - s[0])


def hmc_kernel(*, num_leapfrog: int = 10, jitter: float = 0.5) -> Kernel:
    """Hamiltonian Monte Carlo with the step size drawn around the one given.

    A trajectory of about a whole period brings z back to where it was: hence a wide
    jitter.

    Args:
        num_leapfrog: leapfrog steps of a trajectory.
        jitter: relative half width of the step sizes, as in `hmc.jittered`.

    Raises:
        ValueError: if num_leapfrog is below one or jitter does not lie in [0, 1).
    """
    numerics.check_positive(num_leapfrog=num_leapfrog)
    numerics.check_in("[0, 1)", jitter=jitter)

    def step(
        key: PRNGKey, log_density: hmc.LogDensity, z: Array, step_size: Scalar
    ) -> tuple[Array, Scalar]:
        key_size, key_move = jax.random.split(key)
        size = hmc.jittered(key_size, step_size, jitter=jitter)
        z, info = hmc.transition(key_move, log_density, z, size, num_leapfrog)
        return z, info.acceptance

    return step


def gibbs_kernel(*, num_updates: int) -> Kernel:
    """Redraws bits of a binary z one by one, each from its own conditional.

    The bits are chosen at random, which makes the kernel reversible where a sweep in
    fixed order is not. It has no step size to adapt: take it with num_pilot=0.

    Args:
        num_updates: bits redrawn in a transition; D of them are a sweep's work.

    Raises:
        ValueError: if num_updates is below one.
    """
    numerics.check_positive(num_updates=num_updates)

    def step(
        key: PRNGKey, log_density: hmc.LogDensity, z: Array, step_size: Scalar
    ) -> tuple[Array, Scalar]:
        key_bit, key_draw = jax.random.split(key)
        bits = jax.random.randint(key_bit, (num_updates,), 0, z.shape[0])
        thresholds = jax.random.logistic(key_draw, (num_updates,), z.dtype)

        def redraw(
            carry: tuple[Array, Scalar], draw: tuple[Array, Array]
        ) -> tuple[tuple[Array, Scalar], None]:
            (z, log_p), (i, threshold) = carry, draw
            flipped = z.at[i].set(1.0 - z[i])
            log_flipped = log_density(flipped)
            flips = log_flipped - log_p > threshold
            carry = jnp.where(flips, flipped, z), jnp.where(flips, log_flipped, log_p)
            return carry, None

        (z, _), _ = numerics.scan(redraw, (z, log_density(z)), (bits, thresholds))
        return z, jnp.ones_like(step_size)

    return step


def chains(
    *,
    temperatures: Float[np.ndarray, " T+1"],
    num_chains: int,
    kernel: Kernel | None = None,
    num_pilot: int = 200,
    target_acceptance: float = 0.65,
    initial_step_size: float = 0.1,
) -> Chains:
    """How chains are annealed: what the estimates of `annealed` share.

    A pilot run of C chains of its own adapts the step size of each temperature to the
    target acceptance; it is then frozen. Adapting in the run would make the transitions
    depend on the past of the chains, and its results no bounds.

    Args:
        temperatures: beta_0 = 0 < ... < beta_T = 1, such as `linear` or `sigmoid`.
        num_chains: C, of each x.
        kernel: the transition; `hmc_kernel()` where none is given, for real z.
        num_pilot: transitions of the pilot, after as many at the base; 0 keeps
            initial_step_size at every temperature.
        target_acceptance: mean acceptance probability that the pilot adapts to.
        initial_step_size: of its first transition.

    Raises:
        ValueError: if temperatures do not rise from 0 to 1 or another number is out of
            range.
    """
    betas = np.asarray(temperatures, np.float64)
    rises = betas.ndim == 1 and len(betas) > 1 and (np.diff(betas) > 0.0).all()
    if not rises or betas[0] != 0.0 or betas[-1] != 1.0:
        raise ValueError("temperatures must rise from 0 to 1, with no two equal")
    numerics.check_positive(num_chains=num_chains)
    numerics.check_not_negative(num_pilot=num_pilot)
    hmc.check_step_size(target_acceptance, initial_step_size, 0.0)
    move = hmc_kernel() if kernel is None else kernel
    num_temperatures = len(betas) - 1

    def advance(
        key: PRNGKey, path: Path, z: Array, beta: Scalar, step_size: Scalar
    ) -> tuple[Array, Scalar]:
        """A transition of every chain at one temperature, and its mean acceptance."""

        def log_density(z: Array) -> Scalar:
            return path.log_base(z) + numerics.times_log(beta, path.log_ratio(z))

        keys = jax.random.split(key, num_chains)
        z, acceptance = jax.vmap(lambda k, z: move(k, log_density, z, step_size))(
            keys, z
        )
        return z, acceptance.mean()

    def base(key: PRNGKey, path: Path) -> Float[Array, "C D"]:
        return jax.vmap(path.sample_base)(jax.random.split(key, num_chains))

    def step_sizes(key: PRNGKey, path: Path) -> Float[Array, " T+1"]:
        key_base, key_run = jax.random.split(key)
        z = base(key_base, path)
        log_size = jnp.log(jnp.asarray(initial_step_size, z.dtype))
        if not num_pilot:
            return jnp.full((num_temperatures + 1,), jnp.exp(log_size))
        visited = np.linspace(0, num_temperatures, num_pilot).round().astype(int)
        stops = np.concatenate([np.zeros(num_pilot, int), visited])

        def adapt(
            carry: tuple[Array, Scalar], stop: tuple[Array, Array]
        ) -> tuple[tuple[Array, Scalar], Scalar]:
            (z, log_size), (t, beta) = carry, stop
            key_t = jax.random.fold_in(key_run, t)
            z, acceptance = advance(key_t, path, z, beta, jnp.exp(log_size))
            gain = _GAIN * (1.0 + t.astype(z.dtype)) ** -_DECAY
            log_size = hmc.adapted(
                log_size,
                acceptance,
                target=target_acceptance,
                gain=jnp.maximum(gain, _LEAST_GAIN),
            )
            return (z, log_size), log_size

        run = jnp.arange(len(stops)), jnp.asarray(betas[stops], z.dtype)
        _, log_sizes = numerics.scan(adapt, (z, log_size), run)
        # Each temperature takes the size of the last visit at or below it.
        last = np.searchsorted(visited, np.arange(num_temperatures + 1), "right") - 1
        return jnp.exp(log_sizes[num_pilot + last])

    def walk(
        key: PRNGKey, path: Path, sizes: Array, z: Array, *, backwards: bool
    ) -> Trace:
        weigh = jax.vmap(path.log_ratio)

        def step(
            carry: tuple[Array, Array], stop: tuple[Array, Array, Array, Array]
        ) -> tuple[tuple[Array, Array], tuple[Array, Array, Scalar]]:
            (z, log_w), (t, rise, beta, size) = carry, stop
            log_ratio = weigh(z)
            key_t = jax.random.fold_in(key, t)
            moved, acceptance = advance(key_t, path, z, beta, size)
            return (moved, log_w + rise * log_ratio), (log_w, log_ratio, acceptance)

        # Backwards, the kernel of a temperature follows the rise above it, so that
        # both walks give a sequence of z the same log w.
        after = slice(None, -1) if backwards else slice(1, None)
        stops = (
            jnp.arange(num_temperatures),
            jnp.asarray(np.diff(betas), z.dtype),
            jnp.asarray(betas[after], z.dtype),
            sizes[after],
        )
        start = z, jnp.zeros((num_chains,), z.dtype)
        with jax.default_matmul_precision("highest"):
            (z, log_w), (*before, acceptance) = numerics.scan(
                step, start, stops, reverse=backwards
            )
            end = log_w[None], weigh(z)[None]
        log_w, log_ratio = (
            jnp.concatenate([last, rows] if backwards else [rows, last])
            for rows, last in zip(before, end, strict=True)
        )
        return Trace(log_w, log_ratio, acceptance.mean())

    def trace(key: PRNGKey, path: Path, sizes: Array) -> Trace:
        key_base, key_walk = jax.random.split(key)
        z = base(key_base, path)
        return walk(key_walk, path, sizes, z, backwards=False)

    def forward(key: PRNGKey, path: Path, sizes: Array) -> AnnealedEvidence:
        whole = trace(key, path, sizes)
        return _summary(whole.log_w[-1], whole.acceptance, sizes[-1])

    def reverse_trace(key: PRNGKey, path: Path, sizes: Array, z: Array) -> Trace:
        z = jnp.broadcast_to(z, (num_chains, *z.shape))
        return walk(key, path, sizes, z, backwards=True)

    def reverse(key: PRNGKey, path: Path, sizes: Array, z: Array) -> AnnealedEvidence:
        whole = reverse_trace(key, path, sizes, z)
        above = _summary(-whole.log_w[0], whole.acceptance, sizes[-1])
        return above._replace(
            log_p=-above.log_p, mean_log_weight=-above.mean_log_weight
        )

    return Chains(step_sizes, forward, reverse, trace, reverse_trace)


def _summary(
    log_w: Float[Array, " C"], acceptance: Scalar, step_size: Scalar
) -> AnnealedEvidence:
    log_p, error, size, shape = weights.of_all(log_w)
    return AnnealedEvidence(
        log_p, log_w.mean(), error, size, shape, acceptance, step_size
    )
