"""The normal at the posterior's mode: where quadrature should put its nodes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import numerics, posteriors, vae
from vae_jax.types import Generative, Params, Recognition, Scalar, log_joint

HALVINGS = 12  # of a Newton step, before it is given up


def posterior(
    generative: Generative,
    *,
    num_latents: int,
    start: Callable[[Params, Array], Array] | None = None,
    num_steps: int = 20,
) -> Recognition:
    r"""Laplace's approximation of p(z | x), as a q(z | x) without parameters.

    The normal with the mode $\hat z$ of log p(x, z) as its mean and $\Lambda^{-1}$,
    $\Lambda = -\nabla^2_z \log p(x, \hat z)$, as its covariance (MacKay 2003,
    Information theory, inference, and learning algorithms, chapter 27); h is that of
    `posteriors.full_normal`. It is the posterior where that is normal, and not where it
    has several modes: it finds one.

    The mode is sought by Newton steps with the absolute values of the eigenvalues of
    Lambda, so that each step goes uphill; the best of its halvings is taken, or none,
    so log p(x, z) never falls. Where the steps end short of a mode the covariance has
    absolute eigenvalues too. Cost for each x: num_steps Hessians and factorizations, of
    D x D. No gradient is defined.

    Args:
        generative: the joint p(x, z), twice differentiable in z [D].
        num_latents: D.
        start: (params, x) -> where to begin, such as an encoder's mean; at zero, the
            mean of a standard normal prior, where none is given.
        num_steps: of Newton's method.

    Raises:
        ValueError: if num_latents or num_steps is below one.
    """
    density = posteriors.full_normal(num_latents)
    numerics.check_positive(num_steps=num_steps)
    sizes = 0.5 ** np.arange(HALVINGS)

    def encode(params: Params, x: Array) -> Array:
        def height(z: Array) -> Scalar:
            return log_joint(generative, params, x, z)

        def curvature(z: Array) -> tuple[Array, Array]:
            """Eigenvalues of Lambda, made positive, and its eigenvectors."""
            values, vectors = jnp.linalg.eigh(-jax.hessian(height)(z))
            values = jnp.abs(values)
            least = jnp.finfo(z.dtype).eps * values.max()
            return jnp.maximum(values, jnp.maximum(least, _tiny(z))), vectors

        def climb(z: Array, _: None) -> tuple[Array, None]:
            values, vectors = curvature(z)
            step = vectors @ ((vectors.T @ jax.grad(height)(z)) / values)
            moves = jnp.asarray(sizes, z.dtype)[:, None] * step[None]
            tried = jnp.concatenate([z[None] + moves, z[None]])
            heights = jax.vmap(height)(tried)
            heights = jnp.where(jnp.isnan(heights), -jnp.inf, heights)
            return tried[jnp.argmax(heights)], None

        begin = jnp.zeros((num_latents,), x.dtype)
        if start is not None:
            begin = start(params, x)
        mode = numerics.scan(climb, begin, None, length=num_steps)[0]
        values, vectors = curvature(mode)
        # Sigma = R^T R for the triangle R of the rows of its square root: no square of
        # the condition number, as Sigma itself would have.
        triangle = jnp.linalg.qr((vectors / jnp.sqrt(values)[None]).T, mode="r")
        scale_tril = triangle.T * jnp.sign(jnp.diagonal(triangle))[None]
        return posteriors.packed(mode, scale_tril)

    return vae.recognition(encode, density)


def _tiny(z: Array) -> Float[Array, ""]:
    return jnp.asarray(jnp.finfo(z.dtype).tiny, z.dtype)
