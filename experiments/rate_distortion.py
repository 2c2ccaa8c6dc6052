r"""What each nat of rate buys: the rate-distortion curves of trained decoders.

    python -m experiments.rate_distortion --workdirs=runs/a,runs/b

Huang et al. 2020 (arXiv:2008.06653). For the decoder and prior of each run, the rate
R = KL(q || p(z)) and the distortion D = E_q[-log p(x | z)] (or the squared error) of
the q that minimizes R + beta D, along chains that are annealed from the prior; their
step sizes are adapted on other chains. At beta = 1 the two sum to -log p(x). The
encoder's own point lies above the curve, by as much rate as its line says. With
--num_simulated the walks are held against walks from the other end, on images that the
model draws.

Prints a table and writes it to --workdir (rate_distortion.json, .txt, .csv), and all
curves in one picture. The runs must have been trained on the same data.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import cli, report
from experiments.measures import evidence, measure
from experiments.runs import protocol, trained_runs
from experiments.runs.trained_runs import Trained
from vae_jax.data import sources
from vae_jax.evaluation import rate_distortion
from vae_jax.plots import files, rates
from vae_jax.types import PRNGKey

DISTORTIONS = {
    "likelihood": (rate_distortion.negative_log_likelihood, "-log p(x | z), nats"),
    "squared_error": (rate_distortion.squared_error, "squared error, summed"),
}
COLUMNS = (
    report.field("run", "run", width=24),
    report.field("beta", "beta", width=9),
    report.field("rate", "rate", ".3f", 9),
    report.field("s.e.", "rate_standard_error", ".3f", 7),
    report.field("sampling", "rate_sampling_error", ".3f", 8),
    report.field("distortion", "distortion", ".3f", 10),
    report.field("s.e.", "distortion_standard_error", ".3f", 7),
    report.field("least ESS", "smallest_effective_sample_size", ".1f", 9),
    report.field("above curve", "rate_above_curve", ".3f", 11),
)
SIDES = (
    report.field("simulated images", "run", width=24),
    report.field("beta", "beta", width=9),
    report.field("rate", "forward_rate", ".3f", 9),
    report.field("reverse", "reverse_rate", ".3f", 9),
    report.field("distortion", "forward_distortion", ".3f", 10),
    report.field("reverse", "reverse_distortion", ".3f", 10),
    report.field("log Z apart", "log_z_gap", ".3f", 11),
    report.field("s.e.", "log_z_gap_standard_error", ".3f", 7),
)


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One picture; every field is a flag."""

    workdir: str = cli.flag("runs/rate_distortion", "Where the result is written.")
    workdirs: tuple[str, ...] = cli.flag(
        ("runs/digits",), "Folders of the runs, separated by commas.", empty=False
    )
    distortion: str = cli.flag(
        "likelihood",
        "What is lost: -log p(x | z), or |x - E[x | z]|^2.",
        choices=DISTORTIONS,
    )
    betas: tuple[float, ...] = cli.flag(
        (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 10.0), "Rising.", empty=False
    )
    split: str = cli.flag("test", "Split of the run's data.", choices=sources.SPLITS)
    num_images: int = cli.flag(
        100, "Images of the split, at equal distances; 0 for all.", least=0
    )
    num_simulated: int = cli.flag(
        0, "Images that each model draws, to be walked from both ends.", least=0
    )
    num_chains: int = cli.flag(16, "Chains per image.", least=1)
    num_temperatures: int = cli.flag(300, "Transitions of a chain.", least=1)
    num_leapfrog: int = cli.flag(10, "Leapfrog steps of a transition.", least=1)
    eval_samples: int = cli.flag(100, "Samples per image of the encoder.", least=1)
    seed: int = cli.flag(0, "Seed of chains and samples.", least=0)

    def refuse(self) -> None:
        """Refuses betas that no walk passes, and two ends where there is one."""
        rate_distortion.schedule(self.betas, num_temperatures=self.num_temperatures)
        if not self.num_simulated:
            return
        if self.distortion != "likelihood":
            raise ValueError(
                f"--num_simulated={self.num_simulated} --distortion={self.distortion}: "
                "images are drawn from p(x | z), which the squared error is not of"
            )
        if 1.0 not in self.betas:
            betas = ",".join(f"{beta:g}" for beta in self.betas)
            raise ValueError(
                f"--num_simulated={self.num_simulated} --betas={betas}: the walk "
                "back starts at a beta of 1, which must be one of them"
            )


def main(config: Config) -> int:
    """Measures each run, prints and writes."""
    folder = report.claim(config.workdir)
    runs = [config.load(path) for path in config.workdirs]
    names = _names(config.workdirs)
    _check(config, runs)
    lines, simulated = [], []
    print(report.heading(COLUMNS), flush=True)
    for name, trained in zip(names, runs, strict=True):
        key_curve, key_encoder, key_sides = jax.random.split(
            jax.random.key(config.seed), 3
        )
        measured = _curve(key_curve, config, trained)
        measured.append(_encoder(key_encoder, config, trained, measured))
        lines.extend({"run": name} | row for row in measured)
        for row in lines[-len(measured) :]:
            print(report.line(COLUMNS, row), flush=True)
        if config.num_simulated:
            sides = _sides(key_sides, config, trained)
            simulated.extend({"run": name} | row for row in sides)
    text = report.table(COLUMNS, lines)
    if simulated:
        of_sides = report.table(SIDES, simulated)
        print(of_sides)
        text = f"{text}\n\n{of_sides}"
    result = {
        "curves": lines,
        "simulated": simulated,
        "protocol": {n: run.stamp() for n, run in zip(names, runs, strict=True)},
    }
    path = folder / "rate_distortion"
    with cli.user_errors():
        report.write_text(path.with_suffix(".csv"), report.csv_text(lines))
        files.save(_picture(config, names, lines), path.with_suffix(".png"))
    report.write_both(path, config, result, text, ".csv", ".png")
    return 0


def _names(workdirs: Sequence[str]) -> list[str]:
    """The folders' names, or their paths where two are equal."""
    names = [path.rstrip("/").rpartition("/")[2] for path in workdirs]
    return names if len(set(names)) == len(names) else list(workdirs)


def _check(config: Config, runs: Sequence[Trained]) -> None:
    """Refuses runs of different data, and models that no chain walks in.

    Raises:
        UsageError: naming the run.
    """
    rows = {}
    for path, trained in zip(config.workdirs, runs, strict=True):
        stamp = trained.stamp()
        wanted = tuple(stamp[k] for k in ("sha256", "binarization", "data_seed"))
        rows.setdefault(wanted, path)
        if len(rows) > 1:
            raise cli.UsageError(
                f"--workdirs: {path} was trained on other data, or another "
                f"binarization of them, than {config.workdirs[0]}: their curves are "
                "of different rows"
            )
        evidence.check(trained, ("ais",))
        with cli.user_errors():
            if config.distortion == "likelihood":
                protocol.check_likelihood(trained.config, trained.data)
            trained_runs.spread_rows(
                trained, split=config.split, num_images=config.num_images
            )


def _walk(config: Config, trained: Trained) -> dict[str, Any]:
    kernel, num_pilot = evidence.transitions(
        trained,
        num_leapfrog=config.num_leapfrog,
        num_temperatures=config.num_temperatures,
    )
    return {
        "betas": config.betas,
        "num_temperatures": config.num_temperatures,
        "num_chains": config.num_chains,
        "kernel": kernel,
        "num_pilot": num_pilot,
    }


def _curve(key: PRNGKey, config: Config, trained: Trained) -> list[dict[str, Any]]:
    """Means over the images at each beta."""
    build, _ = DISTORTIONS[config.distortion]
    generative = trained.model.generative
    estimate = rate_distortion.annealed_curve(
        generative, distortion=build(generative), **_walk(config, trained)
    )
    curve = measure.of_rows(
        key,
        trained,
        estimate,
        _rows(config, trained),
        num_decoded=config.num_chains,
        at_once=evidence.CHAINS_AT_ONCE,
    )
    curve = _checked(curve)
    rows = []
    for i, beta in enumerate(config.betas):
        error = np.sqrt((curve.rate_standard_error[:, i] ** 2).sum()) / len(curve.rate)
        rows.append(
            {
                "beta": f"{beta:g}",
                "rate": float(curve.rate[:, i].mean()),
                "rate_standard_error": measure.standard_error(curve.rate[:, i]),
                "rate_sampling_error": float(error),
                "distortion": float(curve.distortion[:, i].mean()),
                "distortion_standard_error": measure.standard_error(
                    curve.distortion[:, i]
                ),
                "log_z": float(curve.log_z[:, i].mean()),
                "smallest_effective_sample_size": float(
                    curve.effective_sample_size[:, i].min()
                ),
                "acceptance": float(curve.acceptance.mean()),
            }
        )
    return rows


def _encoder(
    key: PRNGKey, config: Config, trained: Trained, curve: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The encoder's mean rate and distortion, and how far above the curve it is."""
    build, _ = DISTORTIONS[config.distortion]
    distortion = build(trained.model.generative)
    estimate = rate_distortion.encoder_point(
        trained.model,
        num_samples=config.eval_samples,
        distortion=None if config.distortion == "likelihood" else distortion,
    )
    rate, lost = measure.of_rows(
        key,
        trained,
        estimate,
        _rows(config, trained),
        num_decoded=config.eval_samples,
    )
    rate, lost = np.asarray(rate, np.float64), np.asarray(lost, np.float64)
    log_z = np.array([row["log_z"] for row in curve])
    of_curve = rate_distortion.rate_at(float(lost.mean()), config.betas, log_z)
    return {
        "beta": "encoder",
        "rate": float(rate.mean()),
        "rate_standard_error": measure.standard_error(rate),
        "distortion": float(lost.mean()),
        "distortion_standard_error": measure.standard_error(lost),
        "rate_above_curve": float(rate.mean()) - of_curve,
    }


def _sides(key: PRNGKey, config: Config, trained: Trained) -> list[dict[str, Any]]:
    """Means over simulated images, walked from both ends."""
    both = rate_distortion.simulated_curves(
        trained.model.generative, **_walk(config, trained)
    )
    evaluate = measure.over_rows(
        lambda key, params, index: both(key, params)[1:],
        lambda index: index,
        num_decoded=config.num_chains,
        at_once=evidence.CHAINS_AT_ONCE,
        mesh=trained.mesh,
    )
    sides = evaluate(key, trained.params, jnp.arange(config.num_simulated))
    forward, reverse = (_checked(side) for side in sides)
    rows = []
    for i in range(reverse.log_z.shape[1]):
        gap = reverse.log_z[:, i] - forward.log_z[:, i]
        rows.append(
            {
                "beta": f"{config.betas[i]:g}",
                "forward_rate": float(forward.rate[:, i].mean()),
                "reverse_rate": float(reverse.rate[:, i].mean()),
                "forward_distortion": float(forward.distortion[:, i].mean()),
                "reverse_distortion": float(reverse.distortion[:, i].mean()),
                "log_z_gap": float(gap.mean()),
                "log_z_gap_standard_error": measure.standard_error(gap),
            }
        )
    return rows


def _rows(config: Config, trained: Trained) -> Any:
    return trained_runs.spread_rows(
        trained, split=config.split, num_images=config.num_images
    )


def _checked(curve: rate_distortion.Curve) -> Any:
    """The curves of images on the host, refused as `evidence.checked` refuses them."""
    evidence.checked(curve.log_z[:, -1], curve)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), curve)


def _picture(
    config: Config, names: Sequence[str], lines: Sequence[Mapping[str, Any]]
) -> Any:
    points: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in names}
    for row in lines:
        points[row["run"]][row["beta"]] = row["distortion"], row["rate"]
    models = {}
    for name, of_run in points.items():
        curve = [point for beta, point in of_run.items() if beta != "encoder"]
        distortions, of_rate = np.array(curve).T
        models[name] = distortions, of_rate
    return rates.curves(
        models,
        at_one={name: of_run["1"] for name, of_run in points.items() if "1" in of_run},
        encoders={name: of_run["encoder"] for name, of_run in points.items()},
        x_label=f"distortion ({DISTORTIONS[config.distortion][1]})",
    )


if __name__ == "__main__":
    cli.run(Config, main)
