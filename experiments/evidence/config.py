"""The flags of `experiments.evidence`."""

import dataclasses

from experiments.command import cli
from experiments.measures import measure

PARTS = ("linear", "binary", "digits", "bias")


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/evidence", "Where it is written.")
    parts: tuple[str, ...] = cli.flag(
        PARTS, "What is compared.", choices=PARTS, empty=False
    )
    samples: tuple[int, ...] = cli.flag(
        (10, 100, 1000, 10_000),
        "Samples of z; those above 500 are multiples of it.",
        least=1,
        empty=False,
    )
    temperatures: tuple[int, ...] = cli.flag(
        (10, 100, 1000), "Temperatures of AIS.", least=1, empty=False
    )
    num_repeats: int = cli.flag(20, "Repeats of every estimate.", least=1)
    num_bits: int = cli.flag(
        16, "Binary features; all their vectors are summed.", least=1
    )
    binary_epochs: int = cli.flag(200, "Epochs of the belief net's training.", least=1)
    digits_flagfile: str = cli.flag(
        "experiments/flags/train/digits.flags", "Flag file of the trained VAE."
    )
    num_images: int = cli.flag(5, "Test images of the trained VAE.", least=1)
    bias_repeats: int = cli.flag(100_000, "Repeats of every K in `bias`.", least=2)
    seed: int = cli.flag(0, "Seed of the estimates.", least=0)

    def refuse(self) -> None:
        """Refuses samples that cannot be decoded a chunk at a time."""
        for k in self.samples:
            measure.check_importance_samples(k, "samples")
