"""Posterior collapse and dead layers of a run, and the lines that warn of them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from experiments.runs.runs import Run

Row: TypeAlias = dict[str, Any]

COLLAPSED = 0.01  # nats per row: a mean KL below it


def changes(run: Run) -> Callable[[Row], list[str]]:
    """Of each row in turn, the lines that say what has collapsed or is so no more.

    The row holds its `share`, where it was looked for.
    """
    reported, dead = 0.0, set()  # share of collapsed runs, and layers

    def lines(row: Row) -> list[str]:
        nonlocal reported, dead
        said, now = [], row.get("collapsed", reported)
        if now != reported:
            said.append(_line_of_share(row, now))
        reported, layers = now, dead_layers(run, row)
        if layers is not None and now < 1.0 and layers.keys() != dead:
            said.append(_line_of_layers(row, layers))
            dead = set(layers)
        return said

    return lines


def share(run: Run, row: Row) -> Row:
    """The share of the runs whose posterior has collapsed, after every validation.

    It has when no latent is active (`representation.active_units`), or the mean KL is
    below 0.01 nats: the KL is I(x; z) and more (Hoffman & Johnson 2016, ELBO surgery),
    so that z tells at most that of x. Of the validation split, or the training rows' KL
    alone where there is none; not during --kl_warmup.
    """
    kl = _each(row, "valid_kl") or _each(row, "kl")
    if not kl or not _is_looked_at(run, row):
        return {}
    active = _each(row, "valid_active_units") or [1.0] * len(kl)
    collapsed = [k < COLLAPSED or a < 1.0 for k, a in zip(kl, active, strict=True)]
    return {"collapsed": float(np.mean(collapsed))}


def dead_layers(run: Run, row: Row) -> dict[str, float] | None:
    """Layers of a ladder that tell next to nothing of x, with their mean KL in nats.

    Of the runs that train together, the least; looked at when `share` is, else None.
    """
    if not _is_looked_at(run, row):
        return None
    nats: dict[str, float] = {}
    for i in range(1, len(run.model.lower) + 2):
        of_runs = _each(row, f"valid_kl_z{i}") or _each(row, f"kl_z{i}")
        if of_runs and min(of_runs) < COLLAPSED:
            nats[f"z{i}"] = min(of_runs)
    return nats


def _is_looked_at(run: Run, row: Row) -> bool:
    """Whether a validation is due there, and the KL no longer warms up."""
    due = row["step"] % run.steps_per_validation == 0
    return due and row["epoch"] > max(config.kl_warmup for config in run.configs)


def _line_of_share(row: Row, share: float) -> str:
    """The line that says that posteriors collapse or come back."""
    kl = min(_each(row, "valid_kl") or _each(row, "kl") or [float("nan")])
    where = f"epoch {row['epoch']:g}: KL {kl:.4f} nats per row"
    active = _each(row, "valid_active_units")
    if active:
        where += f", {min(active):.0f} active units"
    if not share:
        return f"no posterior collapse any more at {where}"
    if share < 1.0:
        where += f", in {100 * share:.0f}% of the runs"
    return (
        f"warning: posterior collapse at {where}; z tells next to nothing of x; "
        "--kl_warmup, a smaller --beta or --estimator=free_bits may help"
    )


def _line_of_layers(row: Row, dead: dict[str, float]) -> str:
    """The line that names the layers that are dead now."""
    where = f"epoch {row['epoch']:g}"
    if not dead:
        return f"no dead layer any more at {where}"
    nats = ", ".join(f"{kl:.4f}" for kl in dead.values())
    return (
        f"warning: dead layers at {where}: {', '.join(dead)}, KL {nats} nats per "
        "row; --kl_warmup, --posterior_form=residual or --estimator=free_bits may "
        "help"
    )


def _each(row: Row, name: str) -> Sequence[float]:
    """A number of each run; nothing where it was not taken."""
    return row.get(f"each_{name}", [row[name]] if name in row else [])
