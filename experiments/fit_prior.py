r"""Fits a prior to a trained model's codes, and reports the bound with the old and it.

    python -m experiments.fit_prior --workdir=runs/digits --prior=flow
    python -m experiments.evaluate --workdir=runs/digits/fitted_flow

Decoder and encoder stay as they are: the bound's only term in the prior is the mean of
log p(z) over z ~ q(z | x) of the training rows, and that is what is climbed. Of the
epochs, the one counts that is best on the validation split. ELBO and importance-sampled
log p(x) are printed with both priors on the same images with the same noise, with the
standard error of their difference.

Writes a workdir of its own (--out), which evaluate, generate, export and the others
read as any: flags.txt names the prior, the checkpoint holds the model, and
fit_prior.json the comparison.
"""

import dataclasses
import pathlib

import jax

from experiments.choices import rows
from experiments.choices.densities import PRIORS
from experiments.command import cli, report
from experiments.measures import fitted_prior, measure
from experiments.runs import fit, protocol, rundir, runs, trained_runs
from vae_jax.training import checkpoints, parallel

OF_PRIOR = ("prior_layers", "prior_units", "num_components")  # as train's


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One fit; every field is a flag."""

    out: str = cli.flag("", "The new workdir; WORKDIR/fitted_PRIOR if empty.")
    prior: str = cli.flag("flow", "What is fitted.", choices=fitted_prior.FITTED)
    prior_layers: int = cli.flag(
        8, "Flows of --prior=flow and autoregressive.", least=1
    )
    prior_units: int = cli.flag(
        128, "Units of both hidden layers of each of them.", least=1
    )
    num_components: int = cli.flag(50, "Components of --prior=normal_mixture.", least=1)
    learning_rate: float = cli.flag(1e-3, "Of Adam.", above=0)
    num_epochs: int = cli.flag(100, "Passes over the training rows.", least=1)
    seed: int = cli.flag(0, "Of the prior's start, order and noise.", least=0)
    eval_samples: int = cli.flag(100, "Samples per row of the ELBO.", least=1)
    importance_samples: int = cli.flag(1000, "Samples per row of log p(x).", least=1)
    num_images: int = cli.flag(
        1000,
        "Images of each split that are measured, at equal distances, at most; 0 for "
        "all.",
        least=0,
    )

    def refuse(self) -> None:
        """Refuses samples that do not divide, and flags that the prior does not read.

        Raises:
            ValueError: naming the flag.
        """
        measure.check_importance_samples(self.importance_samples)
        table = {name: PRIORS[name] for name in fitted_prior.FITTED}
        readers = rows.readers(table)
        of_prior = {flag: readers[flag] for flag in OF_PRIOR}
        self.refuse_unread("prior", (self.prior,), of_prior)


def main(config: Config) -> int:
    """Fits, measures, prints and writes."""
    old = config.load()
    out = pathlib.Path(config.out or config.result_path(old, f"fitted_{config.prior}"))
    out = out.expanduser()
    if (out / rundir.FLAGS).exists():
        raise cli.UsageError(
            f"--out={out} holds a run: choose another folder, or remove it"
        )
    with cli.user_errors():
        fitted_prior.check(old, config.prior)
        protocol.check_likelihood(old.config, old.data)
        of_prior = config.some(("prior", *OF_PRIOR))
        flags = fitted_prior.new_config(old.config, str(out), **of_prior)
    report.claim(out, flag="out")
    with cli.user_errors():
        fitted = fitted_prior.fit(
            old,
            flags,
            learning_rate=config.learning_rate,
            num_epochs=config.num_epochs,
            seed=config.seed,
        )
    changes = fitted_prior.compared(
        jax.random.key(config.seed),
        old,
        fitted.trained,
        num_samples=config.eval_samples,
        importance_samples=config.importance_samples,
        num_images=config.num_images,
    )
    print(f"--prior={config.prior}, epoch {fitted.epoch} of {config.num_epochs}")
    print(fitted_prior.table(changes))
    run = fit.claim(flags)
    with rundir.storage_errors(out):
        saved = runs.with_params(run, fitted.trained.params, step=old.step)
        folder = out / rundir.CHECKPOINTS
        checkpoints.save(folder, saved.step, parallel.local(saved))
    result = {
        "source": str(old.config.directory()),
        "member": old.member,
        "step": old.step,
        "epoch": fitted.epoch,
        "mean_log_prior": fitted.curve,
        "changes": changes,
        "protocol": old.stamp(),
    }
    report.write(out / "fit_prior.json", config, result)
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
