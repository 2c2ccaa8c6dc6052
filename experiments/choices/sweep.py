"""The runs that train together: one for each value of a sweep and each seed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.choices.config import Config

SWEPT = {"learning_rate": float, "beta": float, "penalty": float, "kl_warmup": int}


def expand(config: Config) -> tuple[Config, ...]:
    """The configuration of each run as it would be alone.

    The seeds of one value stand side by side, --seed and those that follow it.

    Raises:
        ValueError: for a sweep that cannot be read, or a value that no run can have.
    """
    alone = {"num_seeds": 1, "sweep": ""}
    return tuple(
        dataclasses.replace(config, seed=config.seed + i, **alone, **value)
        for value in _values(config.sweep)
        for i in range(config.num_seeds)
    )


def numbers(config: Config, runs: Sequence[Config]) -> dict[str, Array]:
    """The swept setting of each run, name -> [R]; nothing without a sweep."""
    return {
        name: jnp.asarray([getattr(run, name) for run in runs], jnp.float32)
        for value in _values(config.sweep)[:1]
        for name in value
    }


def names(config: Config) -> list[str]:
    """What tells one run from the others, such as "learning_rate=0.001, seed=2"."""
    return [
        ", ".join(
            [f"{name}={getattr(run, name):g}" for name in _values(config.sweep)[0]]
            + [f"seed={run.seed}"]
        )
        for run in expand(config)
    ]


def summary(config: Config, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of all runs, and their mean over the seeds for each swept value."""
    size = config.num_seeds
    table = []
    for i, value in enumerate(_values(config.sweep)):
        of_value = metrics[i * size : (i + 1) * size]
        row: dict[str, Any] = dict(value)
        measured = [n for n, x in of_value[0].items() if isinstance(x, float)]
        for name in measured:
            row |= mean_and_std(name, np.array([run[name] for run in of_value]))
        table.append(row)
    each = [{"name": n, **m} for n, m in zip(names(config), metrics, strict=True)]
    return {"num_seeds": size, "over_seeds": table, "runs": each}


def mean_and_std(name: str, values: np.ndarray) -> dict[str, float]:
    """The mean of a number over runs [S], and their standard deviation.

    That of one run, with S - 1 in the denominator; there is none for a single one.
    """
    summary = {name: float(values.mean())}
    if len(values) > 1:
        summary[f"{name}_std"] = float(values.std(ddof=1))
    return summary


def lines(summary: Mapping[str, Any]) -> list[str]:
    """What `summary` made, as text: mean and standard deviation over the seeds."""
    text = []
    for row in summary["over_seeds"]:
        swept = [f"{name}={row[name]:g}" for name in SWEPT if name in row]
        text.append(", ".join([*swept, f"{summary['num_seeds']} seeds"]))
        for name, mean in row.items():
            if name not in SWEPT and not name.endswith("_std"):
                std = row.get(f"{name}_std")
                spread = "" if std is None else f"  std {std:.4f}"
                text.append(f"  {name:<32}{mean:14.4f}{spread}")
    return text


def _values(sweep: str) -> list[dict[str, Any]]:
    """The settings of each value of --sweep=NAME=V1,V2,...; [{}] without one."""
    if not sweep:
        return [{}]
    name, _, listed = sweep.partition("=")
    if name not in SWEPT or not listed:
        raise ValueError(
            f"--sweep={sweep}: NAME=V1,V2,... with one of {', '.join(SWEPT)}"
        )
    try:
        return [{name: SWEPT[name](value)} for value in listed.split(",")]
    except ValueError:
        raise ValueError(
            f"--sweep={sweep}: {listed} is not a list of {SWEPT[name].__name__} values"
        ) from None
