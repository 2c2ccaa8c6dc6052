"""The exemplar prior: a mixture of normals around the codes of training rows.

Norouzi, Fleet & Norouzi 2020 (arXiv:2004.04795). The exemplars are data and no
parameters: the models here close over them, so that no gradient, decay or checkpoint
holds them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vae_jax import likelihoods, numerics, reparameterize, vae
from vae_jax.types import Family, Model, Params, PRNGKey, PyTree, Scalar

FAMILY = Family("exemplar")


class ExemplarModel(NamedTuple):
    """A model whose prior is made of exemplars, in the three forms that are needed.

    Attributes:
        model: with the prior of all exemplars, as new x are evaluated.
        without: row of the data set -> the model whose prior leaves that row out, as
            its own bound is trained; the model of all for a row that is no exemplar.
        fixed: `with_fixed_exemplars`, which needs the exemplars no more.
        fix: params of `model` -> those of `fixed`, of the same p(x, z) and q(z | x).
    """

    model: Model
    without: Callable[[Int[Array, ""]], Model]
    fixed: Model
    fix: Callable[[Params], Params]


def with_exemplar_prior(
    model: Model, x: Float[Array, "M *X"], index: Int[Array, " M"]
) -> ExemplarModel:
    r"""The model with a mixture of normals around the exemplars' codes as its prior.

    Norouzi et al. 2020 (arXiv:2004.04795): $p(z) = \frac1M\sum_m N(z; \mu_\phi(x_m),
    \sigma^2 I)$, with $\mu_\phi(x)$ the mean of q(z | x) and one learned $\sigma$,
    which starts at 1. With its own row among them an example would be its own best
    explanation, so in training that one is left out: the objective of a batch is

        per_row(lambda key, params, x, i: sgvb_a(m.without(i), ...)(key, params, x))

    The gradient reaches the encoder through the exemplars too. The means do not depend
    on x or z: under `vmap` over examples or samples the M encodings are made once.
    `params.generative["prior"]` holds `log_std` [].

    Args:
        model: any model of real z whose q has its mean in closed form; its prior is not
            used.
        x: the exemplars, as the encoder reads them.
        index: their rows in the data set, as `Batch.index` names them.

    Raises:
        ValueError: for fewer than two exemplars, another number of rows, or a q without
            closed moments.
    """
    if len(x) < 2 or index.shape != (len(x),):
        raise ValueError(
            "an exemplar prior needs two exemplars or more and the row of each, got x "
            f"of shape {x.shape} and index of {index.shape}"
        )
    recognition, moments = model.recognition, model.recognition.moments
    if moments is None:
        raise ValueError(
            "an exemplar prior needs the mean of q(z | x), and "
            f"{recognition.family.name} has none in closed form"
        )

    def means(params: Params) -> Float[Array, "M D"]:
        def mean(x: Array) -> Array:
            return moments(params, recognition.encode(params, x))[0]

        return jax.vmap(mean)(x)

    def init(key: PRNGKey) -> PyTree:
        del key
        return {"log_std": jnp.zeros(())}

    def fix(params: Params) -> Params:
        prior = params.generative["prior"] | {"mean": means(params)}
        return params._replace(generative=params.generative | {"prior": prior})

    def of(included: Bool[Array, " M"]) -> Model:
        mixture = _mixture(means, included)
        p = vae.with_prior(model.generative, init=init, family=FAMILY, **mixture)
        return vae.model(p, recognition)

    return ExemplarModel(
        of(jnp.ones(index.shape, bool)),
        lambda row: of(index != row),
        with_fixed_exemplars(model, num_exemplars=len(x)),
        fix,
    )


def with_fixed_exemplars(model: Model, *, num_exemplars: int) -> Model:
    """The same prior where the exemplars' codes are parameters, and no data are needed.

    `params.generative["prior"]` holds `mean` [M, D] beside `log_std` []. For a model
    that is trained and carried elsewhere: the means follow phi no more.

    Args:
        model: any model of real z; its prior is not used.
        num_exemplars: M.

    Raises:
        ValueError: if num_exemplars is below one.
    """
    numerics.check_positive(num_exemplars=num_exemplars)

    def init(key: PRNGKey) -> PyTree:
        # A prior may read phi.
        shape = model.generative.latents(jax.eval_shape(model.init, key)).shape
        return {
            "log_std": jnp.zeros(()),
            "mean": jnp.zeros((num_exemplars, *shape)),
        }

    def means(params: Params) -> Float[Array, "M D"]:
        return params.generative["prior"]["mean"]

    mixture = _mixture(means, jnp.ones(num_exemplars, bool))
    p = vae.with_prior(model.generative, init=init, family=FAMILY, **mixture)
    return vae.model(p, model.recognition)


def _mixture(
    means: Callable[[Params], Float[Array, "M D"]], included: Bool[Array, " M"]
) -> dict[str, Callable]:
    """`sample` and `log_prob` of the equal mixture of those N(mean, std^2 I)."""

    def sample(key: PRNGKey, params: Params) -> Float[Array, " D"]:
        key_component, key_noise = jax.random.split(key)
        logits = jnp.where(included, 0.0, -jnp.inf)
        mean = means(params)[jax.random.categorical(key_component, logits)]
        log_std = jnp.broadcast_to(params.generative["prior"]["log_std"], mean.shape)
        return reparameterize.location_scale(key_noise, mean, log_std)

    def log_prob(params: Params, z: Float[Array, " D"]) -> Scalar:
        log_std = jnp.broadcast_to(params.generative["prior"]["log_std"], z.shape)
        each = jax.vmap(likelihoods.normal_terms, in_axes=(0, None, None))
        log_p = each(means(params), log_std, z).sum(1)
        total = jax.nn.logsumexp(jnp.where(included, log_p, -jnp.inf))
        return total - jnp.log(included.sum().astype(log_p.dtype))

    return {"sample": sample, "log_prob": log_prob}
