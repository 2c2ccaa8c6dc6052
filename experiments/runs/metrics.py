"""The rows of metrics.jsonl: what a scan reports, and when it must be told."""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from experiments.choices import sweep
from experiments.choices.algorithms import ALGORITHMS
from experiments.choices.estimators import ESTIMATORS
from experiments.command import cli
from experiments.runs import rundir
from experiments.runs.runs import Run
from vae_jax.training import checkpoints, journal

Row = dict[str, Any]

COLLAPSED = 0.01  # nats per image: a mean KL below it


def of_scan(run: Run, first: int, info: NamedTuple, *, seconds: float) -> Row:
    """Means over the steps of one scan of whatever the algorithm report.

    Raises:
        UsageError: if what a step fits, its info's first field, is not finite.
    """
    fields = info._asdict()
    fields |= fields.pop("monitored", {})
    fields.pop("spread", None)
    fitted, values = next(iter(fields.items()))
    if not np.isfinite(values).all():
        _report_divergence(run, first, fitted, values)
    num_steps = values.shape[-1]
    step = first + num_steps
    row: Row = {"step": step, "epoch": step / run.steps_per_epoch}
    measured = fields.get("gradient_norm", values) >= 0.0
    if not measured.any():  # a short scan may hold no step with a norm
        fields.pop("gradient_norm", None)
    means = {
        name: values.astype(np.float64).mean(
            axis=-1, where=measured if name == "gradient_norm" else True
        )
        for name, values in fields.items()
    }
    splits = ALGORITHMS[run.config.algorithm].splits_bound
    if splits and ESTIMATORS[run.config.gradient].of_elbo:
        means["reconstruction"] = means["bound"] + means["kl"]
    for name, mean in means.items():
        row |= over_runs(name, mean)
    num_examples = num_steps * run.config.batch_size * len(run.members)
    return row | {"examples_per_second": num_examples / seconds, "seconds": seconds}


def over_runs(name: str, values: np.ndarray) -> Row:
    """One run's number; of runs [R] that train together, the mean, std and each."""
    if not values.ndim:
        return {name: float(values)}
    return sweep.mean_and_std(name, values) | {f"each_{name}": values.tolist()}


def collapse(run: Run, row: Row) -> Row:
    """The share of the runs whose posterior has collapsed, after every validation.

    It has when no latent is active (`representation.active_units`), or the mean KL is
    below 0.01 nats: the KL is I(x; z) and more (Hoffman & Johnson 2016, ELBO surgery),
    so that z tells at most that of x. Of the validation split, or the training rows' KL
    alone where there is none; not during --kl_warmup.
    """
    due = row["step"] % run.steps_per_validation == 0
    kl = _each(row, "valid_kl") or _each(row, "kl")
    warmup = max(member.kl_warmup for member in run.members)
    if not due or not kl or row["epoch"] <= warmup:
        return {}
    active = _each(row, "valid_active_units") or [1.0] * len(kl)
    collapsed = [k < COLLAPSED or a < 1.0 for k, a in zip(kl, active, strict=True)]
    return {"collapsed": float(np.mean(collapsed))}


def tell_of_collapse(row: Row, told: float) -> float:
    """Prints a line when posteriors collapse or come back; returns the share of them.

    told is that of the row before.
    """
    collapsed = row.get("collapsed", told)
    if collapsed != told:
        kl = min(_each(row, "valid_kl") or _each(row, "kl") or [float("nan")])
        where = f"epoch {row['epoch']:g}: KL {kl:.4f} nats per image"
        active = _each(row, "valid_active_units")
        if active:
            where += f", {min(active):.0f} active units"
        if 0.0 < collapsed < 1.0:
            where += f", in {100 * collapsed:.0f}% of the runs"
        print(
            f"warning: posterior collapse at {where}; z tells next to nothing of x; "
            "--kl_warmup, a smaller --beta or --estimator=free_bits may help"
            if collapsed
            else f"no posterior collapse any more at {where}",
            flush=True,
        )
    return collapsed


def shown(row: Row) -> dict[str, float]:
    """What a row's model is fitted and watched by."""
    endings = ("bound", "objective", "log_joint")
    return {
        name: row[name]
        for name in row
        if name.endswith(endings) and not name.startswith("each_")
    }


def _each(row: Row, name: str) -> Sequence[float]:
    """A number of each run; nothing where it was not taken."""
    return row.get(f"each_{name}", [row[name]] if name in row else [])


def _report_divergence(
    run: Run, first: int, fitted: str, values: np.ndarray
) -> NoReturn:
    values = np.atleast_2d(values)  # [R, steps]
    at = int(np.argmin(np.isfinite(values).all(axis=0)))
    which = int(np.argmin(np.isfinite(values[:, at])))
    rows = journal.read(run.workdir)
    last = (
        f"step {first + at}: {fitted} {values[which, at - 1]:.4f}"
        if at
        else (f"row of step {rows[-1]['step']}" if rows else "none")
    )
    whole = checkpoints.steps(run.workdir / rundir.CHECKPOINTS)
    back = f"checkpoint of step {whole[-1]}" if whole else "no checkpoint yet"
    of_run = ""
    if run.config.trains_many:
        of_run = f" of the run with {sweep.names(run.config)[which]}"
    raise cli.UsageError(
        f"the {fitted.replace('_', ' ')}{of_run} is {values[which, at]} at step "
        f"{first + at + 1}; last finite metrics: {last}; to go back to: {back} in "
        f"{run.workdir}; try a smaller --learning_rate or --clip_norm, in a new "
        "--workdir"
    )
