r"""Completes images of which a part is hidden, and says how well.

    python -m experiments.completion --workdir=runs/digits --mask=left
    python -m experiments.completion --workdir=runs/digits --mask=random --fraction=0.8

Three ways to draw the hidden entries from p(x_mis | x_obs): pseudo-Gibbs (Rezende et
al. 2014, arXiv:1401.4082), Metropolis-within-Gibbs (Mattei & Frellsen 2018,
arXiv:1802.04826) and importance sampling (Mattei & Frellsen 2019, arXiv:1812.02633).
Writes completion_MASK.json, .txt, .npz and .png to the workdir: the error beside that
of the training mean, the log-likelihood of the truth, calibration or coverage.
"""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.command import cli, report
from experiments.completion import methods as completion_methods
from experiments.completion import scores as completion_measures
from experiments.measures import measure, pictures
from experiments.runs import protocol, trained_runs
from vae_jax.evaluation import masks
from vae_jax.plots import completions, files

MASKS = (*masks.SIDES, "random", "block")
POSITIVE = ("block", "num_draws", "thin", "importance_samples", "chain", "num_shown")
NOT_NEGATIVE = ("num_images", "num_warmup", "num_burn_in", "seed")


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One set of completions; every field is a flag."""

    split: str = cli.flag("test", "Split.", choices=("train", "valid", "test"))
    mask: str = cli.flag(
        "left",
        "What is hidden: left, right, top, bottom (halves), random, block, or npy:PATH "
        "of an array that is true where hidden, of one image or of all.",
    )
    fraction: float = cli.flag(0.5, "Share of entries hidden (random); 1: everything.")
    block: int = cli.flag(4, "Side of the hidden square (block).")
    num_images: int = cli.flag(
        50, "Images, evenly spread over the split, as some are sorted; 0 for all."
    )
    methods: str = cli.flag(
        ",".join(completion_methods.METHODS), "Comma-separated ways to complete."
    )
    num_draws: int = cli.flag(100, "Completions per image and method.")
    num_warmup: int = cli.flag(50, "Pseudo-Gibbs steps at a chain's start.")
    num_burn_in: int = cli.flag(200, "Steps after those, before the first draw.")
    thin: int = cli.flag(20, "Steps from one draw to the next.")
    importance_samples: int = cli.flag(2000, "Samples of importance sampling.")
    proposal: str = cli.flag(
        "chain",
        "Importance sampling's q: a normal fitted to an HMC chain on p(z | x_obs), or "
        "the encoder's, which has to be trained on holes (--missing=nan) to be good.",
        choices=completion_methods.PROPOSALS,
    )
    chain: int = cli.flag(200, "Draws of that chain, and steps before them.")
    num_shown: int = cli.flag(10, "Images in the picture, spread over those.")
    seed: int = cli.flag(0, "Seed of the masks and draws.")

    def __post_init__(self) -> None:
        """Refuses numbers and names that make no completions.

        Raises:
            ValueError: naming the flag and its value.
        """
        for name in POSITIVE:
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                value = getattr(self, name)
                raise ValueError(f"--{name} must not be negative, got {value}")
        if self.mask not in MASKS and not self.mask.startswith("npy:"):
            raise ValueError(
                f"--mask={self.mask} is unknown; known: {', '.join(MASKS)}, npy:PATH"
            )
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"--fraction must lie in (0, 1], got {self.fraction}")
        for name, mask in (("fraction", "random"), ("block", "block")):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default and self.mask != mask:
                raise ValueError(
                    f"--{name} says nothing to --mask={self.mask}: it is read by {mask}"
                )
        measure.check_importance_samples(self.importance_samples)
        completion_methods.parse(self.methods)

    @property
    def name(self) -> str:
        """Of the mask, in the names of files."""
        return "npy" if self.mask.startswith("npy:") else self.mask


def hidden_entries(config: Config, x: Array) -> np.ndarray:
    """Which entries [N, *X] of the images x are hidden, each image by its own key.

    Raises:
        ValueError: if a mask does not fit the images, or its file hides nothing.
        OSError: if there is no such file.
    """
    key, shape = jax.random.key(config.seed), x.shape[1:]
    if config.mask.startswith("npy:"):
        return _read_mask(config.mask.removeprefix("npy:"), x.shape)
    if config.mask == "random":
        draw = masks.random_fraction(shape, fraction=config.fraction)
    elif config.mask == "block":
        draw = masks.block(shape, height=config.block, width=config.block)
    else:
        draw = masks.half(shape, side=config.mask)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))
    return np.asarray(jax.vmap(draw)(keys))


def complete(config: Config) -> tuple[dict[str, Any], pictures.Arrays]:
    """All that is reported, and the arrays behind the picture."""
    trained = config.load()
    with cli.user_errors():
        methods = completion_methods.fitting(
            completion_methods.parse(config.methods),
            trained,
            proposal=config.proposal,
            chain=config.chain,
        )
        x = _images(config, trained)
        hidden = hidden_entries(config, x)
        if not (hidden & ~np.isnan(x)).any():
            raise ValueError(
                f"--mask={config.mask} hides no entry of these {len(x)} images whose "
                "value is known: there is nothing to compare a completion with"
            )
        partial = jax.vmap(masks.hide)(x, jnp.asarray(hidden))
    settings = completion_methods.Settings(
        *(getattr(config, name) for name in completion_methods.Settings._fields)
    )
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 2)
    found = completion_methods.run(keys[0], trained, partial, x, methods, settings)
    truth = np.asarray(x)
    baseline = completion_measures.training_values(trained)
    scores = completion_measures.scores(
        truth, hidden, found, baseline, trained.data.quantity
    )
    likelihood = {}
    if trained.data.quantity != "cross-entropy":
        likelihood = completion_methods.log_likelihood(
            keys[1], trained, partial, x, found, settings
        )
    result = {
        "mask": config.mask,
        "share_hidden": float(hidden.mean()),
        "notes": _notes(hidden, trained),
        "methods": scores,
        "differences": completion_measures.differences(truth, hidden, found),
        "log_p_truth": likelihood,
        "split": config.split,
        "num_images": len(truth),
        "settings": settings._asdict(),
        "checkpoint": config.checkpoint,
        "step": trained.step,
        "seed": config.seed,
        "protocol": protocol.stamp(trained.config, trained.data),
        "environment": report.environment(),
    }
    arrays = {"x": truth, "hidden": hidden}
    for name, method in found.items():
        arrays |= {f"{name}_mean": method.mean, f"{name}_x": method.x[:, :10]}
    return result, arrays


def main(config: Config) -> int:
    """Completes, prints, writes and draws."""
    result, arrays = complete(config)
    folder = pathlib.Path(config.workdir).expanduser()
    path = folder / f"completion_{config.name}.json"
    table = completion_measures.table(result)
    with cli.user_errors():
        report.write_json(path, result)
        report.write_text(path.with_suffix(".txt"), table)
        pictures.save_arrays(path.with_suffix(".npz"), arrays)
        drawn = arrays["x"].ndim in (3, 4)
        if drawn:
            figure = completions.table(
                *_shown(arrays, config.num_shown),
                limits=pictures.limits_of(arrays["x"]),
            )
            files.save(figure, path.with_suffix(".png"))
    print(table)
    print(f"written to {path}, .txt, .npz{' and .png' if drawn else ''}")
    return 0


def _images(config: Config, trained: trained_runs.Trained) -> Array:
    """Images [N, *X] of the split, at equal distances in it.

    Raises:
        ValueError: if it holds fewer.
    """
    rows = trained_runs.spread_rows(
        trained, split=config.split, num_images=config.num_images
    )
    return trained.data.prepared.value(rows)


def _shown(
    arrays: pictures.Arrays, num: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Images, what is hidden, and of each method the mean and three draws."""
    whole = len(arrays["x"])
    num = min(num, whole)
    shown = np.arange(num) * whole // num
    groups = {}
    for name in completion_methods.METHODS:
        if f"{name}_mean" in arrays:
            mean, drawn = arrays[f"{name}_mean"][shown], arrays[f"{name}_x"][shown, :3]
            title = f"{name.replace('_', ' ')}: mean, draws"
            groups[title] = np.concatenate([mean[:, None], drawn], axis=1)
    return arrays["x"][shown], arrays["hidden"][shown], groups


def _read_mask(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of one image, for all of them, or of each."""
    stored = np.load(pathlib.Path(path).expanduser(), allow_pickle=False)
    if stored.dtype != bool and not np.isin(stored, (0, 1)).all():
        raise ValueError(f"{path} holds {stored.dtype} that are not all 0 or 1: a mask")
    if stored.shape not in (shape, shape[1:]):
        raise ValueError(
            f"a mask of shape {stored.shape} in {path} does not fit observations of "
            f"shape {shape[1:]}, {shape[0]} of them"
        )
    if not stored.any():
        raise ValueError(f"the mask in {path} hides nothing")
    return np.broadcast_to(stored.astype(bool), shape)


def _notes(hidden: np.ndarray, trained: trained_runs.Trained) -> list[str]:
    """What a reader has to know before the numbers."""
    notes = []
    all_hidden = int(hidden.reshape(len(hidden), -1).all(1).sum())
    if all_hidden:
        notes.append(
            f"Nothing is observed of {all_hidden} of {len(hidden)} images: their "
            "completions are draws of the model, z from the prior, and log p(x_obs) "
            "is 0."
        )
    quantity = trained.data.quantity
    if quantity == "cross-entropy":
        notes.append(
            "Targets are not binary and the likelihood is: no log-likelihood, "
            "calibration or coverage is reported."
        )
    if math.isclose(float(hidden.mean()), 1.0):
        notes.append("Everything is hidden: this is the prior's answer for each image.")
    return notes
