"""Where z comes from: the prior, its noise scaled, layer by layer, or a mixture."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.command import cli
from experiments.measures import measure, mixtures
from experiments.runs import trained_runs
from vae_jax.latent_models import gmm
from vae_jax.types import PRNGKey

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
        UsageError: for latents without a normal density, such as bits, or fewer rows
            than components.
    """
    if not trained.has_real_latents:
        raise cli.UsageError(
            "--sampler=mixture fits normals to codes that are any real vector, which "
            "this model does not have: use --sampler=prior"
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
    fitted = mixtures.fitted(
        key_fit,
        codes,
        tolerance=1e-4,
        max_steps=200,
        num_components=num_components,
        num_starts=NUM_STARTS,
        min_variance=MIN_VARIANCE,
    )
    mixture = gmm.generative(num_components, codes.shape[1])

    def sample(key: PRNGKey) -> Array:
        key_component, key_z = jax.random.split(key)
        component = mixture.sample_prior(key_component, fitted)
        return mixture.sample_observation(key_z, fitted, component)

    return sample


def tempered(trained: trained_runs.Trained, temperatures: tuple[float, ...]) -> Sampler:
    """z from the prior with the noise of each layer, from x upward, times a number.

    Raises:
        UsageError: for another number of them than `of_each_layer` takes, or a prior
            that is no map of noise.
    """
    each = of_each_layer(trained, temperatures)
    model, params = trained.model, trained.params

    def sample(key: PRNGKey) -> Array:
        if model.hierarchy is not None:
            nothing = jnp.zeros(trained.num_latents)  # as all layers are drawn
            return model.hierarchy.redraw(key, params, nothing, len(each), each)
        transport, z = model.generative.transport, model.generative.sample_prior
        if transport is None:
            raise ValueError(
                f"--temperature={each[0]:g} scales noise, and this prior is no map of "
                "noise"
            )
        eps = transport.inverse(params, z(key, params))
        return transport.forward(params, each[0] * eps)

    with cli.user_errors():
        jax.eval_shape(sample, jax.eval_shape(jax.random.key, 0))
    return sample


def of_each_layer(
    trained: trained_runs.Trained, temperatures: tuple[float, ...]
) -> tuple[float, ...]:
    """A temperature of each layer: 1 where there is none, one number for all.

    Raises:
        UsageError: for another number of them.
    """
    depth = len(trained.layer_sizes)
    if len(temperatures) not in (0, 1, depth):
        raise cli.UsageError(
            f"--temperature={','.join(map(str, temperatures))} must be one number, or "
            f"one for each of the {depth} layers of latents"
        )
    return (
        temperatures if len(temperatures) == depth else (*temperatures, 1.0)[:1] * depth
    )
