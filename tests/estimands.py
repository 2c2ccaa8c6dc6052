"""Estimands: what estimators are unbiased for, exactly.

Each is a function of a problem of `problems`, and is (params, x) -> nats.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from tests import problems, testing
from vae_jax import divergences, numerics, vae
from vae_jax.types import log_joint, log_likelihood


def elbo(problem):
    return problem.elbo


@functools.cache
def iwae(num_samples):
    def of(problem):
        if isinstance(problem, problems.BinaryModel):
            return problems.k_sample_bound_of_table(problem, num_samples=num_samples)
        return problems.k_sample_bound(problem, num_samples=num_samples)

    return of


def renyi(num_samples, alpha):
    return lambda problem: problems.k_sample_bound(
        problem, num_samples=num_samples, power=1.0 - alpha
    )


def combination(*terms):
    """Bounds with their factors, added up."""
    return lambda problem: (
        lambda params, x: sum(
            factor * bound(problem)(params, x) for factor, bound in terms
        )
    )


def density_held_fixed(num_samples):
    """L_K whose phi moves the samples alone: what a path gradient is unbiased for."""

    def of(problem):
        def log_prob(params, h, z):
            return problem.recognition.log_prob(*stop_gradient((params, h)), z)

        fixed = problem.recognition._replace(log_prob=log_prob)
        return iwae(num_samples)(problem._replace(recognition=fixed))

    return of


def observed(bound):
    """That bound of the observed entries alone, NaN marking the others."""

    def of(problem):
        masked = vae.masked(problem.model)
        return bound(
            problem._replace(
                generative=masked.generative, recognition=masked.recognition
            )
        )

    return of


def less(penalty):
    """E[log p(x | z)] less a penalty of the KL of each latent."""

    def of(problem):
        def surrogate(params, x):
            mean, log_std = jnp.split(problem.recognition.encode(params, x), 2)
            kl = 0.5 * (mean**2 + jnp.exp(2 * log_std) - 1 - 2 * log_std)
            return problem.reconstruction(params, x) - penalty(kl)

        return surrogate

    return of


def theta_apart_from_q(bound):
    """That bound of a table, of which theta moves p alone."""

    def of(problem):
        def table(params, x):
            fixed = params._replace(generative=stop_gradient(params.generative))
            z, q, _ = problem.table(fixed, x)
            return z, q, problem.table(params, x)[2]

        return bound(problem._replace(table=table))

    return of


def thermodynamic(num_samples, betas):
    """The sum of means under normalized powers of S weights, over all sets of S bits.

    With its covariance gradient, which is not that of its value.
    """

    def of(problem):
        def surrogate(params, x):
            _, q, p = problem.table(params, x)
            rows = np.indices((q.size,) * num_samples).reshape(num_samples, -1).T
            log_q, log_p = jnp.log(q)[rows], jnp.log(p)[rows]
            value, slope = 0.0, 0.0
            for beta, end in zip(betas, (*betas[1:], 1.0), strict=True):
                f = log_p - log_q
                weights = jax.nn.softmax(beta * stop_gradient(f), axis=1)
                mean = (weights * f).sum(1)
                log_pi = (1.0 - beta) * log_q + beta * log_p
                gap = stop_gradient(f - mean[:, None])
                covariance = (weights * gap * log_pi).sum(1)
                if beta == 0.0:
                    covariance *= num_samples / (num_samples - 1)
                value += (end - beta) * mean
                slope += (end - beta) * (mean + covariance)
            chances = stop_gradient(q[rows].prod(1))
            return chances @ numerics.attach_gradient(stop_gradient(value), slope)

        return surrogate

    return of


def elbo_and_baseline(network, *, offset, scale):
    """The ELBO over scale, and half the squared error of a learned baseline."""

    def of(problem):
        def surrogate(params, x):
            elbo = problem.elbo(params, x)
            baseline = network.apply(params.recognition["baseline"], x)[0] + offset
            return elbo / scale - 0.5 * (stop_gradient(elbo) - baseline) ** 2

        return surrogate

    return of


def uha(problem):
    """The bound of one chain: E of a quadratic of normals that move affinely.

    Means and covariances of position and momentum together, step by step.
    """
    std = 0.8  # of p(x | z)

    def surrogate(params, x):
        layer, path = params.generative["decoder"]["output"], params.recognition["path"]
        w, residual = layer["kernel"].T, x - layer["bias"]
        mean, log_std = jnp.split(problem.recognition.encode(params, x), 2)
        size, one = mean.size, jnp.eye(mean.size)
        zero, precision = jnp.zeros_like(one), jnp.diag(jnp.exp(-2.0 * log_std))
        center = jnp.concatenate([mean, jnp.zeros(size)])
        spread = jnp.block([[jnp.diag(jnp.exp(2.0 * log_std)), zero], [zero, one]])
        eta, total = jax.nn.sigmoid(path["logit_eta"]), 0.0

        def square_of_momentum():
            return (center[size:] ** 2).sum() + jnp.trace(spread[size:, size:])

        betas = jnp.cumsum(jax.nn.softmax(path["logits"]))
        for beta, step in zip(betas, jnp.exp(path["log_step_size"]), strict=True):
            refresh = jnp.block([[one, zero], [zero, eta * one]])
            noise = jnp.block([[zero, zero], [zero, (1.0 - eta**2) * one]])
            center, spread = refresh @ center, refresh @ spread @ refresh.T + noise
            total += 0.5 * square_of_momentum()
            curvature = (1.0 - beta) * precision + beta * (one + w.T @ w / std**2)
            pull = (1.0 - beta) * precision @ mean + beta * w.T @ residual / std**2
            drift = jnp.block([[one, 0.5 * step * one], [zero, one]])
            kick = jnp.block([[one, zero], [-step * curvature, one]])
            center = kick @ drift @ center
            center = drift @ (center + jnp.append(jnp.zeros(size), step * pull))
            move = drift @ kick @ drift
            spread = move @ spread @ move.T
            total -= 0.5 * square_of_momentum()
        z, cov = center[:size], spread[:size, :size]
        gap = residual - w @ z
        error = (gap @ gap + jnp.trace(w @ cov @ w.T)) / std**2
        log_2pi = jnp.log(2.0 * jnp.pi)
        log_p = -0.5 * (error + x.size * (log_2pi + 2.0 * jnp.log(std)))
        log_p -= 0.5 * (z @ z + jnp.trace(cov) + size * log_2pi)
        log_q = -0.5 * size * (log_2pi + 1.0) - log_std.sum()
        return total + log_p - log_q

    return surrogate


def sumo(*, baseline, scale):
    """Minus half the mean square of SUMO's distance: one sample and one or two terms.

    By a sum over three samples of the table of one latent.
    """

    def of(problem):
        def surrogate(params, x):
            eps = jnp.linspace(-7.0, 7.0, 71)
            h = problem.recognition.encode(params, x)
            fixed = params._replace(generative=stop_gradient(params.generative))

            def log_weight(eps):
                z = h[:1] + jnp.exp(h[1:]) * eps
                log_p = log_joint(problem.generative, fixed, x, z)
                return log_p - problem.recognition.log_prob(fixed, h, z)

            log_w, chances = jax.vmap(log_weight)(eps), jax.nn.softmax(-0.5 * eps**2)
            of_two = jnp.logaddexp(log_w[:, None], log_w[None])
            of_three = jnp.logaddexp(of_two[..., None], log_w[None, None])
            shorter = (of_two - jnp.log(2.0))[..., None]
            longer = 2.0 * (of_three - jnp.log(3.0)) - shorter
            squares = 0.5 * (shorter - baseline) ** 2 + 0.5 * (longer - baseline) ** 2
            return -0.5 / scale * (chances @ (chances @ (squares @ chances)))

        return surrogate

    return of


def elbo_and_control(network, *, step=0.4):
    """The ELBO, and minus half the mean square of RELAX's gradient of one bit's logit.

    By the trapezoidal rule over the logistic noise of both relaxations of either bit.
    The latter is a function of the control variate alone.
    """
    grid = np.arange(-36.0, 36.1, step)
    density = step * 0.25 / np.cosh(0.5 * grid) ** 2

    def of(problem):
        def surrogate(params, x):
            fixed = stop_gradient(params)
            learned = params.recognition["control"]
            logit = problem.recognition.encode(fixed, x)[0]
            at_bits, q, _ = problem.table(fixed, x)

            def f(bit):
                z = jnp.atleast_1d(bit)
                log_q = z[0] * logit - jnp.log1p(jnp.exp(logit))
                return log_joint(problem.generative, fixed, x, z) - log_q

            def control(z):
                soft = 1.0 / (1.0 + jnp.exp(-z / jnp.exp(learned["log_temperature"])))
                seen = jnp.append(x, z)
                beside = network.apply(learned["network"], seen)[0]
                return learned["strength"] * f(soft) + beside

            total = 0.0
            for bit, chance in zip(at_bits[:, 0], q, strict=True):
                sign = 2.0 * bit - 1.0
                inner = grid + jnp.log1p(jnp.exp(sign * logit))
                z = sign * jnp.log1p(jnp.exp(inner))  # of the logistic with this sign
                moves = jax.nn.sigmoid(inner) * jax.nn.sigmoid(sign * logit)
                c, slope = jax.vmap(jax.value_and_grad(control))(z)
                by_again = (f(bit) - c) * (bit - jax.nn.sigmoid(logit)) - slope * moves
                g = slope[:, None] + by_again[None]
                total += chance * (density @ g**2 @ density)
            return problem.elbo(params, x) - 0.5 * total

        return surrogate

    return of


@functools.cache
def wake(num_samples):
    """E[sum_k w~_k log q(z_k | x)], the weights and the samples held fixed."""

    def of(problem):
        binary = isinstance(problem, problems.BinaryModel)
        table = _table_of_bits if binary else _table_of_normal

        def surrogate(params, x):
            log_q, log_p, chances = table(problem, params, x)
            fixed = stop_gradient(log_p - log_q)
            log_w = numerics.attach_gradient(fixed, log_q)
            return testing.expected_log_mean_exp(
                log_w, stop_gradient(chances), num_samples=num_samples
            )

        return surrogate

    return of


def _table_of_bits(problem, params, x):
    """log q(z | x), log p(x, z) and q(z | x) of every z."""
    _, q, p = problem.table(params, x)
    return jnp.log(q), jnp.log(p), q


def _table_of_normal(problem, params, x):
    """The same at nodes over the noise of q of one latent, which stand still."""
    eps = jnp.linspace(-9.0, 9.0, 361)
    mean, log_std = stop_gradient(problem.recognition.encode(params, x))
    z = (mean + jnp.exp(log_std) * eps)[:, None]
    h = problem.recognition.encode(params, x)
    log_q = jax.vmap(lambda z: problem.recognition.log_prob(params, h, z))(z)
    log_p = jax.vmap(lambda z: log_joint(problem.generative, params, x, z))(z)
    return log_q, log_p, jax.nn.softmax(-0.5 * eps**2)


def straight_through(problem):
    """sum_z q(z) log p(x | z), where z moves as E_q[z] does and q(z) stands still."""

    def surrogate(params, x):
        h = problem.recognition.encode(params, x)
        z, q, _ = problem.table(params, x)
        mean = jnp.broadcast_to(jax.nn.sigmoid(h), z.shape)
        terms = jax.vmap(lambda z: log_likelihood(problem.generative, params, x, z))(
            numerics.attach_gradient(z, mean)
        )
        return stop_gradient(q) @ terms - binary_kl(params, h)

    return surrogate


def binary_concrete(temperature, *, step=0.4):
    """Two relaxed bits, by the trapezoidal rule over their logistic noise."""
    grid = np.arange(-36.0, 36.1, step)
    noise = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    density = np.prod(0.25 / np.cosh(0.5 * noise) ** 2, axis=1)

    def relax(h, noise):
        return jax.nn.sigmoid((h + noise) / temperature)

    return _relaxed(noise, step**2 * density, relax, binary_kl)


def gumbel_softmax(temperature, *, step=0.4):
    """One relaxed choice of three: Gumbel noise less the third's is two numbers."""
    grid = np.arange(-36.0, 36.1, step)
    noise = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    powers = np.exp(-noise)
    density = 2.0 * powers.prod(1) / (1.0 + powers.sum(1)) ** 3

    def relax(h, noise):
        noisy = h + jnp.append(noise, 0.0)
        return jax.nn.softmax(noisy / temperature)[None]

    return _relaxed(noise, step**2 * density, relax, class_kl)


def _relaxed(noise, weights, relax, kl):
    def of(problem):
        def surrogate(params, x):
            h = problem.recognition.encode(params, x)

            def term(noise):
                return log_likelihood(problem.generative, params, x, relax(h, noise))

            terms = jax.vmap(term)(jnp.asarray(noise, h.dtype))
            return jnp.asarray(weights) @ terms - kl(params, h)

        return surrogate

    return of


def binary_kl(params, h):
    return divergences.bernoulli_to_bernoulli(h, params.generative["prior"]["logits"])


def class_kl(params, h):
    logits = params.generative["prior"]["logits"]
    return divergences.categorical_to_categorical(h.reshape(logits.shape), logits)
