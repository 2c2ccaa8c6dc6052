"""The flags of `experiments.completion`."""

import dataclasses
import pathlib
from typing import ClassVar

from experiments.command import cli
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax.evaluation import masks

MASKS = (*masks.SIDES, "random", "block", "none")
NOMINAL = 0.9  # of predictive intervals
METHODS = ("pseudo_gibbs", "metropolis_within_gibbs", "importance")


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.SplitFlags):
    """One set of completions; every field is a flag."""

    TAKES_CONTEXT: ClassVar = True
    mask: str = cli.flag(
        "left",
        "What is hidden: left, right, top, bottom (halves), random, block, none (but "
        "what is missing), or npy:PATH of an array that is true where hidden, of one "
        "row or of all.",
    )
    fraction: float = cli.flag(
        0.5, "Share of entries hidden (random); 1: all.", above=0, most=1
    )
    block: int = cli.flag(4, "Side of the hidden square (block).", least=1)
    num_images: int = cli.flag(50, "Rows, spread over the split; 0: all.", least=0)
    methods: tuple[str, ...] = cli.flag(
        METHODS, "Ways to complete.", choices=METHODS, empty=False
    )
    num_draws: int = cli.flag(100, "Completions per row and method.", least=1)
    num_warmup: int = cli.flag(50, "Pseudo-Gibbs steps at a chain's start.", least=0)
    num_burn_in: int = cli.flag(200, "Steps after those, before a draw.", least=0)
    thin: int = cli.flag(20, "Steps from one draw to the next.", least=1)
    importance_samples: int = cli.flag(2000, "Samples of importance sampling.", least=1)
    proposal: str = cli.flag(
        "chain",
        "Importance sampling's q: a normal fitted to an HMC chain on p(z | x_obs), or "
        "the encoder's, which has to be trained on holes (--missing=nan) to be good.",
        choices=("chain", "encoder"),
    )
    chain: int = cli.flag(200, "Draws of that chain, and steps before them.", least=1)
    num_shown: int = cli.flag(10, "Images in the picture, spread over those.", least=1)
    seed: int = cli.flag(0, "Seed of the masks and draws.", least=0)

    def refuse(self) -> None:
        """Refuses unknown masks, and numbers that nothing reads."""
        super().refuse()
        if self.mask not in MASKS and not self.mask.startswith("npy:"):
            raise ValueError(
                f"--mask={self.mask} is unknown; known: {', '.join(MASKS)}, npy:PATH"
            )
        of_masks = {"fraction": ("random",), "block": ("block",)}
        self.refuse_unread("mask", (self.mask,), of_masks)
        chains = METHODS[:2]
        steps = {"num_warmup": chains, "num_burn_in": chains, "thin": chains}
        self.refuse_unread("methods", self.methods, steps)
        self.refuse_unread("proposal", (self.proposal,), {"chain": ("chain",)})
        if self.mask == "none":
            self.refuse_unweighed()
        measure.check_importance_samples(self.importance_samples)

    def refuse_unweighed(self) -> None:
        """Refuses flags of weights where log p(x_mis | x_obs) is not estimated by them.

        Raises:
            ValueError: naming the flag, if no method reads it either.
        """
        weighing = ("importance",)
        readers = {"importance_samples": weighing, "proposal": weighing}
        self.refuse_unread("methods", self.methods, readers | {"chain": weighing})

    @property
    def mask_name(self) -> str:
        """Of the mask, in the names of files."""
        if self.mask.startswith("npy:"):
            return f"npy_{pathlib.Path(self.mask).stem}"
        size = {"random": "fraction", "block": "block"}.get(self.mask, "")
        if not size or getattr(self, size) == self.default(size):
            return self.mask
        return f"{self.mask}_{getattr(self, size):g}"
