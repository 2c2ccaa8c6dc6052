r"""Codebooks learned beside the bound that they are part of (`vector_quantized`)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics, vector_quantized
from vae_jax.types import (
    Batch,
    Model,
    Objective,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    each_example,
    log_weight,
)


class Uses(NamedTuple):
    """What an objective remembers of each row of the codebooks.

    Attributes:
        number: moving average of the vectors a batch that were quantized to it.
        row: their moving mean, which the row is.
    """

    number: Float[Array, "R K"]
    row: vector_quantized.Codebooks


def by_gradient(model: Model, *, commitment: float) -> Objective:
    r"""The ELBO of a point mass at the nearest rows, and the loss that moves the rows.

    $ELBO - \|sg(h) - e_{k(h)}\|^2 - \gamma \|h - sg(e_{k(h)})\|^2$ is what it climbs,
    sums over places, levels and entries as they stand: van den Oord et al. 2017
    (arXiv:1711.00937), equation 3. Value: the ELBO, exactly. Gradient: the decoder's
    and the prior's are the ELBO's, the encoder's is an estimate with a bias, and the
    codebooks' has nothing of the ELBO's.

    Args:
        model: of `vector_quantized.posterior`.
        commitment: gamma, 0.25 in the paper.

    Raises:
        ValueError: if commitment is negative, or q is of another family.
    """
    each = each_example(_quantized(model, commitment, learns=True))

    def value(
        key: PRNGKey, params: Params, memory: PyTree, batch: Batch
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        nats, _ = each(key, params, batch.x)
        return nats, memory, {}

    return Objective(lambda params: (), value)


def by_averages(
    model: Model, *, commitment: float, decay: float, min_uses: float = 0.0
) -> Objective:
    r"""The ELBO, with rows that are moving means of what was quantized to them.

    $N_k \leftarrow \lambda N_k + (1 - \lambda) n_k$, and row k is m_k / N_k with $m_k
    \leftarrow \lambda m_k + (1 - \lambda) \sum_{k(h) = k} h$ over the batch (van den
    Oord et al. 2017, arXiv:1711.00937, appendix A.1): for a decay of 0 and all data in
    a batch, the step of k-means. Each starts with N_k = 1 at the row there is, and a
    row that nothing uses stays, bit for bit. Value and gradient are otherwise those of
    `by_gradient`.

    A row whose N_k has fallen below min_uses starts again with N_k = 1, at a vector of
    this batch that its level quantized. A batch of no weight changes nothing.

    It logs `restarted`, the rows that did, and `codebook_perplexity`, exp of the
    entropy of N_k / sum N_k: of about 1 / (1 - decay) batches.

    Args:
        model: of `vector_quantized.posterior`.
        commitment: gamma, 0.25 in the paper.
        decay: lambda, in [0, 1).
        min_uses: below 1; 0 restarts none.

    Raises:
        ValueError: for a number out of its range, or if q is of another family.
    """
    numerics.check_in("[0, 1)", decay=decay, min_uses=min_uses)
    each = each_example(_quantized(model, commitment, learns=False))

    def init(params: Params) -> Uses:
        codebooks = vector_quantized.read(params)
        return Uses(jnp.ones(codebooks.shape[:2], codebooks.dtype), jnp.copy(codebooks))

    def value(
        key: PRNGKey, params: Params, memory: Uses, batch: Batch
    ) -> tuple[Array, Uses, dict[str, Scalar]]:
        nats, quantized = each(key, params, batch.x)
        vectors, weight = quantized.remainder, batch.weight.astype(nats.dtype)
        has_rows = weight.sum() > 0.0
        chosen = jax.nn.one_hot(quantized.nearest, memory.number.shape[1])
        weighed = weight[:, None, None, None] * chosen.astype(nats.dtype)
        count = decay * memory.number + (1.0 - decay) * weighed.sum((0, 1))
        total = jnp.einsum("bnrk,bnrw->rkw", weighed, vectors, precision="highest")
        # Of the mean and not of the sum, which fades where a row is not used.
        share = (1.0 - decay) / jnp.where(count > 0.0, count, 1.0)
        moved = total - weighed.sum((0, 1))[..., None] * memory.row
        row = memory.row + share[..., None] * moved
        fades = count < min_uses
        key_rows = numerics.apart(key)
        others = _any_of(key_rows, vectors, weight, num_rows=fades.shape[1])
        new = Uses(
            jnp.where(fades, 1.0, count), jnp.where(fades[..., None], others, row)
        )
        new = jax.tree.map(lambda new, old: jnp.where(has_rows, new, old), new, memory)
        logged = {
            "restarted": (fades & has_rows).sum().astype(nats.dtype),
            "codebook_perplexity": jnp.exp(_entropy(new.number)).mean(),
        }
        return nats, new, logged

    def project(params: Params, memory: Uses) -> Params:
        return vector_quantized.with_codebooks(params, memory.row)

    return Objective(init, value, project)


def _quantized(
    model: Model, commitment: float, *, learns: bool
) -> Callable[[PRNGKey, Params, Array], tuple[Scalar, vector_quantized.Quantized]]:
    """The nats of one example, and how its vectors were quantized, held fixed."""
    numerics.check_not_negative(commitment=commitment)
    recognition = model.recognition
    if recognition.family.name != "vector_quantized":
        raise ValueError(
            "codebooks are learned for a vector_quantized q, got "
            f"{recognition.family.name}"
        )

    def of_example(
        key: PRNGKey, params: Params, x: Array
    ) -> tuple[Scalar, vector_quantized.Quantized]:
        h = recognition.encode(params, x)
        elbo = log_weight(model.draw(key, params, x, h))
        quantized = vector_quantized.quantize(vector_quantized.read(params), h)
        _, vector, row = quantized
        losses = commitment * ((vector - stop_gradient(row)) ** 2).sum()
        if learns:
            losses += ((stop_gradient(vector) - row) ** 2).sum()
        nats = numerics.attach_gradient(elbo, elbo - losses)
        return nats, stop_gradient(quantized)

    return of_example


def _any_of(
    key: PRNGKey,
    vectors: Float[Array, "B N R W"],
    weight: Float[Array, " B"],
    *,
    num_rows: int,
) -> Float[Array, "R K W"]:
    """Vectors of a batch by the weight of their examples, with replacement."""
    num_examples, num_places, num_levels, _ = vectors.shape
    key_examples, key_places = jax.random.split(key)
    shape = num_levels, num_rows
    examples = jax.random.choice(key_examples, num_examples, shape, p=weight)
    places = jax.random.randint(key_places, shape, 0, num_places)
    return vectors[examples, places, jnp.arange(num_levels)[:, None]]


def _entropy(count: Float[Array, "R K"]) -> Float[Array, " R"]:
    share = count / count.sum(axis=1, keepdims=True)
    return -(share * jnp.log(jnp.where(share > 0.0, share, 1.0))).sum(axis=1)
