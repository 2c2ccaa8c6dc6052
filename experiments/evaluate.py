r"""Measures a trained model: its bound, log p(x), and what its latents carry.

    python -m experiments.evaluate --workdir=runs/digits
    python -m experiments.evaluate --workdir=runs/digits --evidence=is,ais,bdmc
    python -m experiments.evaluate --workdir=runs/digits --input=rows.npz

Prints and writes to the workdir (evaluation_SPLIT.json and .txt) for one split: ELBO,
reconstruction and KL, KL per latent, log p(x) by importance sampling with its standard
error and effective sample size, active units; stamped with the protocol. What is of
some --num_images, of one --member alone, of another --checkpoint or of the rows of an
--input file has that in its files' names.

--evidence names more estimators of log p(x), printed side by side with what speaks
against them: annealed importance sampling (from below), bidirectional Monte Carlo (both
sides, on images that the model draws) and appendix D of the AEVB paper.

Of a ladder also what each layer is worth: its KL, its active units, and the bound with
draws of the prior in the place of its posterior; and the bound as the latents of the
least KL are replaced so, first of all.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax

from experiments.choices import sweep
from experiments.command import cli, report
from experiments.measures import evidence as estimates
from experiments.measures import layers, measure
from experiments.runs import programs, rundir, trained_runs

MOST_LISTED = 200  # latents whose KL stands in a line
OF_IS = (  # named without their method, which has been the default's from the start
    *("log_p", "log_p_standard_error", "log_p_sampling_error"),
    "log_p_bits_per_dimension",
    *("effective_sample_size", "smallest_effective_sample_size"),
)


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.SplitFlags):
    """One evaluation; every field is a flag."""

    TAKES_CONTEXT: ClassVar = True
    member: int = cli.flag(
        -1,
        "Which of the runs that trained together (--num_seeds, --sweep), from 0; -1: "
        "all of them, with mean and standard deviation.",
        least=-1,
    )
    eval_samples: int = cli.flag(100, "Samples per row of the bound.", least=1)
    importance_samples: int = cli.flag(
        5000, "Samples per row of log p(x), k; 0 leaves it out.", least=0
    )
    evidence: tuple[str, ...] = cli.flag(
        ("is",), "Estimators of log p(x).", choices=estimates.METHODS
    )
    num_temperatures: int = cli.flag(1000, "Temperatures of ais and bdmc, T.", least=1)
    num_chains: int = cli.flag(16, "Chains per row of ais and bdmc.", least=1)
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
    ablation_samples: int = cli.flag(
        10,
        "Samples per row of the bound without one layer of a ladder; 0 leaves it out.",
        least=0,
    )
    num_images: int = cli.flag(
        0, "Images of the split, at equal distances; 0 for all.", least=0
    )
    seed: int = cli.flag(0, "Seed of the samples.", least=0)

    def refuse(self) -> None:
        """Refuses numbers that no estimator reads."""
        super().refuse()
        measure.check_importance_samples(self.importance_samples)
        self.refuse_unread("evidence", self.evidence, estimates.READERS)

    @property
    def methods(self) -> dict[str, estimates.Method]:
        """The estimators of log p(x) that are asked for."""
        chains = estimates.ChainFlags(
            *(getattr(self, name) for name in estimates.ChainFlags._fields)
        )
        methods = {
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
        asked = [n for n in self.evidence if n != "is" or self.importance_samples]
        return {name: methods[name] for name in asked}


def evaluate(config: Config) -> dict[str, Any]:
    """All measurements of one split, under the names that are true of them.

    Of runs that trained together: of each, with means and standard deviations over the
    seeds (`sweep.summary`).
    """
    return _evaluate(config, config.load_asked())


@programs.compiled_once()
def _evaluate(config: Config, trained: list[trained_runs.Trained]) -> dict[str, Any]:
    first = trained[0]
    if first.at_context is not None and "bdmc" in config.methods:
        raise cli.UsageError(
            "--evidence=bdmc measures images that the model draws, and this run's ask "
            "for a context: take is, ais or hmc_density"
        )
    with cli.user_errors():
        num_images = config.num_rows(first, "num_images")
    measured = []
    for number, one in enumerate(trained, 1):
        measured.append(_measured(config, one))
        if len(trained) > 1:  # each takes as long as all that a single run has to say
            name, bound = next(iter(measured[-1].items()))
            print(f"run {number} of {len(trained)}: {name} {bound:.4f}", flush=True)
    result = measured[0]
    if len(trained) > 1:
        whole = rundir.read_config(first.config.directory())
        result = sweep.summary(whole, measured)
    return {
        **result,
        "split": config.measured_split(first),
        "num_images": num_images,
        "step": first.step,
        "member": config.member,
        "checkpoint": config.checkpoint,
        "eval_samples": config.eval_samples,
        "importance_samples": config.importance_samples,
        "seed": config.seed,
        "protocol": first.stamp(),
    }


def _measured(config: Config, trained: trained_runs.Trained) -> dict[str, Any]:
    root = jax.random.key(config.seed)
    key_bound, *keys = jax.random.split(root, 1 + len(estimates.METHODS))
    split = config.measured_split(trained)
    which = {"split": split, "num_images": config.num_images}
    result: dict[str, Any] = measure.bound(
        key_bound, trained, num_samples=config.eval_samples, **which
    )
    evidence, methods = {}, config.methods
    if trained.has_point_mass:
        methods.pop("is", None)  # of a point mass it is the ELBO
    if methods and trained.data.quantity != "cross-entropy":
        evidence = estimates.side_by_side(keys, trained, methods, **which)
        result |= {k: v for k, v in evidence.get("is", {}).items() if k in OF_IS}
    result |= measure.latents(trained, **which)
    if trained.model.hierarchy is not None and config.ablation_samples:
        # A key of its own, so that what other figures draw stays as it was.
        result["ablation"] = layers.measured(
            jax.random.fold_in(root, 1 + len(estimates.METHODS)),
            trained,
            num_samples=config.ablation_samples,
            **which,
        )
    return {**result, "evidence": evidence}


def table(result: dict[str, Any]) -> str:
    """The measurements as lines of text, the protocol first."""
    lines = [*trained_runs.heading(result), ""]
    lines.extend(_of_many(result) if "runs" in result else _of_one(result))
    if result["protocol"]["quantity"] == "cross-entropy":
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
        if "ablation" in run:
            lines.extend(["", f"{run['name']}:", *layers.table(run["ablation"])])
    return lines


def _of_one(result: dict[str, Any]) -> list[str]:
    lines = report.numbers({n: x for n, x in result.items() if isinstance(x, float)})
    if "kl_per_latent" in result:
        kls = result["kl_per_latent"]
        per_latent = " ".join(f"{kl:.3f}" for kl in kls[:MOST_LISTED])
        more = len(kls) - MOST_LISTED
        rest = f" and {more} more, of which the .json tells" if more > 0 else ""
        lines.append(f"  kl_per_latent: {per_latent}{rest}")
    elif "perplexity" in result:
        lines.append("  q is a point mass: the ELBO is exact, and all that it says")
    elif "active_units" not in result:
        lines.append(f"  {measure.NO_KL_PER_LATENT}")
    lines.append("")
    if result["evidence"]:
        lines.extend([*estimates.table(result["evidence"]), ""])
    if "ablation" in result:
        lines.extend([*layers.table(result["ablation"]), ""])
    return lines


def main(config: Config) -> int:
    """Measures, prints and writes."""
    trained = config.load_asked()
    result, (first, *_) = _evaluate(config, trained), trained
    text = table(result)
    kind = "evaluation" if config.input else f"evaluation_{config.split}"
    path = config.result_path(first, kind, config.rows_part(first, "num_images"))
    print(text)
    report.write_both(path, config, result, text)
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
