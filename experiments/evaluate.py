r"""Measures a trained model: its bound, log p(x), and what its latents carry.

    python -m experiments.evaluate --workdir=runs/digits
    python -m experiments.evaluate --workdir=runs/digits --evidence=is,ais,bdmc

Prints and writes to the workdir (evaluation_SPLIT.json and .txt) for one split: ELBO,
reconstruction and KL, KL per latent, log p(x) by importance sampling with its standard
error and effective sample size, active units; stamped with the protocol. What is of
some --num_images or of one --member alone has that in its files' names.

--evidence names more estimators of log p(x), printed side by side with what speaks
against them: annealed importance sampling (from below), bidirectional Monte Carlo (both
sides, on images that the model draws) and appendix D of the AEVB paper.
"""

import dataclasses
import pathlib
from functools import partial
from typing import Any

import jax

from experiments.choices import sweep
from experiments.command import cli, report
from experiments.measures import evidence as estimates
from experiments.measures import measure
from experiments.runs import protocol, rundir, trained_runs

OF_IS = (  # named without their method, which has been the default's from the start
    *("log_p", "log_p_standard_error", "log_p_sampling_error"),
    *("effective_sample_size", "smallest_effective_sample_size"),
)
OF_EVIDENCE = (  # flags that the estimators of log p(x) read
    *("importance_samples", "num_temperatures", "num_chains", "num_leapfrog"),
    *("schedule", "base", "num_simulated", "hmc_samples"),
)


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One evaluation; every field is a flag."""

    member: int = cli.flag(
        -1,
        "Which of the runs that trained together (--num_seeds, --sweep), from 0; -1: "
        "all of them, with mean and standard deviation.",
        least=-1,
    )
    split: str = cli.flag("test", "Split.", choices=("train", "valid", "test"))
    eval_samples: int = cli.flag(100, "Samples per image of the bound.", least=1)
    importance_samples: int = cli.flag(
        5000, "Samples per image of log p(x), k; 0 leaves it out.", least=0
    )
    evidence: str = cli.flag(
        "is", "Comma-separated estimators of log p(x): is, ais, bdmc, hmc_density."
    )
    num_temperatures: int = cli.flag(1000, "Temperatures of ais and bdmc, T.", least=1)
    num_chains: int = cli.flag(16, "Chains per image of ais and bdmc.", least=1)
    num_leapfrog: int = cli.flag(10, "Leapfrog steps of a transition.", least=1)
    schedule: str = cli.flag(
        "sigmoid", "Temperatures of ais and bdmc.", choices=estimates.SCHEDULES
    )
    base: str = cli.flag(
        "prior", "Where the chains of ais and bdmc start.", choices=("prior", "q")
    )
    num_simulated: int = cli.flag(100, "Images that the model draws for bdmc.", least=1)
    hmc_samples: int = cli.flag(
        500,
        "Draws of the chain that hmc_density fits to; as many before and after.",
        least=1,
    )
    num_images: int = cli.flag(
        0, "Images of the split, at equal distances; 0 for all.", least=0
    )
    seed: int = cli.flag(0, "Seed of the samples.", least=0)

    def check(self) -> None:
        """Refuses numbers of samples, and estimators, that there are none of."""
        measure.check_importance_samples(self.importance_samples)
        estimates.parse(self.evidence)

    @property
    def methods(self) -> dict[str, estimates.Method]:
        """The estimators of log p(x) that are asked for."""
        chains = estimates.ChainFlags(
            *(getattr(self, name) for name in estimates.ChainFlags._fields)
        )
        known = {
            "is": partial(
                estimates.importance_sampling, num_samples=self.importance_samples
            ),
            "ais": partial(estimates.annealed_importance_sampling, chains=chains),
            "bdmc": partial(
                estimates.bidirectional, chains=chains, num_simulated=self.num_simulated
            ),
            "hmc_density": partial(
                estimates.posterior_density,
                num_samples=self.hmc_samples,
                num_leapfrog=self.num_leapfrog,
            ),
        }
        names = estimates.parse(self.evidence)
        return {n: known[n] for n in names if n != "is" or self.importance_samples}


def evaluate(config: Config) -> dict[str, Any]:
    """All measurements of one split, under the names that are true of them.

    Of runs that trained together: of each, with means and standard deviations over the
    seeds (`sweep.summary`).
    """
    trained = [config.load()] if config.member >= 0 else config.load_all()
    with cli.user_errors():
        trained_runs.rows(trained[0], split=config.split, num_images=config.num_images)
    first, measured = trained[0], [_measured(config, one) for one in trained]
    result = measured[0]
    if len(trained) > 1:
        whole = rundir.read_config(pathlib.Path(config.workdir).expanduser())
        result = sweep.summary(whole, measured)
    return {
        **result,
        "split": config.split,
        "num_images": config.num_images
        or len(getattr(first.data.prepared, config.split)),
        "step": first.step,
        "member": config.member,
        "checkpoint": config.checkpoint,
        "eval_samples": config.eval_samples,
        "importance_samples": config.importance_samples,
        "evidence_settings": {name: getattr(config, name) for name in OF_EVIDENCE},
        "seed": config.seed,
        "protocol": protocol.stamp(first.config, first.data),
        "environment": report.environment(),
    }


def _measured(config: Config, trained: trained_runs.Trained) -> dict[str, Any]:
    root = jax.random.key(config.seed)
    key_bound, *keys = jax.random.split(root, 1 + len(estimates.METHODS))
    which = {"split": config.split, "num_images": config.num_images}
    result: dict[str, Any] = measure.bound(
        key_bound, trained, num_samples=config.eval_samples, **which
    )
    evidence = {}
    if config.methods and trained.data.quantity != "cross-entropy":
        evidence = estimates.side_by_side(keys, trained, config.methods, **which)
        result |= {k: v for k, v in evidence.get("is", {}).items() if k in OF_IS}
    return {**result, **measure.latents(trained, **which), "evidence": evidence}


def table(result: dict[str, Any]) -> str:
    """The measurements as lines of text, the protocol first."""
    stamp = result["protocol"]
    sizes = "/".join(str(size) for size in stamp["split_sizes"].values())
    lines = [
        f"{stamp['dataset']} ({stamp['origin']})",
        f"train/valid/test {sizes}, binarization {stamp['binarization']}, data seed "
        f"{stamp['data_seed']}, likelihood {stamp['likelihood']}",
        f"{result['split']} split, {result['num_images']} images, step "
        f"{result['step']}; {stamp['quantity']}, {stamp['units']}",
        "",
    ]
    lines.extend(_of_many(result) if "runs" in result else _of_one(result))
    if stamp["quantity"] == "cross-entropy":
        lines.append(
            "Targets are not binary: these are cross-entropies, and log p(x) of no "
            "Bernoulli model; --binarization=static or dynamic gives one."
        )
    return "\n".join(lines)


def _of_many(result: dict[str, Any]) -> list[str]:
    lines = sweep.lines(result)
    for run in result["runs"]:
        if run["evidence"]:
            lines.extend(["", f"{run['name']}:", *estimates.table(run["evidence"])])
    return lines


def _of_one(result: dict[str, Any]) -> list[str]:
    lines = [
        f"  {name:<32}{value:14.4f}"
        for name, value in result.items()
        if isinstance(value, float)
    ]
    if "kl_per_latent" in result:
        per_latent = " ".join(f"{kl:.3f}" for kl in result["kl_per_latent"])
        lines.append(f"  kl_per_latent: {per_latent}")
    else:
        lines.append("  no KL per latent: q does not factorize over the latents")
    lines.append("")
    if result["evidence"]:
        lines.extend([*estimates.table(result["evidence"]), ""])
    return lines


def _name(config: Config, result: dict[str, Any]) -> str:
    """Of the files: that of a part of the split or of the runs is a name of its own."""
    name = f"evaluation_{config.split}"
    if result["num_images"] < result["protocol"]["split_sizes"][config.split]:
        name += f"_{result['num_images']}_images"
    whole = rundir.read_config(pathlib.Path(config.workdir).expanduser())
    if config.member >= 0 and whole.trains_many:
        name += f"_member_{config.member}"
    return name


def main(config: Config) -> int:
    """Measures, prints and writes."""
    result = evaluate(config)
    folder = pathlib.Path(config.workdir).expanduser()
    with cli.user_errors():
        path = folder / f"{_name(config, result)}.json"
        report.write_json(path, result)
        report.write_text(path.with_suffix(".txt"), table(result))
    print(table(result))
    print(f"written to {path} and {path.with_suffix('.txt').name}")
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
