r"""Why the bound is below log p(x): the family of q, the encoder, or unseen rows.

    FLAGS=experiments/flags/inference_gaps
    python -m experiments.inference_gaps --flagfile=$FLAGS/quick.flags

Table 2 of Cremer et al. 2018 (arXiv:1801.03558). Trains one model for each name in
--models, equal in all but q, with `experiments.train` (--run_flagfile, --run_flags):

  diagonal       a diagonal normal
  wide_encoder   the same, with --wide_encoder's hidden units in the encoder alone
  flow           --flow_layers affine couplings after the normal, with networks that
                 read the encoder's output as well

For --num_images rows of the training and of the test split, spread over each, it then
searches the best q of each row by itself, a diagonal normal and a normal with a flow
whose networks are the row's own, and reports

  approximation  log p-hat - L[q*], q* of the model's own family
  amortization   L[q*] - L[q]
  inference      log p-hat - L[q], the sum

log p-hat is the largest mean among the estimators, each of which is below log p(x) in
expectation: importance sampling from q, from each q*, and, with --num_temperatures,
annealed importance sampling. Train less test is the generalization part. Writes
inference_gaps.json, a JSON file for each model (one that is there and was made with the
same flags is read back) and inference_gaps.png; runs are in folders of their own below,
and an interrupted command continues.
"""

import dataclasses
import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.inference_gaps import local_fits
from experiments.measures import evidence as estimates
from experiments.measures import measure, whole_run
from experiments.runs import comparison, protocol, trained_runs
from vae_jax.estimators import sgvb
from vae_jax.evaluation import gaps
from vae_jax.plots import files
from vae_jax.plots import gaps as gap_plots

MODELS = ("diagonal", "wide_encoder", "flow")
SPLITS = ("train", "test")
PARTS = ("approximation", "amortization", "inference")
AT_REST = 0.9  # of the searches, below which a gap is doubted


@dataclasses.dataclass(frozen=True)
class Config:
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/inference_gaps", "Where the runs are written.")
    run_flagfile: str = cli.flag("", "Flag file of experiments.train for every run.")
    run_flags: str = cli.flag(
        "", "More flags of experiments.train for every run, separated by spaces."
    )
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    models: str = cli.flag(",".join(MODELS), "Comma-separated names.")
    wide_encoder: tuple[int, ...] = cli.flag(
        (500, 500), "Hidden units of the encoder of wide_encoder."
    )
    flow_layers: int = cli.flag(2, "Couplings of the flow.")
    num_images: int = cli.flag(100, "Rows of each split, spread over it.")
    eval_samples: int = cli.flag(1000, "Samples per row of each bound.")
    importance_samples: int = cli.flag(5000, "Samples per row of log p-hat, k.")
    num_temperatures: int = cli.flag(
        0, "Temperatures of annealed importance sampling; 0 leaves it out."
    )
    num_chains: int = cli.flag(8, "Its chains per row.")
    num_leapfrog: int = cli.flag(10, "Leapfrog steps of its transitions.")
    local_samples: int = cli.flag(10, "Samples per step of the search of each q*.")
    local_steps: int = cli.flag(200, "Steps of a round of that search.")
    local_rounds: int = cli.flag(20, "Rounds at most.")
    local_rate: float = cli.flag(0.02, "Where the rate of a round's Adam starts.")
    flow_rate: float = cli.flag(
        0.001, "The same where the search starts at the networks of the model's flow."
    )
    tolerance: float = cli.flag(0.05, "Nats by which the last round may change L[q*].")
    seed: int = cli.flag(0, "Seed of every measurement.")

    def __post_init__(self) -> None:
        """Refuses what no comparison can be made of.

        Raises:
            ValueError: naming the flag and its value.
            UsageError: for --run_flagfile and --run_flags, as `comparison.base`.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("num_temperatures", "seed") else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"--{field.name} must be {least} or more, got {value}")
        for name in ("local_rate", "flow_rate", "tolerance"):
            if not getattr(self, name) > 0.0:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        if self.eval_samples % self.local_samples:
            raise ValueError(
                f"--eval_samples must be a multiple of --local_samples="
                f"{self.local_samples}, got {self.eval_samples}"
            )
        measure.check_importance_samples(self.importance_samples)
        train_configs(self)


def train_configs(config: Config) -> dict[str, TrainConfig]:
    """The run of each model.

    Raises:
        ValueError: for a model that is unknown, or flags that no run can have.
    """
    own = {
        "diagonal": {},
        "wide_encoder": {"encoder_hidden": config.wide_encoder},
        "flow": {
            "posterior": "coupling",
            "flow_layers": config.flow_layers,
        },
    }
    shared = comparison.base(
        config.run_flagfile,
        config.run_flags,
        taken=("workdir", "data_dir", "posterior"),
    )
    local_fits.check(shared)
    if shared.algorithm == "aevb" and shared.estimator == "sgvb_b":
        own["flow"]["estimator"] = "sgvb_a"  # the KL of a flow has no closed form
    found = {}
    for name in config.models.split(","):
        if name not in own:
            raise ValueError(f"--models: {name} unknown; known: {', '.join(MODELS)}")
        found[name] = dataclasses.replace(
            shared,
            workdir=str(pathlib.Path(config.workdir) / name),
            data_dir=config.data_dir,
            progress=False,
            **own[name],
        )
    return found


def main(config: Config) -> int:
    """Trains, measures, prints, writes and draws."""
    folder, results = report.claim(config.workdir), {}
    runs = train_configs(config)
    with cli.user_errors():
        first = next(iter(runs.values()))
        data = protocol.load(first)
        protocol.check_likelihood(first, data)
    for name, run in runs.items():
        trained = trained_runs.of_run(*whole_run.train(run), checkpoint="auto")
        results[name] = report.cached(
            folder / f"{name}.json",
            {
                "measurement": dataclasses.asdict(config) | {"models": ""},
                "run": dataclasses.asdict(run.settled),
                "sha256": data.sha256,
            },
            partial(_gaps, config, trained),
        )
        print(table(name, results[name]), flush=True)
    bars = {
        f"{name}, {split}": (
            found[split]["approximation"],
            found[split]["amortization"],
        )
        for name, found in results.items()
        for split in SPLITS
    }
    figure = gap_plots.stacked(
        bars, parts=("approximation", "amortization"), x_label="nats per row"
    )
    with cli.user_errors():
        files.save(figure, folder / "inference_gaps.png")
    report.write(folder / "inference_gaps.json", config, {"models": results})
    return 0


def _gaps(config: Config, trained: trained_runs.Trained) -> dict[str, Any]:
    """What is measured of one trained model, by split."""
    result = {split: _measured(config, trained, split) for split in SPLITS}
    names = ("log_p", "best_bound", "bound", *PARTS)
    less = {name: result["train"][name] - result["test"][name] for name in names}
    return {**result, "train_minus_test": less}


def _measured(
    config: Config, trained: trained_runs.Trained, split: str
) -> dict[str, Any]:
    """Means over the rows of one split, nats."""
    with cli.user_errors():
        rows = trained_runs.spread_rows(
            trained, split=split, num_images=config.num_images
        )
    prepared, names = trained.data.prepared, ("bound", "fits", "is", "ais")
    keys = dict(
        zip(names, jax.random.split(jax.random.key(config.seed), 4), strict=True)
    )
    evaluate = measure.over_rows(
        sgvb.elbo_terms(trained.model, num_samples=config.eval_samples),
        prepared.value,
        num_decoded=config.eval_samples,
    )
    reconstruction, kl = evaluate(keys["bound"], trained.params, rows)
    bound = np.asarray(reconstruction - kl, np.float64)
    fits = local_fits.over_rows(
        trained,
        local_fits.Settings(
            *(getattr(config, name) for name in local_fits.Settings._fields)
        ),
    )(keys["fits"], trained.params, rows)
    estimated = {
        "is_q": estimates.importance_sampling(
            keys["is"], trained, rows, num_samples=config.importance_samples
        ).log_p,
        **{f"is_best_{name}": fit.log_p for name, fit in fits.items()},
    }
    if config.num_temperatures:
        estimated["ais"] = estimates.annealed_importance_sampling(
            keys["ais"],
            trained,
            rows,
            chains=estimates.ChainFlags(
                config.num_temperatures, config.num_chains, config.num_leapfrog
            ),
        ).log_p
    return _summary(trained.config.posterior, bound, fits, estimated)


def _summary(
    posterior: str,
    bound: np.ndarray,
    fits: dict[str, local_fits.Fitted],
    estimated: dict[str, Any],
) -> dict[str, Any]:
    log_ps = {k: np.asarray(v, np.float64) for k, v in estimated.items()}
    by = max(log_ps, key=lambda name: log_ps[name].mean())
    log_p = log_ps[by]
    family = "diagonal" if posterior == "diag_normal" else "flow"
    best = fits[family].bound
    between = gaps.Between(jnp.asarray(log_p), jnp.asarray(log_p))
    each = gaps.Gaps(between, best, jnp.asarray(bound))
    measured = {
        "approximation": each.approximation.lower,
        "amortization": each.amortization,
        "inference": each.inference.lower,
        "log_p": log_p,
        "best_bound": best,
        "bound": bound,
        **{f"best_{name}": fit.bound for name, fit in fits.items()},
    }
    found: dict[str, Any] = {}
    for name, values in measured.items():
        values = np.asarray(values, np.float64)
        found[name] = float(values.mean())
        found[f"{name}_standard_error"] = measure.standard_error(values)
    return found | {
        "log_p_by": by,
        "log_p_hats": {name: float(values.mean()) for name, values in log_ps.items()},
        "family": family,
        "num_images": len(bound),
        "converged": {k: float(np.mean(fit.converged)) for k, fit in fits.items()},
    }


def table(name: str, result: dict[str, Any]) -> str:
    """One model's figures as lines of text."""
    lines = [f"{name}: nats per row{'train':>12}{'s.e.':>8}{'test':>11}{'s.e.':>8}"]
    shown = ("log_p", "best_flow", "best_diagonal", "bound", *PARTS)
    width = len(lines[0]) - 39
    for row in shown:
        figures = "".join(
            f"{result[split][row]:{12 - i}.3f}"
            f"{result[split][f'{row}_standard_error']:8.3f}"
            for i, split in enumerate(SPLITS)
        )
        lines.append(f"{row:<{width}}{figures}")
    for split in SPLITS:
        found = result[split]
        hats = ", ".join(f"{k} {v:.3f}" for k, v in found["log_p_hats"].items())
        rest = ", ".join(f"{k} {v:.2f}" for k, v in found["converged"].items())
        lines.append(f"  {split}: log p-hat by {hats}; searches at rest: {rest}")
        if found["converged"][found["family"]] < AT_REST:
            lines.append(
                f"  warning, {split}: few searches of the model's own family came to "
                "rest: the amortization gap is larger; try another --local_rate or "
                "--flow_rate"
            )
    return "\n".join(lines)
