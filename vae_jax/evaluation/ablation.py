r"""What the layers of a hierarchy are worth: some of its latents drawn from the prior.

Groups R of the latents (whole layers, or the single variates of which q says least) are
drawn from p in the place of q, from the top down, all others from q as before:

$$r(z|x) = \prod_{g\in R} p(z_g|z_{>g}) \prod_{g\notin R} q(z_g|z_{>g}, x).$$

r is a density of z for each x, so its bound L(r) is one on log p(x), and so is its
K-sample bound, which rises to log p(x) for any R: what is lost is lost by few draws.
q and r differ in the conditionals of R alone, so $KL(q||r) = \sum_{g\in R} E_q[KL_g]$,
where KL_g is that of group g, given those above. By the variational formula of Donsker
& Varadhan 1975, with log p(x | z) in it,

$$\log E_r[p(x|z)] \ge E_q[\log p(x|z)] - \sum_{g\in R} E_q[KL_g]: \qquad (1)$$

with the mean over r inside the logarithm, the reconstruction loses at most the KL of
what is replaced. **The bound itself has no such limit.** It loses

$$L(q) - L(r) = KL(r||p(z|x)) - KL(q||p(z|x)),$$

at the exact posterior of one layer the divergence of the prior from the posterior,
which the KL of the layer, that of the posterior from the prior, does not bound: for
normals it is greater wherever the posterior is narrower than the prior. The loss may be
negative where q is worse than p, and is zero where every KL_g of R is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vae_jax import numerics
from vae_jax.types import Hierarchy, Model, Params, PRNGKey, Scalar, log_likelihood


class Ablated(NamedTuple):
    """What one example is worth under r, in nats.

    Attributes:
        bound: L(r), where groups that p draws have no KL.
        reconstruction: E_r[log p(x | z)].
        log_mean_likelihood: log of the mean of p(x | z) over the draws: from below, by
            much where log K is less than the KL of what is replaced.
        kl: of each group from p, given those above as r draws them.
    """

    bound: Scalar
    reconstruction: Scalar
    log_mean_likelihood: Scalar
    kl: Float[Array, " G"]


Evaluate: TypeAlias = Callable[[PRNGKey, Params, Array, Bool[Array, " G"]], Ablated]
"""(key, params, x, which groups q draws) -> the means over the draws of r."""


def ablated(model: Model, *, num_samples: int) -> Evaluate:
    """(key, params, x, from_q) -> the bound where q draws from_q and p the rest.

    Estimates by num_samples draws of r, unbiased but for the log of a mean. With one
    key, two sets of groups have the noise of their draws in common.

    Args:
        model: a ladder.
        num_samples: K.

    Raises:
        ValueError: for a model without a hierarchy, or if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)
    hierarchy = _hierarchy(model)

    def evaluate(
        key: PRNGKey, params: Params, x: Array, from_q: Bool[Array, " G"]
    ) -> Ablated:
        h = model.recognition.encode(params, x)

        def draw(key: PRNGKey) -> tuple[Scalar, Float[Array, " G"]]:
            z, kl = hierarchy.mix(key, params, h, from_q)
            return log_likelihood(model.generative, params, x, z), kl

        terms, kls = numerics.over_samples(key, draw, num_samples=num_samples)
        reconstruction, kl = terms.mean(), kls.mean(axis=0)
        return Ablated(
            reconstruction - jnp.where(from_q, kl, 0.0).sum(),
            reconstruction,
            numerics.log_mean_exp(terms),
            kl,
        )

    return evaluate


def kl_of_groups(
    model: Model, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array], Float[Array, " G"]]:
    """(key, params, x) -> E_q[KL_g] of each group, in nats; x is not decoded.

    Estimates by num_samples draws of q, unbiased: KL_g itself has a closed form, given
    the groups above, which are drawn.

    Args:
        model: a ladder.
        num_samples: draws of q.

    Raises:
        ValueError: for a model without a hierarchy, or if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)
    hierarchy = _hierarchy(model)

    def estimate(key: PRNGKey, params: Params, x: Array) -> Float[Array, " G"]:
        h = model.recognition.encode(params, x)
        from_q = jnp.ones(sum(hierarchy.groups(params, h)), bool)

        def draw(key: PRNGKey) -> Float[Array, " G"]:
            return hierarchy.mix(key, params, h, from_q)[1]

        return numerics.over_samples(key, draw, num_samples=num_samples).mean(axis=0)

    return estimate


def group_counts(
    model: Model, params: Params, x: Array | jax.ShapeDtypeStruct
) -> tuple[int, ...]:
    """How many groups of latents each layer has, from z_1 up; from shapes alone.

    Raises:
        ValueError: for a model without a hierarchy.
    """
    h = jax.eval_shape(model.recognition.encode, params, x)
    return _hierarchy(model).groups(params, h)


def without_layers(counts: Sequence[int]) -> Bool[np.ndarray, "M G"]:
    """Which groups q draws: all, then all but those of z_1, of z_2, ..., z_L.

    Args:
        counts: of groups, as `group_counts` has them.
    """
    layer = np.repeat(np.arange(len(counts)), counts)
    return np.stack([layer != i for i in range(-1, len(counts))])


def pruned(kl: Float[np.ndarray, " G"], *, num_points: int) -> Bool[np.ndarray, "M G"]:
    """Which groups q draws along the pruning curve: from all of them to none.

    Those of the least KL go first; as many more at every point, so far as they divide,
    and one point for each group where there are no more than that.

    Args:
        kl: of each group, averaged over data.
        num_points: of the curve, both ends included.

    Raises:
        ValueError: for fewer than two points.
    """
    numerics.check_at_least(2, num_points=num_points)
    places = np.argsort(np.argsort(kl, kind="stable"))
    size = min(num_points, len(kl) + 1)
    gone = np.linspace(0, len(kl), size).round().astype(int)
    return places[None] >= gone[:, None]


def active(
    kl: Float[np.ndarray, " G"],
    counts: Sequence[int],
    sizes: Sequence[int],
    *,
    threshold: float = 0.01,
) -> tuple[int | None, ...]:
    """How many latents of each layer have a KL above that, in nats.

    None of a layer whose latents have no KL of their own, as below a prior that does
    not factorize: its groups are not latents.

    The variance over data of E_q[z_l | x], which `representation.active_units` takes,
    says less of a layer below others: it follows them through its prior, where q adds
    nothing.

    Args:
        kl: of each group, averaged over data.
        counts: of groups, as `group_counts` has them.
        sizes: of the layers, as `Model.layer_sizes` has them.
        threshold: in nats.
    """
    parts = np.split(np.asarray(kl), np.cumsum(counts)[:-1])
    return tuple(
        int((part > threshold).sum()) if len(part) == size else None
        for part, size in zip(parts, sizes, strict=True)
    )


def of_maps(
    model: Model, kl: Float[np.ndarray, " G"]
) -> tuple[Float[np.ndarray, " C"] | None, ...]:
    """The KL of each map of a layer, summed over its pixels; None of a vector.

    Args:
        model: a ladder.
        kl: of each group, averaged over data.

    Raises:
        ValueError: for a model without a hierarchy.
    """
    hierarchy = _hierarchy(model)
    parts = np.split(np.asarray(kl), np.cumsum(model.lower))
    below = zip(parts, hierarchy.shapes, strict=False)
    return (
        *(
            part.reshape(shape).sum((0, 1)) if len(shape) == 3 else None
            for part, shape in below
        ),
        None,
    )


def _hierarchy(model: Model) -> Hierarchy:
    if model.hierarchy is None:
        raise ValueError(
            "layers are those of a ladder, and this model has one layer: build it by "
            "`ladder.model`"
        )
    return model.hierarchy
