"""Mixtures of normals fitted to rows by EM, until log p(x) rises no more."""

from typing import Any

from jaxtyping import Array

from vae_jax.latent_models import gmm
from vae_jax.training import loop
from vae_jax.types import Params, PRNGKey


def fitted(
    key: PRNGKey,
    x: Array,
    *,
    tolerance: float,
    min_variance: float,
    max_steps: int = 500,
    **settings: Any,
) -> Params:
    """The best of several starts of EM, each until log p(x) changes by less.

    Args:
        key: of the starts.
        x: rows [N, D].
        tolerance: nats of a row's mean.
        min_variance: of EM and of its starts.
        max_steps: of a start.
        settings: further arguments of `gmm.fit`.
    """
    run = loop.until_converged(
        gmm.em(min_variance=min_variance),
        value=lambda info: info.log_p,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    fit = gmm.fit(key, x, run=run, min_variance=min_variance, **settings)
    return fit.state.params
