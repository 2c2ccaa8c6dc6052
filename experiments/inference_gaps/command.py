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

from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.inference_gaps import local_q
from experiments.inference_gaps.config import Config, train_configs
from experiments.measures import evidence, measure, whole_run
from experiments.runs import protocol, trained_runs
from vae_jax.estimators import sgvb
from vae_jax.evaluation import gaps
from vae_jax.plots import gaps as gap_plots

SPLITS = ("train", "test")
AT_REST = 0.9  # of the searches, below which a gap is doubted
PARTS = ("approximation", "amortization", "inference")


def main(config: Config) -> int:
    """Trains, measures, prints, writes and draws."""
    folder, results, runs = report.claim(config.workdir), {}, train_configs(config)
    with cli.user_errors():
        first = next(iter(runs.values()))
        data = protocol.load(first)
        protocol.check_likelihood(first, data)
    for name, run in runs.items():
        trained = trained_runs.of_run(*whole_run.train(run), checkpoint="auto")
        results[name] = report.cached(
            folder / f"{name}.json",
            made_with(config, run, data.sha256),
            partial(measure_run, config, trained),
        )
        print(table(name, results[name]), flush=True)
    bars = {
        f"{name}, {split}": [result[split][part] for part in PARTS[:2]]
        for name, result in results.items()
        for split in SPLITS
    }
    figure = gap_plots.stacked(bars, parts=PARTS[:2], x_label="nats per row")
    result, pictures = {"models": results}, {"inference_gaps": figure}
    report.write(folder / "inference_gaps.json", config, result, pictures)
    return 0


def made_with(config: Config, run: TrainConfig, sha256: str) -> dict[str, Any]:
    """What the numbers of a model depend on: not where it is, or on what device."""
    of_run = ("data_dir", "run_flagfile", "run_flags")  # whose effect `run` has
    elsewhere = ("workdir", "data_dir", *cli.display_flags(TrainConfig))
    return {
        "measurement": config.but("workdir", "models", *of_run),
        "run": run.settled.but(*elsewhere),
        "sha256": sha256,
    }


def measure_run(config: Config, trained: trained_runs.Trained) -> dict[str, Any]:
    """What is measured of one trained model, by split."""
    result = {split: _measured(config, trained, split) for split in SPLITS}
    names = *PARTS, *gaps.Gaps._fields
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
    key_bound, key_local, key_is, key_ais = jax.random.split(
        jax.random.key(config.seed), 4
    )
    terms = sgvb.elbo_terms(trained.model, num_samples=config.eval_samples)
    reconstruction, kl = measure.of_rows(
        key_bound, trained, terms, rows, num_decoded=config.eval_samples
    )
    local = measure.of_rows(
        key_local,
        trained,
        local_q.best(trained, config),
        rows,
        num_decoded=1,
        at_once=local_q.ROWS_AT_ONCE,
        batches_a_block=1,
    )
    log_ps = {
        "is_q": evidence.importance_sampling(
            key_is, trained, rows, num_samples=config.importance_samples
        ).log_p,
        **{f"is_best_{name}": q.log_p for name, q in local.items()},
    }
    if config.num_temperatures:
        log_ps["ais"] = evidence.annealed_importance_sampling(
            key_ais,
            trained,
            rows,
            chains=evidence.ChainFlags(
                config.num_temperatures, config.num_chains, config.num_leapfrog
            ),
        ).log_p
    family = "diagonal" if trained.config.posterior == "diag_normal" else "flow"
    return _summary(family, reconstruction - kl, local, log_ps)


def _summary(
    family: str, bound: Any, local: dict[str, local_q.LocalQ], log_ps: dict[str, Any]
) -> dict[str, Any]:
    """The gaps to the largest log p-hat; `family` is the model's own."""
    log_ps = {name: np.asarray(values, np.float64) for name, values in log_ps.items()}
    by = max(log_ps, key=lambda name: log_ps[name].mean())
    bounds = {name: np.asarray(q.bound, np.float64) for name, q in local.items()}
    log_p, bound, best = log_ps[by], np.asarray(bound, np.float64), bounds[family]
    of_gaps = gaps.Gaps(log_p, best, bound)
    measured = {
        **{part: getattr(of_gaps, part) for part in PARTS},
        **of_gaps._asdict(),
        **{f"best_{name}": values for name, values in bounds.items()},
    }
    return {
        **{name: float(values.mean()) for name, values in measured.items()},
        **{
            f"{name}_standard_error": measure.standard_error(values)
            for name, values in measured.items()
        },
        "log_p_by": by,
        "log_p_hats": {name: float(values.mean()) for name, values in log_ps.items()},
        "family": family,
        "num_images": len(bound),
        "converged": {name: float(np.mean(q.converged)) for name, q in local.items()},
    }


def table(name: str, result: dict[str, Any]) -> str:
    """One model's figures as lines of text."""
    columns = [report.field(f"{name}: nats per row", "quantity", width=29)]
    for split in SPLITS:
        columns.append(report.field(split, split, ".3f"))
        columns.append(report.field("s.e.", f"{split}_error", ".3f", 7))
    rows = [
        {
            "quantity": quantity,
            **{split: result[split][quantity] for split in SPLITS},
            **{f"{s}_error": result[s][f"{quantity}_standard_error"] for s in SPLITS},
        }
        for quantity in ("log_p", "best_flow", "best_diagonal", "bound", *PARTS)
    ]
    lines = [report.table(columns, rows)]
    for split in SPLITS:
        of_split = result[split]
        hats = ", ".join(f"{k} {v:.3f}" for k, v in of_split["log_p_hats"].items())
        rest = ", ".join(f"{k} {v:.2f}" for k, v in of_split["converged"].items())
        lines.append(f"  {split}: log p-hat by {hats}; searches at rest: {rest}")
        if of_split["converged"][of_split["family"]] < AT_REST:
            lines.append(
                f"  warning, {split}: few searches of the model's own family came to "
                "rest: the amortization gap is larger; try another --local_rate or "
                "--flow_rate"
            )
    return "\n".join(lines)
