r"""In a VAE log p_theta(x) is not fixed: does a greater ELBO still bring q nearer?

    python -m experiments.posterior_gap
    FLAGS=experiments/flags/posterior_gap
    python -m experiments.posterior_gap --flagfile=$FLAGS/quick.flags

ELBO = log p_theta(x) - KL(q || p_theta(z | x)), so the ELBO can rise by either. Four
answers, `--parts`, each on models whose three numbers are exact and computed apart:

  frozen   theta does not move, phi is trained: pPCA with a full and a diagonal q, and
           a tanh decoder of two latents. Every nat the ELBO gains is a nat of KL lost;
           the largest disagreement of any row at any point is in the result.
  joint    theta and phi together, on rows of a known model, test rows measured: log p,
           ELBO and KL, and the distance to the *true* posterior, of q and of the
           model's own posterior, which q follows as it moves.
  lagging  k updates of phi for each one of theta; searches of each row to convergence
           (variational EM), and the posterior itself by quadrature, as the limits. At
           equal steps of theta.
  family   pPCA with W known, its columns correlated, and only the noise learned, over
           the exact population: a diagonal q moves the joint optimum off the maximum
           likelihood, a full one does not.

Writes posterior_gap.json, a JSON file for each part (one that is there and was made
with the same flags is read back, so an interrupted command continues), and a picture
for each. All in float64.
"""

import dataclasses
import pathlib
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.command import cli, report
from experiments.posterior_gap import family as gap_family
from experiments.posterior_gap import models as gap_models
from experiments.posterior_gap import training as gap_training
from vae_jax.plots import files, gaps

PARTS = ("frozen", "joint", "lagging", "family")
TOLERANCE = 1e-6  # nats, of log p - ELBO - KL in part "frozen"


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/posterior_gap", "Where the results are written.")
    parts: str = cli.flag(",".join(PARTS), "Comma-separated names.")
    seed: int = cli.flag(0, "The first seed, of truth, data, start and noise.")
    num_seeds: int = cli.flag(3, "Seeds of joint and lagging.")
    num_rows: int = cli.flag(500, "Training rows; a step sees them all.")
    num_test: int = cli.flag(
        200, "Test rows; of the training rows, those whose KL is measured."
    )
    hidden: int = cli.flag(20, "Tanh units of the truth, the decoder, the encoder.")
    num_steps: int = cli.flag(2000, "Steps of theta, or of phi alone (frozen).")
    num_points: int = cli.flag(14, "Points of each curve.")
    learning_rate: float = cli.flag(1e-2, "Of every Adam.")
    num_samples: int = cli.flag(1, "L, of every draw of the bound.")
    inner_steps: tuple[int, ...] = cli.flag(
        (1, 5, 50), "k, updates of phi per theta's."
    )
    search_steps: int = cli.flag(50, "Of a row's own search (converged).")
    num_nodes: int = cli.flag(200, "A side of the grid of log p(x).")

    def __post_init__(self) -> None:
        """Refuses what makes no experiment.

        Raises:
            ValueError: naming the flag and its value.
        """
        positive = ("num_seeds", "num_rows", "num_test", "hidden", "num_samples")
        for name in (*positive, "search_steps"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"--{name} must be positive, got {value}")
        if not self.learning_rate > 0.0:
            value = self.learning_rate
            raise ValueError(f"--learning_rate must be positive, got {value}")
        stretch = gap_training.STRETCH
        if self.num_steps < stretch or self.num_steps % stretch:
            raise ValueError(
                f"--num_steps must be a multiple of {stretch}, got {self.num_steps}"
            )
        for name, least in (("num_points", 2), ("num_nodes", 30)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        if not self.inner_steps or min(self.inner_steps) < 1:
            raise ValueError(f"--inner_steps must be positive, got {self.inner_steps}")
        unknown = [part for part in self.parts.split(",") if part not in PARTS]
        if unknown:
            raise ValueError(
                f"--parts: {', '.join(unknown)} unknown; known: {', '.join(PARTS)}"
            )


def setting(config: Config) -> gap_training.Setting:
    """What the runs share, from the flags of the same names."""
    names = gap_training.Setting._fields
    return gap_training.Setting(**{name: getattr(config, name) for name in names})


def seeds(config: Config) -> list[int]:
    """Of joint and lagging."""
    return list(range(config.seed, config.seed + config.num_seeds))


def measure(config: Config, part: str) -> Any:
    """The numbers of one part."""
    if part == "family":
        return gap_family.optima()
    model = gap_models.nonlinear(
        hidden=config.hidden,
        num_nodes=config.num_nodes,
        q_nodes=config.num_nodes * 3 // (10 if part == "lagging" else 5),
    )
    shared = setting(config)
    if part == "frozen":
        models = {
            "pPCA, full q": gap_models.linear(full=True),
            "pPCA, diagonal q": gap_models.linear(full=False),
            "tanh decoder, diagonal q": model,
        }
        return gap_training.frozen(models, shared, seed=config.seed)
    if part == "joint":
        return gap_training.joint(
            model, shared, seeds=seeds(config), num_nodes=config.num_nodes
        )
    return gap_training.lagging(
        model, shared, seeds=seeds(config), inner_steps=config.inner_steps
    )


def run(config: Config, folder: pathlib.Path) -> dict[str, Any]:
    """Every part in turn; one that was finished with these flags is read back."""
    result = {}
    ignored = ("workdir", "parts")
    flags = {k: v for k, v in dataclasses.asdict(config).items() if k not in ignored}
    for part in config.parts.split(","):
        result[part] = report.cached(
            folder / f"{part}.json", flags, partial(measure, config, part)
        )
        SAY[part](result[part])
        with cli.user_errors():
            files.save(DRAW[part](result[part]), folder / f"{part}.png")
    return result


def say_frozen(result: dict[str, Any]) -> None:
    """What the ELBO gained and the KL lost."""
    print("\nfrozen: theta stays, phi is trained (nats per row)")
    print(f"{'':<26}{'log p':>10}{'gained':>12}{'KL lost':>12}{'KL left':>10}", end="")
    print(f"{'largest disagreement':>23}")
    for name, curve in result.items():
        print(
            f"{name:<26}{curve['log_p'][-1]:10.4f}{curve['gained'][-1]:12.6f}"
            f"{curve['lost'][-1]:12.6f}{curve['divergence'][-1]:10.4f}"
            f"{max(curve['discrepancy']):23.1e}"
        )


def say_joint(result: list[dict[str, Any]]) -> None:
    """The course of the KLs, by seed."""
    print("\njoint: theta and phi together, test rows (nats per row)")
    names = ("step", "log_p", "bound", "divergence", "to_truth", "posterior_to_truth")
    for curve in result:
        print(f"seed {curve['seed']}, log p of the truth {curve['true_log_p']:.4f}")
        print("".join(f"{name.replace('_', ' '):>20}" for name in names))
        for row in zip(*(curve[name] for name in names), strict=True):
            print(f"{row[0]:20d}" + "".join(f"{value:20.4f}" for value in row[1:]))


def say_lagging(result: dict[str, list[dict[str, Any]]]) -> None:
    """Where each method stands half way (in logarithms) and at the end."""
    print("\nlagging: means over seeds at equal steps of theta (nats per row)")
    columns = ("step", "train log p", "test log p", "train KL", "std")
    print(f"{'':<12}" + "".join(f"{name:>13}" for name in columns))
    for name, curves in result.items():
        steps = curves[0]["step"]
        for at in (len(steps) // 2, len(steps) - 1):
            wanted = ("log_p", "test_log_p", "divergence", "std")
            means = [np.mean([curve[k][at] for curve in curves]) for k in wanted]
            print(f"{name:<12}{steps[at]:13d}" + "".join(f"{v:13.4f}" for v in means))


def say_family(result: dict[str, Any]) -> None:
    """Where each is greatest."""
    print(f"\nfamily: the noise of the truth is {result['true_std']:.2f}")
    for name, label in gap_family.SHOWN.items():
        found = result[name]
        print(f"{label:<28} greatest at {found['std']:.4f}: {found['greatest']:.4f}")
    for name, std in result["joint_std"].items():
        print(f"ascent in noise and encoder, {name:<9} ends at {std:.4f}")


def draw_frozen(result: dict[str, Any]) -> Any:
    """log p, ELBO and KL of each model."""
    names = ("step", "log_p", "bound", "divergence")
    panels = {
        title: tuple(np.array(curve[name]) for name in names)
        for title, curve in result.items()
    }
    return _sandwich(panels, x_label="steps of phi, theta frozen")


def draw_joint(result: list[dict[str, Any]]) -> Any:
    """A column for each seed, and the distances in the last."""
    names = ("step", "log_p", "bound", "divergence")
    panels = {
        f"seed {curve['seed']}": tuple(np.array(curve[name]) for name in names)
        for curve in result
    }
    return _sandwich(panels, x_label="steps of theta and phi")


def _sandwich(panels: dict[str, Any], *, x_label: str) -> Any:
    return gaps.sandwich(panels, x_label=x_label, y_label="nats per row")


def draw_distances(result: list[dict[str, Any]]) -> Any:
    """q and the model's posterior against the true one."""
    shown = {
        "divergence": "KL(q || model's posterior)",
        "to_truth": "KL(q || true posterior)",
        "posterior_to_truth": "KL(model's || true posterior)",
    }
    step = np.array(result[0]["step"])
    lines = {
        label: (step, np.array([curve[name] for curve in result]))
        for name, label in shown.items()
    }
    title = "test rows, mean and range of the seeds"
    return gaps.seeds(
        {title: lines},
        x_label="steps of theta and phi",
        y_label="nats per row",
        log=(title,),
    )


def draw_lagging(result: dict[str, list[dict[str, Any]]]) -> Any:
    """log p(x) less the truth's, train and test, and the KL that is left."""

    def below(name: str, true: str) -> dict[str, Any]:
        return {
            method: (
                np.array(curves[0]["step"]),
                np.array([np.array(c[name]) - c[true] for c in curves]),
            )
            for method, curves in result.items()
        }

    kl = {
        method: (
            np.array(curves[0]["step"]),
            np.array([curve["divergence"] for curve in curves]),
        )
        for method, curves in result.items()
        if method != "exact"
    }
    return gaps.seeds(
        {
            "train: log p(x) less the truth's": below("log_p", "true_log_p"),
            "test: log p(x) less the truth's": below("test_log_p", "true_test_log_p"),
            "train: KL(q || posterior)": kl,
        },
        x_label="steps of theta",
        y_label="nats per row",
        log=("train: KL(q || posterior)",),
    )


def draw_family(result: dict[str, Any]) -> Any:
    """log p and both bounds over the noise."""
    std = np.array(result["std"])
    return gaps.optima(
        {
            label: (std, np.array(result[name]["values"]), result[name]["std"])
            for name, label in gap_family.SHOWN.items()
        },
        x_label="standard deviation of the noise",
        y_label="nats, over the population",
    )


SAY: dict[str, Any] = {
    "frozen": say_frozen,
    "joint": say_joint,
    "lagging": say_lagging,
    "family": say_family,
}
DRAW: dict[str, Any] = {
    "frozen": draw_frozen,
    "joint": draw_joint,
    "lagging": draw_lagging,
    "family": draw_family,
}


def main(config: Config) -> int:
    """Measures, prints, draws and writes; fails where exact numbers disagree."""
    folder = report.claim(config.workdir)
    with jax.enable_x64(True):
        result = run(config, folder)
    if "joint" in result:
        with cli.user_errors():
            files.save(draw_distances(result["joint"]), folder / "distances.png")
    result["largest_discrepancy"] = largest = {
        part: max(max(curve["discrepancy"]) for curve in curves)
        for part, curves in (
            ("frozen", list(result.get("frozen", {}).values())),
            ("joint", result.get("joint", [])),
        )
        if curves
    }
    for part, value in largest.items():
        print(f"{part}: log p - ELBO and KL differ by at most {value:.1e} nats")
    report.write(folder / "posterior_gap.json", config, result)
    if not largest.get("frozen", 0.0) <= TOLERANCE:
        print(f"that is more than {TOLERANCE}: raise --num_nodes")
        return 1
    return 0
