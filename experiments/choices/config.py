"""The flags of a training run."""

import dataclasses
import pathlib
from typing import Any, ClassVar

from experiments.choices import ladders, refusals, rows
from experiments.choices.algorithms import ALGORITHMS, OPTIMIZERS, SCHEDULES
from experiments.choices.data_flags import DataFlags
from experiments.choices.densities import LIKELIHOODS
from experiments.choices.model_flags import ModelFlags
from experiments.choices.objective_flags import ObjectiveFlags
from experiments.command import cli
from vae_jax.data import sources


@dataclasses.dataclass(frozen=True)
class Config(ObjectiveFlags, ModelFlags, DataFlags):  # fields in reverse order
    """One training run: a function of these flags and of nothing else."""

    GONE: ClassVar = {
        "top_latents": cli.Gone(
            "0",
            "a second layer of N latents is --ladder=NUM_LATENTS,N, with one pass from "
            "the top down",
        )
    }
    optimizer: str = cli.flag(
        "adam",
        "Optimizer; adamw and adamaxw are adam and adamax with --decoupled_decay.",
        choices=OPTIMIZERS,
        section="Optimization",
    )
    adam_epsilon: float = cli.flag(1e-8, "Added to the root (adam, adamw).", above=0)
    decoupled_decay: float = cli.flag(
        0.01,
        "Times the step size, the share of every parameter of p and q, biases too, "
        "that a step takes away (adamw, adamaxw); no prior on theta, as --weight_decay "
        "is.",
        least=0,
    )
    learning_rate: float = cli.flag(1e-3, "Step size, before the schedule.", above=0)
    schedule: str = cli.flag(
        "constant",
        "Step size over time; staircase holds 10^(-i/7) for 3^i epochs, i = 0, 1, ...",
        choices=SCHEDULES,
    )
    warmup_steps: int = cli.flag(
        0, "Steps over which the step size rises to the schedule's.", least=0
    )
    final_rate: float = cli.flag(
        0.0, "Share of the step size that is left at the end (cosine).", least=0
    )
    average_decay: float = cli.flag(
        0.0,
        "Decay of a moving average of the parameters, which is then what is validated, "
        "kept as best and evaluated, with the raw weights beside it; 0: none.",
        least=0,
        below=1,
    )
    clip_norm: float = cli.flag(
        0.0, "Greatest norm of the gradient; 0 for no limit.", least=0
    )
    skip_norm: float = cli.flag(
        0.0,
        "Skip, and count, steps whose bound or gradient is not finite, or whose "
        "gradient's norm is above this; inf: what is not finite alone; 0: none, and "
        "the run ends at a bound that is not finite.",
        least=0,
        infinite=True,
    )
    batch_size: int = cli.flag(100, "Examples per step, M.", least=1)
    num_epochs: int = cli.flag(300, "Passes over the training split.", least=1)
    early_stopping: int = cli.flag(
        0,
        "Stop after that many epochs without a better validation bound; 0: never.",
        least=0,
    )
    watch: str = cli.flag(
        "elbo",
        "Validation bound that early stopping and the best weights go by: the ELBO, "
        "or the bound of --valid_samples importance samples.",
        choices=("elbo", "importance"),
    )
    seed: int = cli.flag(0, "Seed of weights, order and noise.", least=0)
    start_from: str = cli.flag(
        "",
        "Folder of a trained run of the same model, from whose parameters, as evaluate "
        "takes them, this one goes on: by another bound or rate, or on other data.",
    )
    num_seeds: int = cli.flag(
        1,
        "Runs that train together, from --seed on.",
        least=1,
        section="Several runs in one program",
    )
    sweep: str = cli.flag(
        "",
        "NAME=V1,V2,...: runs that differ in --learning_rate, --beta, --penalty or "
        "--kl_warmup train together too.",
    )
    num_devices: int = cli.flag(
        1,
        "Devices that share each batch; 0 for all there are.",
        display=True,
        least=0,
        section="Where it runs: to rounding, none of these changes a number",
    )
    shard_data: bool = cli.flag(
        False, "Share the training rows out among the devices.", display=True
    )
    stream_steps: int = cli.flag(
        0,
        "Keep the training rows on the host and send those of so many steps at a time; "
        "0: all rows lie on the device.",
        display=True,
        least=0,
    )
    coordinator_address: str = cli.flag(
        "",
        "HOST:PORT of process 0, of a run of several processes; auto where the cluster "
        "tells it.",
        display=True,
    )
    num_processes: int = cli.flag(1, "Processes of the run.", display=True, least=1)
    process_id: int = cli.flag(0, "This process, from 0 on.", display=True, least=0)
    eval_every: int = cli.flag(
        1, "Epochs between validation bounds.", least=1, section="Watching"
    )
    valid_samples: int = cli.flag(
        0,
        "Samples per image of the validation bound; 0: ten, or as many fewer as make "
        "10,000 of all images where --watch=elbo.",
        least=0,
    )
    eval_samples: int = cli.flag(100, "Samples per image of the test bound.", least=1)
    checkpoint_seconds: float = cli.flag(
        30.0, "Least seconds between checkpoints.", display=True, least=0
    )
    resume: bool = cli.flag(True, "Continue the run found in --workdir.", display=True)
    progress: bool = cli.flag(True, "Show the bound while training.", display=True)

    def refuse(self) -> None:
        """Refuses combinations that no run can have.

        Raises:
            ValueError: naming the flags, their values and the fix.
        """
        refusals.check(self)

    @property
    def trains_many(self) -> bool:
        """Whether several runs train together, their states stacked on an axis R."""
        return self.num_seeds > 1 or bool(self.sweep)

    @property
    def gradient(self) -> str:
        """The estimator that is ascended: that of --algorithm, or --estimator."""
        return ALGORITHMS[self.algorithm].estimator or self.estimator

    @property
    def has_encoder(self) -> bool:
        """Whether q is of a phi: else it is found for each x when wanted."""
        return ALGORITHMS[self.algorithm].has_encoder

    @property
    def settled(self) -> "Config":
        """The same with what auto stands for in the place of it.

        And one layer of --ladder as --num_latents. What a run is built of and writes to
        its workdir. Whether data are fit to be read so, `protocol.load` knows, which is
        given the flags as they are.
        """
        changes: dict[str, Any] = {"likelihood": self.observed}
        if self.binarization == "auto":
            changes["binarization"] = "threshold"
            if sources.keeps_values(self.dataset):
                changes["binarization"] = "none"
            elif self.is_of_stored_values:
                changes["binarization"] = "grid"
        if self.is_table:
            changes["missing"] = "nan"
        if len(self.ladder) == 1:
            changes |= {"num_latents": int(self.ladder[0]), "ladder": ()}
        return dataclasses.replace(self, **changes)

    @property
    def is_table(self) -> bool:
        """Whether x is a row of a table."""
        is_array = self.dataset.startswith("npz:") and bool(self.columns)
        return is_array or self.dataset.startswith("csv:")

    @property
    def observed(self) -> str:
        """The row of p(x | z); of a table auto stands for columns, else for bits."""
        if self.likelihood != "auto":
            return self.likelihood
        return "columns" if self.is_table else "bernoulli"

    @property
    def layers(self) -> ladders.Shapes:
        """Shapes of the layers of a ladder, from x upward; () of one layer alone."""
        return ladders.shapes(self.ladder) if len(self.ladder) > 1 else ()

    @property
    def is_of_stored_values(self) -> bool:
        """Whether p(x | z) is of --num_values values on a grid alone."""
        row = LIKELIHOODS[self.observed]
        return not self.model and "num_values" in rows.read_by(row)

    @property
    def observation(self) -> str:
        """The flag that p(x | z) comes from, with its value."""
        if self.model:
            return f"--model={self.model}"
        return f"--likelihood={self.observed}"

    @property
    def has_standard_prior(self) -> bool:
        """Whether p(z) is N(0, I) over all of z."""
        return self.prior == "standard_normal" and not self.layers

    def directory(self) -> pathlib.Path:
        """The run's workdir, runs/DATASET where none is given."""
        kind, _, rest = self.dataset.partition(":")
        stem = pathlib.Path(rest).expanduser().resolve().stem if rest else kind
        if kind == "sprites" and rest:
            stem = f"{kind}_{rest}"
        return pathlib.Path(self.workdir or f"runs/{stem}").expanduser()
