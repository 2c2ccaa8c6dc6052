"""The flags of `experiments.inference_gaps`, and the runs that they ask for."""

import dataclasses
import pathlib
from typing import Any

from experiments.choices import ladders
from experiments.choices.config import Config as TrainConfig
from experiments.command import cli
from experiments.measures import measure
from experiments.runs import comparison

MODELS = ("diagonal", "wide_encoder", "flow")


@dataclasses.dataclass(frozen=True)
class Config(comparison.ComparisonFlags):
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/inference_gaps", "Where the runs are written.")
    models: tuple[str, ...] = cli.flag(
        MODELS, "What is compared.", choices=MODELS, empty=False
    )
    wide_encoder: tuple[int, ...] = cli.flag(
        (500, 500), "Hidden units of the encoder of wide_encoder."
    )
    flow_layers: int = cli.flag(2, "Couplings of the flow.", least=1)
    num_images: int = cli.flag(100, "Rows of each split, spread over it.", least=1)
    eval_samples: int = cli.flag(1000, "Samples per row of each bound.", least=1)
    importance_samples: int = cli.flag(5000, "Samples a row of log p-hat, k.", least=1)
    num_temperatures: int = cli.flag(
        0, "Temperatures of annealed importance sampling; 0 leaves it out.", least=0
    )
    num_chains: int = cli.flag(8, "Its chains per row.", least=1)
    num_leapfrog: int = cli.flag(10, "Leapfrog steps of its transitions.", least=1)
    local_samples: int = cli.flag(10, "Samples a step of the search of q*.", least=1)
    local_steps: int = cli.flag(200, "Steps of a round of that search.", least=1)
    local_rounds: int = cli.flag(20, "Rounds at most.", least=1)
    local_rate: float = cli.flag(0.02, "Where a round's rate of Adam starts.", above=0)
    flow_rate: float = cli.flag(
        0.001, "The same, from the networks of the model's own flow.", above=0
    )
    tolerance: float = cli.flag(0.05, "Nats by which the last round moves.", above=0)
    seed: int = cli.flag(0, "Seed of every measurement.", least=0)

    def refuse(self) -> None:
        """Refuses what no comparison can be made of, as `train_configs` does."""
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
        ValueError: for flags that no run can have.
        UsageError: for --run_flagfile and --run_flags, as `ComparisonFlags.base`.
    """
    taken = ("workdir", "data_dir", "posterior")
    shared = config.base(taken=taken)
    if shared.ladder or shared.algorithm not in ("aevb", "wake_sleep", "rws"):
        raise ValueError(
            "local fits need one layer of latents and an encoder: "
            f"{ladders.written(shared.ladder)} --algorithm={shared.algorithm} do not "
            "fit"
        )
    changes: dict[str, dict[str, Any]] = {
        "diagonal": {},
        "wide_encoder": {"encoder_hidden": config.wide_encoder},
        "flow": {"posterior": "coupling", "flow_layers": config.flow_layers},
    }
    if shared.algorithm == "aevb" and shared.estimator == "sgvb_b":
        changes["flow"]["estimator"] = "sgvb_a"  # the KL of a flow has no closed form
    return {
        name: dataclasses.replace(
            shared,
            workdir=str(pathlib.Path(config.workdir) / name),
            data_dir=config.data_dir,
            progress=False,
            **changes[name],
        )
        for name in config.models
    }
