"""Annealing from q to the posterior without acceptance, as a bound that trains."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import bounds, numerics, vae
from vae_jax.types import (
    ExampleObjective,
    Model,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    log_joint,
)

PATH = "path"  # where phi holds the temperatures, step sizes and the damping


def uha(
    model: Model, *, num_samples: int, learns_path: bool = True
) -> ExampleObjective:
    r"""A bound on log p(x) whose samples move from q toward the posterior.

    Uncorrected Hamiltonian annealing, Geffner & Domke 2021 (arXiv:2107.04150), and
    differentiable annealed importance sampling, Zhang et al. 2021 (arXiv:2107.10211):
    from $z_0\sim q(z|x)$ and $m_0\sim N(0, I)$, at each of T temperatures $0 < \beta_1
    < \dots < \beta_T = 1$ the momentum is refreshed in part, $m'_t = \eta m_{t-1} +
    \sqrt{1 - \eta^2}\,\xi$, and one step of `leapfrog` on $q(z|x)^{1-\beta_t} p(x,
    z)^{\beta_t}$ leads from $(z_{t-1}, m'_t)$ to $(z_t, m_t)$. With

    $\log w = \log p(x, z_T) - \log q(z_0|x) + \sum_t \log\frac{N(m_t)}{N(m'_t)}$

    w has p(x) as its mean, so that log w is a lower bound, in expectation, at any step
    sizes; with steps of no length it is the ELBO. K chains count as K samples of L_K
    do. Temperatures, step sizes and eta are `params.recognition["path"]` (`with_path`
    puts them there).

    Value: one draw of that bound. Gradient: unbiased for it, theta, phi and the path
    alike, through every step: two derivatives of log p(x, z) at each. Evaluators know q
    alone and not where its samples move to.

    Args:
        model: the joint p(x, z) of real z and q, reparameterized, with a path.
        num_samples: K, chains.
        learns_path: whether the path has a gradient; else it stays as it starts.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)
    generative, recognition = model.generative, model.recognition

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        path = params.recognition[PATH]
        if not learns_path:
            path = stop_gradient(path)
        betas = jnp.cumsum(jax.nn.softmax(path["logits"]))
        sizes = jnp.exp(path["log_step_size"])
        eta = jax.nn.sigmoid(path["logit_eta"])
        # 1 - eta^2 as a product: as a difference it is 0, of no slope, near eta = 1.
        rest = jnp.sqrt(jax.nn.sigmoid(-path["logit_eta"]) * (1.0 + eta))

        def log_bridge(z: Array, beta: Scalar) -> Scalar:
            log_q = recognition.log_prob(params, h, z)
            return (1.0 - beta) * log_q + beta * log_joint(generative, params, x, z)

        def one(key: PRNGKey) -> Scalar:
            key_z, key_start, key_steps = jax.random.split(key, 3)
            z, log_q = recognition.sample_and_log_prob(key_z, params, h)
            momentum = jax.random.normal(key_start, z.shape, z.dtype)

            def step(
                carry: tuple[Array, Array], row: tuple[Array, Scalar, Scalar]
            ) -> tuple[tuple[Array, Array], Scalar]:
                (z, momentum), (t, beta, size) = carry, row
                noise = jax.random.normal(
                    jax.random.fold_in(key_steps, t), z.shape, z.dtype
                )
                fresh = eta * momentum + rest * noise
                z, momentum = leapfrog(
                    lambda z: jax.grad(log_bridge)(z, beta), z, fresh, size
                )
                return (z, momentum), 0.5 * (fresh**2 - momentum**2).sum()

            steps = jnp.arange(len(sizes)), betas, sizes
            (z, _), ratios = numerics.scan(step, (z, momentum), steps)
            return log_joint(generative, params, x, z) - log_q + ratios.sum()

        return bounds.iwae(numerics.over_samples(key, one, num_samples=num_samples))

    return objective


def leapfrog(
    slope: Callable[[Array], Array],
    z: Float[Array, " D"],
    momentum: Float[Array, " D"],
    step_size: Scalar,
) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """One step of unit mass: half of z's, all of the momentum's, half of z's.

    It keeps volumes, and from its end with the momentum turned around leads back.

    Args:
        slope: z -> the gradient of the log density in z.
        z: where the step begins.
        momentum: likewise.
        step_size: epsilon.
    """
    z = z + 0.5 * step_size * momentum
    momentum = momentum + step_size * slope(z)
    return z + 0.5 * step_size * momentum, momentum


def with_path(
    model: Model, *, num_temperatures: int, step_size: float = 0.1, eta: float = 0.5
) -> Model:
    """The model whose q also keeps a path: temperatures, step sizes and eta.

    Args:
        model: the joint p(x, z) and q.
        num_temperatures: T, evenly spaced at the start.
        step_size: of each step at the start.
        eta: what the momentum keeps at each refreshment, at the start.

    Raises:
        ValueError: if num_temperatures is below one, step_size is not positive or eta
            does not lie inside (0, 1).
    """
    numerics.check_positive(num_temperatures=num_temperatures)
    log_step_size = numerics.log_of("step_size", step_size)
    numerics.check_in("(0, 1)", eta=eta)

    def init(key: PRNGKey) -> PyTree:
        del key
        return {
            "logits": jnp.zeros(num_temperatures),
            "log_step_size": jnp.full(num_temperatures, log_step_size),
            "logit_eta": jax.scipy.special.logit(jnp.asarray(eta)),
        }

    return vae.with_parameters(model, PATH, init)
