"""Samples whose z comes from a mixture fitted to the codes."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.command import cli
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax.latent_models import gmm
from vae_jax.training import loop
from vae_jax.types import Params, PRNGKey

Sampler: TypeAlias = Callable[[PRNGKey], Array]
"""key -> z"""

MIN_VARIANCE = 1e-4  # of the mixture's covariances, in the units of z
NUM_STARTS = 3


def of_mixture(
    key: PRNGKey, trained: trained_runs.Trained, *, num_components: int, num_rows: int
) -> Sampler:
    """z from a mixture of normals with full covariances, fitted by EM to codes.

    The codes are one draw of q(z | x) for each of the first num_rows training rows, so
    that the mixture stands for the aggregate posterior; means of q(z | x) would leave
    out its width. Fitting a density to the codes after training is that of Ghosh et al.
    2020 (arXiv:1903.12436).

    Raises:
        UsageError: for bits, which have no normal density, or fewer rows than
            components.
    """
    if not trained.has_real_latents:
        raise cli.UsageError(
            "--sampler=mixture fits normals to real-valued codes, and this model has "
            "bits: use --sampler=prior"
        )
    size = len(trained.data.prepared.train)
    num_rows = min(num_rows or size, size)
    if num_components > num_rows:
        raise cli.UsageError(
            f"--num_components={num_components} is more than the {num_rows} training "
            "rows that the mixture is fitted to"
        )
    key_codes, key_fit = jax.random.split(key)
    data = trained_runs.rows(trained, split="train", num_images=num_rows)
    codes = jnp.asarray(measure.codes(key_codes, trained, data, sampled=True))
    run = loop.until_converged(
        gmm.em(min_variance=MIN_VARIANCE),
        value=lambda info: info.log_p,
        tolerance=1e-4,
        max_steps=200,
    )
    fitted: Params = gmm.fit(
        key_fit,
        codes,
        num_components=num_components,
        run=run,
        num_starts=NUM_STARTS,
        min_variance=MIN_VARIANCE,
    ).state.params
    mixture = gmm.generative(num_components, codes.shape[1])

    def sample(key: PRNGKey) -> Array:
        key_component, key_z = jax.random.split(key)
        component = mixture.sample_prior(key_component, fitted)
        return mixture.sample_observation(key_z, fitted, component)

    return sample
