"""The metrics that flags can name, a row each, of one run's codes of a whole grid."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import cli
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax.data import sprites
from vae_jax.evaluation import disentanglement

_ROWS = 16_384  # whose images are there at once


class Codes(NamedTuple):
    """q of every image of a grid, in its order.

    Attributes:
        grid: of the factors.
        mean: of each q, [N, D].
        log_std: likewise.
        factors: [N, F].
    """

    grid: sprites.Grid
    mean: np.ndarray
    log_std: np.ndarray
    factors: np.ndarray

    @property
    def rows(self) -> disentanglement.Rows:
        """The means with their factors."""
        return disentanglement.Rows(self.mean, self.factors)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values of each factor."""
        return tuple(self.grid.sizes.values())


def encoded(trained: trained_runs.Trained) -> Codes:
    """The codes of every image of the grid that the run's data set is.

    Raises:
        UsageError: for another data set, or a q without moments in closed form.
    """
    name, recognition = trained.config.dataset, trained.model.recognition
    if name not in sprites.GRIDS:
        raise cli.UsageError(
            f"the factors of --dataset={name} are not known: train on one of "
            f"{', '.join(sprites.GRIDS)}"
        )
    if recognition.moments is None:
        raise cli.UsageError(
            f"a q of the family {recognition.family.name} has no means in closed form "
            "to be codes: train with --posterior=diag_normal"
        )
    grid, moments = sprites.GRIDS[name], measure.moments(trained.model)
    # Compiled once for all parts of a grid.
    of_rows = measure.over_rows(
        moments, trained.data.prepared.value, num_decoded=1, mesh=trained.mesh
    )
    factors = grid.factors(np.arange(grid.num_images))
    results = []
    for first in range(0, len(factors), _ROWS):
        raw = sprites.images(grid, factors[first : first + _ROWS])
        of_each = of_rows(jax.random.key(0), trained.params, jnp.asarray(raw))
        results.append(jax.tree.map(np.asarray, of_each))
    mean, std = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return Codes(grid, mean.astype(float), np.log(std.astype(float)), factors)


def check(metrics: Sequence[str], trained: trained_runs.Trained) -> None:
    """Refuses what is asked of a q that it is not of.

    Raises:
        UsageError: for draws of a q that is no normal.
    """
    family = trained.model.recognition.family.name
    if "mig_of_samples" in metrics and family not in ("diag_normal", "full_normal"):
        others = ",".join(name for name in metrics if name != "mig_of_samples")
        raise cli.UsageError(
            f"mig_of_samples is of draws of a normal q, and this run's is {family}: "
            f"measure --metrics={others or 'mig_of_means'}"
        )


def split(
    codes: Codes, config: Any
) -> tuple[disentanglement.Rows, disentanglement.Rows]:
    """Rows to fit to and others to judge on, drawn without replacement."""
    order = np.random.default_rng(config.seed).permutation(len(codes.mean))
    num_train = min(config.num_train, 2 * len(order) // 3)
    train, test = order[:num_train], order[num_train:][: config.num_test]
    return (
        disentanglement.Rows(codes.mean[train], codes.factors[train]),
        disentanglement.Rows(codes.mean[test], codes.factors[test]),
    )


def _mig_of_means(codes: Codes, config: Any) -> dict[str, float]:
    score = disentanglement.mig_of_means(codes.rows, num_bins=config.num_bins)
    return {"mig_of_means": score}


def _mig_of_samples(codes: Codes, config: Any) -> dict[str, float]:
    score = disentanglement.mig_of_samples(
        codes.mean,
        codes.log_std,
        codes.factors,
        num_samples=config.num_draws,
        random_state=config.seed,
    )
    return {"mig_of_samples": score}


def _sap(codes: Codes, config: Any) -> dict[str, float]:
    return {"sap": disentanglement.sap(*split(codes, config), is_ordered=False)}


def _dci(codes: Codes, config: Any) -> dict[str, float]:
    result = disentanglement.dci(
        *split(codes, config), num_trees=config.num_trees, random_state=config.seed
    )
    return {
        "disentanglement": result.disentanglement,
        "completeness": result.completeness,
        "informativeness": result.informativeness,
    }


def _batches(codes: Codes, config: Any) -> dict[str, Any]:
    return {
        "sizes": codes.sizes,
        "batch_size": config.num_pairs,
        "num_train": config.num_train,
        "num_test": config.num_test,
        "random_state": config.seed,
    }


def _factor_vae(codes: Codes, config: Any) -> dict[str, float]:
    numbers = _batches(codes, config)
    score = disentanglement.factor_vae_score(
        codes.mean, min_std=config.min_std, **numbers
    )
    return {"factor_vae": score}


def _beta_vae(codes: Codes, config: Any) -> dict[str, float]:
    numbers = _batches(codes, config)
    return {"beta_vae": disentanglement.beta_vae_score(codes.mean, **numbers)}


def _modularity(codes: Codes, config: Any) -> dict[str, float]:
    score = disentanglement.modularity(codes.rows, num_bins=config.num_bins)
    return {"modularity": score}


def _explicitness(codes: Codes, config: Any) -> dict[str, float]:
    return {"explicitness": disentanglement.explicitness(*split(codes, config))}


def _irs(codes: Codes, config: Any) -> dict[str, float]:
    del config
    return {"irs": disentanglement.irs(codes.rows)}


METRICS: dict[str, Callable[[Codes, Any], dict[str, float]]] = {
    "mig_of_means": _mig_of_means,
    "mig_of_samples": _mig_of_samples,
    "sap": _sap,
    "dci": _dci,
    "factor_vae": _factor_vae,
    "beta_vae": _beta_vae,
    "modularity": _modularity,
    "explicitness": _explicitness,
    "irs": _irs,
}


def measured(codes: Codes, config: Any) -> dict[str, float]:
    """Every metric that --metrics asks for, by name."""
    return {
        name: score
        for metric in config.metrics
        for name, score in METRICS[metric](codes, config).items()
    }
