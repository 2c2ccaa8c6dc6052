r"""What the codes of a trained model are good for, beside raw pixels and PCA.

    python -m experiments.representation --workdir=runs/digits
    python -m experiments.representation --workdirs=runs/seed_0,runs/seed_1,runs/seed_2

The code of an image is the mean of q(z | x), the same at every call; --codes=sample
draws it instead. On codes, on the pixels that the model reads and on as many principal
components of these: a linear probe, k nearest neighbors, k-means and a mixture of
normals against the labels, and the probe from a few labels. Classifiers and clusters
are fitted to training rows and judged on test rows. Without labels these are left out.

Of the latents: KL of each, active units, and the mean KL in its two parts, the
information of z about the row and the divergence of all rows' q(z) from the prior
(Hoffman & Johnson 2016, ELBO surgery).

Prints a table and writes representation.json and .txt, latents.png (two latents, or the
first two principal components of more) and neighbors.png to the workdir. Several
workdirs are runs that differ in their seed: their mean and spread are printed and
written to the first, as representation_seeds.json and .txt.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.measures import measure, pictures
from experiments.representation import features as code_features
from experiments.runs import protocol, rundir, trained_runs
from vae_jax.evaluation import aggregate, clustering, probes

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


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One set of measurements; every field is a flag."""

    workdirs: str = cli.flag(
        "", "Folders of runs that differ in their seed, instead: separated by commas."
    )
    codes: str = cli.flag(
        "mean", "The mean of q(z | x), or one draw of it.", choices=("mean", "sample")
    )
    num_train: int = cli.flag(
        10_000, "Training rows that are fitted to, from the start; 0 for all."
    )
    num_test: int = cli.flag(
        10_000, "Test rows that are judged on, from the start; 0 for all."
    )
    num_neighbors: int = cli.flag(5, "Neighbors that vote, k.")
    num_clusters: int = cli.flag(0, "Clusters; 0 for as many as there are labels.")
    few_labels: tuple[int, ...] = cli.flag(
        (10, 100, 1000), "Numbers of labels of the curve of few labels."
    )
    few_draws: int = cli.flag(10, "Draws of each number of labels.")
    surgery_rows: int = cli.flag(
        2000, "Test rows of the mean KL's two parts, at a cost of its square; 0: none."
    )
    surgery_samples: int = cli.flag(4, "Draws of z for each of them.")
    num_queries: int = cli.flag(10, "Test images whose neighbors are drawn.")
    seed: int = cli.flag(0, "Seed of the samples, the starts and the few labels.")

    def __post_init__(self) -> None:
        """Refuses numbers that make no measurement.

        Raises:
            ValueError: naming the flag and its value.
        """
        for name in ("num_neighbors", "few_draws", "num_queries"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        for name in ("num_train", "num_test", "num_clusters", "surgery_rows", "seed"):
            if getattr(self, name) < 0:
                value = getattr(self, name)
                raise ValueError(f"--{name} must not be negative, got {value}")
        if self.num_test == 1:
            raise ValueError("--num_test must be 0, for all, or at least 2, got 1")
        if self.surgery_samples < 2:
            raise ValueError(
                f"--surgery_samples must be at least 2, to know the error, got "
                f"{self.surgery_samples}"
            )
        if min(self.few_labels, default=1) < 1:
            raise ValueError(f"--few_labels must be positive, got {self.few_labels}")

    @property
    def settings(self) -> code_features.Settings:
        """What the features and their judges read."""
        names = code_features.Settings._fields
        return code_features.Settings(*(getattr(self, name) for name in names))

    @property
    def folders(self) -> list[str]:
        """The runs that are measured."""
        several = [part.strip() for part in self.workdirs.split(",") if part.strip()]
        return several or [self.workdir]


def surgery(
    config: Config, trained: trained_runs.Trained, rows: code_features.Rows
) -> dict[str, float | int]:
    """The mean KL over the first test rows in its two parts, in nats."""
    size = min(config.surgery_rows or len(rows.test), len(rows.test))
    run = aggregate.elbo_surgery(
        trained.model,
        num_samples=config.surgery_samples,
        batch_size=BATCH,
        value=trained.data.prepared.value,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    terms = run(key, trained.params, rows.test[:size])
    information, marginal = terms.mutual_information, terms.marginal_kl
    found = {
        "mutual_information": information,
        "marginal_kl": marginal,
        "mean_kl": information + marginal,
    }
    error = {f"{k}_error": aggregate.sampling_error(v) for k, v in found.items()}
    means = {name: float(jnp.mean(value)) for name, value in found.items()}
    return {
        "surgery_rows": size,
        "log_rows": float(np.log(size)),
        **means,
        **{name: float(value) for name, value in error.items()},
    }


def measured(config: Config, folder: str, *, seed: int) -> dict[str, Any]:
    """All measurements of one run, drawn and written to it."""
    trained = config.load(folder)
    rows = code_features.load_rows(config.settings, trained)
    for name, part in (("train", rows.train), (rows.split, rows.test)):
        if len(part) < 2:
            raise cli.UsageError(
                f"the {name} split of {trained.config.dataset} gives a single row, and "
                "codes are compared with each other: it takes two or more"
            )
    for name in ("num_neighbors", "num_clusters"):
        if getattr(config, name) > len(rows.train):
            raise cli.UsageError(
                f"--{name}={getattr(config, name)} is more than the "
                f"{len(rows.train)} training rows"
            )
    found = code_features.of_rows(config.settings, trained, rows)
    result: dict[str, Any] = {
        "workdir": folder,
        "step": trained.step,
        "split": rows.split,
        "num_train": len(rows.train),
        "num_test": len(rows.test),
        "sizes": {name: pair[0].shape[1] for name, pair in found.items()},
        "latents": measure.latents(
            trained, split=rows.split, num_images=len(rows.test)
        ),
    }
    if config.surgery_rows:
        result["latents"] |= surgery(config, trained, rows)
    if rows.doubt:
        result["skipped"] = rows.doubt
    else:
        for name, judge in (
            ("metrics", code_features.judge),
            ("few_labels", code_features.few_labels),
        ):
            result[name] = {
                of: judge(config.settings, rows, pair, seed=seed)
                for of, pair in found.items()
            }
    result["protocol"] = protocol.stamp(trained.config, trained.data)
    path = pathlib.Path(folder).expanduser()
    with cli.user_errors():
        draw(config, trained, rows, found["codes"], path)
        report.write_json(
            path / "representation.json",
            result | {"config": dataclasses.asdict(config)},
        )
        report.write_text(path / "representation.txt", table(config, [result]) + "\n")
    return result


def draw(
    config: Config,
    trained: trained_runs.Trained,
    rows: code_features.Rows,
    codes: code_features.Pair,
    folder: pathlib.Path,
) -> None:
    """The latent space, and nearest neighbors in it."""
    what = "E[z | x]" if config.codes == "mean" else "z drawn from q(z | x)"
    pictures.draw_latents(codes[1], rows.test_labels, folder / "latents.png", what=what)
    if not pictures.is_image(trained):
        print(f"observations of shape {trained.data.x_shape} are no images: not drawn")
        return
    num = min(config.num_queries, len(rows.test))
    near = probes.nearest_rows(
        codes[0], codes[1][:num], num_neighbors=config.num_neighbors
    )
    value = trained.data.prepared.value
    images = np.asarray(value(rows.train[near.ravel()]))
    pictures.draw_neighbors(
        np.asarray(value(rows.test[:num])),
        images.reshape(*near.shape, *trained.data.x_shape),
        folder / "neighbors.png",
        limits=pictures.limits(trained),
    )


def table(config: Config, results: list[dict[str, Any]]) -> str:
    """The measurements of one run, or the mean and spread of several, as lines."""
    first = results[0]
    stamp = first["protocol"]
    lines = [
        f"{stamp['dataset']} ({stamp['origin']})",
        f"binarization {stamp['binarization']}, likelihood {stamp['likelihood']}",
        "codes: "
        + ("means of q(z | x)" if config.codes == "mean" else "draws of q(z | x)"),
        f"fitted to the first {first['num_train']} training rows, judged on the first "
        f"{first['num_test']} rows of {first['split']}"
        + (f"; mean ± spread of {len(results)} runs" if len(results) > 1 else ""),
        "",
    ]
    if "skipped" in first:
        lines.append(
            f"labelled metrics are skipped (probe, k-NN, clusters, few labels): "
            f"{first['skipped']}"
        )
    else:
        lines.extend([*_judged(config, results), "", *_few(config, results)])
    return "\n".join([*lines, "", *_latents(results)])


def _judged(config: Config, results: list[dict[str, Any]]) -> list[str]:
    head = {**COLUMNS, "nearest_neighbors": f"{config.num_neighbors}-NN"}
    width = 15 if len(results) > 1 else 13
    lines = [" " * 14 + "".join(f"{text:>{width}}" for text in head.values())]
    for name, size in results[0]["sizes"].items():
        found = [
            _spread([result["metrics"][name][metric] for result in results])
            for metric in COLUMNS
        ]
        lines.append(
            f"{f'{name} ({size})':<14}" + "".join(f"{v:>{width}}" for v in found)
        )
    for name, size in results[0]["sizes"].items():
        if not all(r["metrics"][name]["linear_probe_converged"] for r in results):
            lines.append(f"the linear probe of {name} ran out of its steps")
        kind = clustering.covariance_type(size)
        if kind != "full":
            lines.append(
                f"the mixture of {name} has {kind} covariances, {size} features"
            )
    return lines


def _few(config: Config, results: list[dict[str, Any]]) -> list[str]:
    """Mean over runs and draws, and the spread over all of them."""
    lines = [f"linear probe from few labels, {config.few_draws} draws of each"]
    known = results[0]["few_labels"]["codes"]
    lines.append(" " * 14 + "".join(f"{num + ' labels':>15}" for num in known))
    for name, size in results[0]["sizes"].items():
        found = [
            _spread([x for r in results for x in r["few_labels"][name][num]])
            for num in known
        ]
        lines.append(f"{f'{name} ({size})':<14}" + "".join(f"{v:>15}" for v in found))
    for num in config.few_labels:
        if str(num) not in known:
            lines.append(f"{num} labels are left out: not as many of every class")
    return lines


def _latents(results: list[dict[str, Any]]) -> list[str]:
    def of(name: str) -> str:
        values = [result["latents"][name] for result in results]
        return _spread(values, digits=2)

    lines, first = [], results[0]["latents"]
    if "active_units" in first:
        size = results[0]["sizes"]["codes"]
        lines.append(f"active units {of('active_units')} of {size}")
    else:
        lines.append("no KL per latent: q does not factorize over the latents")
    if "kl_per_latent" in first and len(results) == 1:
        per_latent = " ".join(
            f"{kl:.3f}" for kl in sorted(first["kl_per_latent"])[::-1]
        )
        lines.append(f"KL per latent, greatest first: {per_latent}")
    if "mean_kl" in first:
        rows = first["surgery_rows"]
        error = max(r["latents"]["mutual_information_error"] for r in results)
        lines += [
            f"mean KL over {rows} rows {of('mean_kl')} nats, in two parts:",
            f"  I(n; z) {of('mutual_information')}, of the row's index and at most log "
            f"{rows} = {first['log_rows']:.2f}; standard error over z {error:.3f}",
            f"  KL(q(z) || p(z)) {of('marginal_kl')}, q(z) the mixture of these rows'",
        ]
        if first["mutual_information"] > first["log_rows"] - 0.1:
            lines.append(
                "  I(n; z) is at its limit: these rows are told apart, and I(x; z) of "
                "the data may be greater, KL(q(z) || p(z)) smaller"
            )
    return lines


def _spread(values: list[float], *, digits: int = 3) -> str:
    """A value, or the mean of several with their standard deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def check_seeds(folders: list[str]) -> None:
    """Refuses runs that differ in more than their seed.

    Raises:
        UsageError: naming the flags, or as `rundir.read_config`.
    """
    configs = [rundir.read_config(pathlib.Path(f).expanduser()) for f in folders]
    ignored = cli.display_flags(TrainConfig) | {"workdir", "data_dir", "seed"}
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        differing = [
            f"--{f.name}={getattr(configs[0], f.name)} and {getattr(config, f.name)}"
            for f in dataclasses.fields(TrainConfig)
            if f.name not in ignored
            and getattr(configs[0], f.name) != getattr(config, f.name)
        ]
        if differing:
            raise cli.UsageError(
                f"{folders[0]} and {folder} differ in more than their seed: "
                f"{'; '.join(differing)}"
            )


def main(config: Config) -> int:
    """Measures, prints, draws and writes."""
    folders = config.folders
    check_seeds(folders)
    results = []
    for i, folder in enumerate(folders):
        results.append(measured(config, folder, seed=config.seed + i))
        if len(folders) > 1:
            print(f"{folder} is measured ({i + 1} of {len(folders)})", flush=True)
    text = table(config, results)
    print(text)
    first = pathlib.Path(folders[0]).expanduser()
    if len(results) == 1:
        print(f"written to {first}: representation.json, .txt and pictures")
        return 0
    path = first / "representation_seeds.json"
    with cli.user_errors():
        report.write_text(path.with_suffix(".txt"), text + "\n")
    report.write(path, config, {"runs": results})
    return 0
