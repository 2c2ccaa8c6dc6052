r"""What the codes of a trained model are good for, beside raw pixels and PCA.

    python -m experiments.representation --workdir=runs/digits
    python -m experiments.representation --workdirs=runs/seed_0,runs/seed_1,runs/seed_2

The code of an image is the mean of q(z | x), the same at every call; --codes=sample
draws it instead. On codes, on the pixels that the model reads and on as many principal
components of these: a linear probe, k nearest neighbors, k-means and a mixture of
normals against the labels, and the probe from a few labels. Classifiers and clusters
are fitted to training rows and judged on test rows. Without labels these are left out.

--layer=2 judges the codes of one layer of a ladder, the second from x.

Of the latents: KL of each, active units, and the mean KL in its two parts, the
information of z about the row and the divergence of all rows' q(z) from the prior
(Hoffman & Johnson 2016, ELBO surgery). Of independent normals the second is the total
correlation of the latents and the KL of each (Chen et al. 2018).

Prints a table and writes representation.json and .txt, latents.png (two latents, or the
first two principal components of more) and neighbors.png to the workdir. Several
workdirs are runs that differ in their seed: their mean and spread are printed and
written to the first, as representation_seeds.json and .txt.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.command.report import Column
from experiments.measures import measure, pictures
from experiments.representation import features
from experiments.representation.config import Config
from experiments.runs import rundir, trained_runs
from vae_jax.evaluation import aggregate, clustering, probes

MOST_LISTED = 100  # latents whose KL stands in a line
BATCH = 16  # rows whose samples are weighed against all others side by side
COLUMNS = {  # of the table, by the name of a metric
    "linear_probe": "linear probe",
    "nearest_neighbors": "k-NN",
    "k_means_accuracy": "k-means acc",
    "k_means_normalized_mutual_information": "NMI",
    "k_means_adjusted_rand": "ARI",
    "mixture_accuracy": "mixture acc",
    "mixture_normalized_mutual_information": "NMI",
    "mixture_adjusted_rand": "ARI",
}


def surgery(
    config: Config, trained: trained_runs.Trained, rows: features.Rows
) -> dict[str, float | int]:
    """The mean KL over the first test rows in its two parts, in nats."""
    size = min(config.surgery_rows, len(rows.test))
    run = aggregate.elbo_surgery(
        trained.model,
        num_samples=config.surgery_samples,
        batch_size=BATCH,
        value=trained.data.prepared.value,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    parts = aggregate.parts(run(key, trained.params, rows.test[:size]))
    rows_of_all = {"surgery_rows": size, "log_rows": float(np.log(size))}
    return rows_of_all | parts


def of_layer(latents: dict[str, Any], number: int, entries: slice) -> dict[str, Any]:
    """What `measure.latents` says of one layer of a ladder; of all of z for 0."""
    if not number or "active_units_z1" not in latents:  # of a single layer
        return latents
    of_one = {}
    if f"active_units_z{number}" in latents:
        of_one["active_units"] = latents[f"active_units_z{number}"]
    if "kl_per_latent" in latents:
        of_one["kl_per_latent"] = latents["kl_per_latent"][entries]
    return of_one


def measured(
    config: Config, trained: trained_runs.Trained, folder: str, *, seed: int
) -> dict[str, Any]:
    """All measurements of one run, drawn in it."""
    rows = features.load_rows(config, trained)
    spaces = features.of_rows(config, trained, rows)
    num_test = len(rows.test)
    result: dict[str, Any] = {
        "workdir": folder,
        "step": trained.step,
        "split": rows.split,
        "num_train": len(rows.train),
        "num_test": num_test,
        "sizes": {name: pair.train.shape[1] for name, pair in spaces.items()},
        "latents": of_layer(
            measure.latents(trained, split=rows.split, num_images=num_test),
            config.layer,
            trained.layer(config.layer),
        ),
    }
    if config.surgery_rows and not config.layer:
        result["latents"] |= surgery(config, trained, rows)
    if rows.unlabeled:
        result["skipped"] = rows.unlabeled
    else:
        result["metrics"], result["few_labels"] = {}, {}
        for name, pair in spaces.items():
            pair = rows.labeled(pair)
            judged = probes.judge(
                *pair,
                num_neighbors=config.num_neighbors,
                num_clusters=config.num_clusters,
                random_state=seed,
            )
            curve = probes.few_labels_curve(
                *pair,
                sizes=config.few_labels,
                num_draws=config.few_draws,
                random_state=seed,
            )
            result["metrics"][name] = judged._asdict()
            result["few_labels"][name] = {
                str(size): accuracies.tolist() for size, accuracies in curve.items()
            }
    result["protocol"] = trained.stamp()
    with cli.user_errors():
        draw(config, trained, rows, spaces["codes"])
    return result


def result_path(
    config: Config, trained: trained_runs.Trained, kind: str
) -> pathlib.Path:
    """Of a file without its ending; of other settings by names of their own."""
    parts = (config.part(flag) for flag in ("codes", "layer", "num_train"))
    return config.result_path(
        trained, kind, *parts, config.rows_part(trained, "num_test")
    )


def draw(
    config: Config,
    trained: trained_runs.Trained,
    rows: features.Rows,
    codes: features.Features,
) -> None:
    """The latent space, and nearest neighbors in it."""
    what = "mean of q(z | x)" if config.codes == "mean" else "z drawn from q(z | x)"
    what += f", z_{config.layer}" * (config.layer > 0)
    latents, neighbors = (
        result_path(config, trained, kind).with_suffix(".png")
        for kind in ("latents", "neighbors")
    )
    pictures.draw_latents(codes.test, rows.test_labels, latents, what=what)
    if not trained.is_image:
        print(pictures.not_drawn(trained))
        return
    num, value = min(config.num_queries, len(rows.test)), trained.data.prepared.value
    nearest = probes.nearest_rows(
        codes.train, codes.test[:num], num_neighbors=config.num_neighbors
    )
    images = np.asarray(value(rows.train[nearest.ravel()]))
    pictures.draw_neighbors(
        np.asarray(value(rows.test[:num])),
        images.reshape(*nearest.shape, *trained.data.x_shape),
        neighbors,
        limits=pictures.limits(trained),
    )


def table(config: Config, results: list[dict[str, Any]]) -> str:
    """The measurements of one run, or the mean and spread of several, as lines."""
    first, num_runs = results[0], len(results)
    kind = "means" if config.codes == "mean" else "draws"
    lines = [
        *trained_runs.heading(first | {"num_images": first["num_test"]}),
        f"codes: {kind} of q(z | x)" + (f", z_{config.layer}" * (config.layer > 0)),
        f"fitted to the first {first['num_train']} training rows, judged on the first "
        f"{first['num_test']} rows of {first['split']}"
        + (f"; mean ± spread of {num_runs} runs" if num_runs > 1 else ""),
        "",
    ]
    if "skipped" in first:
        lines.append(
            f"labeled metrics are skipped (probe, k-NN, clusters, few labels): "
            f"{first['skipped']}"
        )
    else:
        lines.extend([*_judged(config, results), "", *_few(config, results)])
    return "\n".join([*lines, "", *_latents(results)])


def _by_features(
    results: list[dict[str, Any]],
    titles: dict[str, str],
    values: Callable[[str, str], list[float]],
) -> str:
    """A row for each set of features, a column for each title: values(row, column)."""
    sizes = results[0]["sizes"]
    columns = [Column("", lambda name: f"{name} ({sizes[name]})", width=13)]
    columns += [
        Column(
            title,
            lambda name, key=key: report.mean_and_deviation(values(name, key)),
            width=14,
        )
        for key, title in titles.items()
    ]
    return report.table(columns, sizes)


def _judged(config: Config, results: list[dict[str, Any]]) -> list[str]:
    titles = COLUMNS | {"nearest_neighbors": f"{config.num_neighbors}-NN"}
    metrics = [result["metrics"] for result in results]
    lines = [_by_features(results, titles, lambda n, key: [m[n][key] for m in metrics])]
    for name, size in results[0]["sizes"].items():
        if not all(m[name]["linear_probe_converged"] for m in metrics):
            lines.append(f"the linear probe of {name} ran out of its steps")
        kind = clustering.covariance_type(size)
        if kind != "full":
            lines.append(
                f"the mixture of {name} has {kind} covariances, {size} features"
            )
    return lines


def _few(config: Config, results: list[dict[str, Any]]) -> list[str]:
    """Mean over runs and draws, and the spread over all of them."""
    judged = results[0]["few_labels"]["codes"]
    return [
        f"linear probe from few labels, {config.few_draws} draws of each",
        _by_features(
            results,
            {num: f"{num} labels" for num in judged},
            lambda name, num: [x for r in results for x in r["few_labels"][name][num]],
        ),
        *(
            f"{num} labels are left out: not as many of every class"
            for num in config.few_labels
            if str(num) not in judged
        ),
    ]


def _latents(results: list[dict[str, Any]]) -> list[str]:
    def of(name: str) -> str:
        return report.mean_and_deviation(
            [result["latents"][name] for result in results], digits=2
        )

    lines, first = [], results[0]["latents"]
    if "active_units" in first:
        size = results[0]["sizes"]["codes"]
        lines.append(f"active units {of('active_units')} of {size}")
    else:
        lines.append(measure.NO_KL_PER_LATENT)
    if "kl_per_latent" in first and len(results) == 1:
        greatest_first = sorted(first["kl_per_latent"])[: -MOST_LISTED - 1 : -1]
        kls = " ".join(f"{kl:.3f}" for kl in greatest_first)
        lines.append(f"KL per latent, greatest first: {kls}")
    if "mean_kl" in first:
        rows = first["surgery_rows"]

        def error(name: str) -> str:
            return f"{max(r['latents'][f'{name}_error'] for r in results):.3f}"

        lines += [
            f"mean KL over {rows} rows {of('mean_kl')} nats, in two parts (standard "
            f"error over z {error('mean_kl')}, by --surgery_samples):",
            f"  I(n; z) {of('mutual_information')} ({error('mutual_information')}), of "
            f"the row's index and at most log {rows} = {first['log_rows']:.2f}",
            f"  KL(q(z) || p(z)) {of('marginal_kl')} ({error('marginal_kl')}), q(z) "
            "the mixture of these rows'",
        ]
        if "total_correlation" in first:
            lines.append(
                f"    of which the total correlation {of('total_correlation')} "
                f"({error('total_correlation')}), and the KL of each latent's q(z_d) "
                f"{of('dimension_wise_kl')} ({error('dimension_wise_kl')})"
            )
        if first["mutual_information"] > first["log_rows"] - 0.1:
            lines.append(
                "  I(n; z) is at its limit: these rows are told apart, and I(x; z) of "
                "the data may be greater, KL(q(z) || p(z)) smaller"
            )
    return lines


def check_seeds(folders: Sequence[str]) -> None:
    """Refuses runs that differ in more than their seed.

    Raises:
        UsageError: naming the flags, or as `rundir.read_config`.
    """
    first, *others = [rundir.read_config(pathlib.Path(f).expanduser()) for f in folders]
    ignored = cli.display_flags(TrainConfig) | {"workdir", "data_dir", "seed"}
    for folder, other in zip(folders[1:], others, strict=True):
        differing = cli.differing(first, other, ignored=ignored)
        if differing:
            pairs = (f"--{name}={a} and {b}" for name, (a, b) in differing.items())
            raise cli.UsageError(
                f"{folders[0]} and {folder} differ in more than their seed: "
                f"{'; '.join(pairs)}"
            )


def main(config: Config) -> int:
    """Measures, prints, draws and writes."""
    folders = config.workdirs or (config.workdir,)
    check_seeds(folders)
    results, paths = [], []
    for i, folder in enumerate(folders):
        trained = config.load(folder)
        result = measured(config, trained, folder, seed=config.seed + i)
        results.append(result)
        paths.append(result_path(config, trained, "representation"))
        text = table(config, [result])
        if len(folders) > 1:
            print(f"{folder} is measured ({i + 1} of {len(folders)})", flush=True)
        else:
            print(text)
        report.write_both(paths[-1], config, result, text, "pictures")
    if len(results) > 1:
        text = table(config, results)
        print(text)
        path = paths[0].with_name(paths[0].name.replace("tation", "tation_seeds", 1))
        report.write_both(path, config, {"runs": results}, text)
    return 0
