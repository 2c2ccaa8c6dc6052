r"""Do latents stand for factors: the metrics of trained runs, and pictures of them.

    python -m experiments.disentanglement --workdirs=runs/beta,runs/factor

Of runs on --dataset=sprites, sprites:64 or sprites:color. The codes are the means of
q(z | x) of every image of the grid; what is fitted takes --num_train and --num_test of
them, the rest takes all. Of runs that trained together (--num_seeds, --sweep) each is
measured, and mean ± deviation over the seeds are printed.

Prints a table, and of three runs or more the rank correlations between the metrics over
all of them. Writes both to the first workdir as disentanglement.json and .txt, and for
the first seed of each row of the table to its own workdir a picture of traversals, the
factor that each latent knows most of beside it, and one of latents against factors.
"""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.command import cli, report
from experiments.command.report import Column
from experiments.disentanglement import scores
from experiments.disentanglement.config import Config
from experiments.measures import pictures
from experiments.runs import rundir, trained_runs
from vae_jax.evaluation import disentanglement
from vae_jax.plots import factors, files

LEAST_SHARE = 0.05  # of a factor's entropy that a latent must know to be named after it
RANGE = 2.0  # of a traversal, to both sides


def row_name(trained: trained_runs.Trained, folder: str) -> str:
    """Of what differs in no more than its seed, a row of the table."""
    name = pathlib.Path(folder).name
    swept = rundir.read_config(pathlib.Path(folder).expanduser()).sweep
    flag = swept.partition("=")[0]
    return f"{name} {flag}={getattr(trained.config, flag):g}" if flag else name


def shares(codes: scores.Codes, config: Config) -> np.ndarray:
    """What each latent knows of each factor [D, F], as a share of its entropy."""
    information = disentanglement.mutual_information(
        codes.rows, num_bins=config.num_bins
    )
    return information / np.log(codes.sizes)


def latent_names(shares: np.ndarray, names: list[str]) -> list[str]:
    """Each latent with the factor it knows most of, and how much."""
    return [
        f"z{d}: {names[row.argmax()]} {row.max():.2f}"
        if row.max() > LEAST_SHARE
        else f"z{d}: none"
        for d, row in enumerate(shares)
    ]


def draw(
    config: Config,
    trained: trained_runs.Trained,
    codes: scores.Codes,
    known: np.ndarray,
) -> list[pathlib.Path]:
    """Traversals around the code of the grid's middle, and the heat map of `shares`."""
    names = list(codes.grid.sizes)
    latents = latent_names(known, names)
    middle = np.ravel_multi_index([size // 2 for size in codes.sizes], codes.sizes)
    values = np.linspace(-RANGE, RANGE, config.num_columns)
    size = codes.mean.shape[1]
    z = np.tile(codes.mean[middle], (size, len(values), 1))
    z[np.arange(size), :, np.arange(size)] = values
    images = pictures.decoded(trained, jnp.asarray(z, jnp.float32))
    member = "" if trained.member is None else f"member_{trained.member}"
    paths = [
        config.result_path(trained, kind, member).with_suffix(".png")
        for kind in ("traversals", "factors")
    ]
    columns = [round(float(value), 2) for value in values]
    with cli.user_errors():
        figure = factors.traversals(images, names=latents, values=columns)
        files.save(figure, paths[0])
        heat = factors.heat_map(
            known, latents=[f"z{d}" for d in range(size)], factors=names
        )
        files.save(heat, paths[1])
    return paths


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and deviation over the seeds of each row, a metric a line below it."""
    rows = list(dict.fromkeys(run["row"] for run in runs))

    def cell(metric: str, row: str) -> str:
        values = [run["scores"][metric] for run in runs if run["row"] == row]
        return report.mean_and_deviation(values)

    columns = [Column("", lambda metric: metric, width=16)]
    columns += [
        Column(row, lambda metric, row=row: cell(metric, row), width=max(len(row), 14))
        for row in rows
    ]
    counts = {row: sum(run["row"] == row for run in runs) for row in rows}
    seeds = ", ".join(sorted({str(count) for count in counts.values()}))
    heading = f"mean ± deviation over seeds, {seeds} of each"
    return "\n".join([heading, report.table(columns, runs[0]["scores"])])


def correlations(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of every two metrics over all runs."""
    names = list(runs[0]["scores"])
    values = np.array([[run["scores"][name] for name in names] for run in runs])
    ranks = stats.rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    norms = np.sqrt((ranks**2).sum(axis=0))
    products = ranks.T @ ranks / np.maximum(np.outer(norms, norms), 1e-12)
    return {
        name: dict(zip(names, row.tolist(), strict=True))
        for name, row in zip(names, products, strict=True)
    }


def correlation_table(matrix: dict[str, dict[str, float]]) -> str:
    """The same as lines, whose numbers stand for the names above columns."""
    number = {name: i for i, name in enumerate(matrix, 1)}
    columns = [Column("", lambda name: f"{number[name]:2d} {name}", width=18)]
    columns += [
        Column(str(i), lambda name, other=other: matrix[name][other], ".2f", 5)
        for other, i in number.items()
    ]
    return report.table(columns, matrix)


def main(config: Config) -> int:
    """Measures, prints, draws and writes."""
    runs, pictured, first = [], [], None
    for folder in config.workdirs or (config.workdir,):
        for trained in config.load_asked(folder):
            first = first or trained
            scores.check(config.metrics, trained)
            codes = scores.encoded(trained)
            row, known = row_name(trained, folder), shares(codes, config)
            if row not in [run["row"] for run in runs]:
                pictured += draw(config, trained, codes, known)
            result = scores.measured(codes, config)
            runs.append(
                {
                    "row": row,
                    "seed": trained.config.seed,
                    "scores": result,
                    "shares": known.tolist(),
                    "protocol": trained.stamp(),
                }
            )
            print(f"{row}, seed {trained.config.seed} is measured", flush=True)
    assert first is not None
    text = table(runs)
    result: dict[str, Any] = {"runs": runs}
    if len(runs) > 2:
        result["rank_correlations"] = correlations(runs)
        text += f"\n\nrank correlations over {len(runs)} runs\n"
        text += correlation_table(result["rank_correlations"])
    print(f"\n{text}")
    path = config.result_path(first, "disentanglement")
    report.write_both(path, config, result, text, f"{len(pictured)} pictures")
    return 0
