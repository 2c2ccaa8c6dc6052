"""What the layers of a trained ladder are worth: ablation and pruning, as tables."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.command import report
from experiments.command.report import field
from experiments.measures import measure
from experiments.runs import trained_runs
from experiments.runs.trained_runs import Trained
from vae_jax.evaluation import ablation
from vae_jax.types import Params, PRNGKey

NUM_POINTS = 11  # of the pruning curve


class Replaced(NamedTuple):
    """The bound with some latents drawn from the prior, averaged over images, in nats.

    Attributes:
        bound: the mean.
        lost: the model's own bound less that.
        lost_standard_error: of the mean over the images.
        lost_mean_likelihood: reconstruction less the log of the mean of p(x | z) over
            the draws: in the limit of many, at most the KL of what is replaced.
    """

    bound: float
    lost: float
    lost_standard_error: float
    lost_mean_likelihood: float


def measured(
    key: PRNGKey, trained: Trained, *, split: str, num_samples: int, num_images: int = 0
) -> dict[str, Any]:
    """Each layer replaced by draws of the prior, and the latents of least KL first.

    Every set of latents meets the same noise, so that differences are paired.
    """
    data = trained_runs.spread_rows(trained, split=split, num_images=num_images)
    counts = measure.group_counts(trained)
    masks = ablation.without_layers(counts)
    of_masks, kl = _evaluated(key, trained, data, masks, num_samples)
    whole, *without = of_masks
    parts = np.split(kl, np.cumsum(counts)[:-1])
    numbered = zip(trained.layer_sizes, counts, parts, without, strict=True)
    active = ablation.active(kl, counts, trained.layer_sizes)
    of_maps = ablation.of_maps(trained.model, kl)
    layers = [
        {
            "layer": i + 1,
            "num_latents": size,
            "active_units": active[i],
            "groups": groups,
            "kl": float(part.sum()),
            **replaced._asdict(),
            **({} if (maps := of_maps[i]) is None else {"kl_of_maps": maps.tolist()}),
        }
        for i, (size, groups, part, replaced) in enumerate(numbered)
    ]
    curve = ablation.pruned(kl, num_points=NUM_POINTS)
    pruned, _ = _evaluated(key, trained, data, curve, num_samples)
    pruning = [
        {
            "num_replaced": int((~from_q).sum()),
            "kl": float(kl[~from_q].sum()),
            **replaced._asdict(),
        }
        for from_q, replaced in zip(curve, pruned, strict=True)
    ]
    return {
        "ablation_samples": num_samples,
        "bound": whole.bound,
        "layers": layers,
        "pruning": pruning,
    }


def _evaluated(
    key: PRNGKey, trained: Trained, data: Array, masks: np.ndarray, num_samples: int
) -> tuple[list[Replaced], np.ndarray]:
    """Of each mask, the first of which is all of q, and the KL of each group there."""
    ablated = ablation.ablated(trained.model, num_samples=num_samples)

    def estimate(key: PRNGKey, at: tuple[Params, Array], x: Array) -> tuple[Any, Array]:
        params, masks = at  # none is a constant: one program serves all runs
        of_masks = jax.vmap(ablated, (None, None, None, 0))(key, params, x, masks)
        return of_masks._replace(kl=()), of_masks.kl[0]

    of_rows, kl = measure.of_rows(
        key,
        trained,
        estimate,
        data,
        num_decoded=num_samples * len(masks),
        params=(trained.params, jnp.asarray(masks)),
    )
    bound, reconstruction, log_mean = (
        np.asarray(values, np.float64) for values in of_rows[:3]
    )
    lost, lost_likelihood = bound[:, :1] - bound, reconstruction[:, :1] - log_mean
    replaced = [
        Replaced(
            float(bound[:, i].mean()),
            float(lost[:, i].mean()),
            measure.standard_error(lost[:, i]),
            float(lost_likelihood[:, i].mean()),
        )
        for i in range(len(masks))
    ]
    return replaced, np.asarray(kl, np.float64).mean(axis=0)


LOSSES = (
    field("KL", "kl", ".3f", 9),
    field("bound", "bound", ".3f", 11),
    field("lost", "lost", ".3f", 9),
    field("std error", "lost_standard_error", ".3f", 9),
    field("by mean p(x|z)", "lost_mean_likelihood", ".3f", 14),
)
LAYERS = (
    report.Column("without", lambda row: f"z_{row['layer']}", width=8),
    field("latents", "num_latents", "d", 8),
    field("active", "active_units", "d", 7),
    *LOSSES,
)
PRUNING = (
    report.Column("without", lambda row: f"{row['num_replaced']}", width=8),
    *LOSSES,
)


def table(measured: dict[str, Any]) -> list[str]:
    """The measurements as lines of text."""
    return [
        "a layer drawn from the prior in the place of q, "
        f"{measured['ablation_samples']} draws a row: bound "
        f"{measured['bound']:.3f} with none; lost by mean p(x|z): for many draws at "
        "most the KL",
        report.table(LAYERS, measured["layers"]),
        *(
            f"KL of each map of z_{row['layer']}: "
            + " ".join(f"{kl:.3f}" for kl in row["kl_of_maps"])
            for row in measured["layers"]
            if "kl_of_maps" in row
        ),
        "",
        "latents of the least KL drawn from the prior first",
        report.table(PRUNING, measured["pruning"]),
    ]
