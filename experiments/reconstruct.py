r"""Reconstructs images with a trained model: x to z by q(z | x), and back.

    python -m experiments.reconstruct --workdir=runs/digits
    python -m experiments.reconstruct --workdir=runs/digits --input=rows.npz

Writes reconstructions.png and reconstructions.npz (x, z, mean) to the workdir. What is
of other rows than --num of the test split has that in its files' names.
"""

import dataclasses
from typing import ClassVar

import jax

from experiments.command import cli
from experiments.measures import pictures
from experiments.runs import trained_runs


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.SplitFlags):
    """One set of reconstructions; every field is a flag."""

    TAKES_CONTEXT: ClassVar = True
    num: int = cli.flag(50, "Images, at equal distances in the split.", least=1)
    seed: int = cli.flag(0, "Seed of z.", least=0)


def main(config: Config) -> int:
    """Reconstructs, draws and writes."""
    trained = config.load()
    split = config.measured_split(trained)
    with cli.user_errors():
        num = config.num_rows(trained, "num")
        parts = config.other_split, config.rows_part(trained, "num")
        path = config.result_path(trained, "reconstructions", *parts)
    key = jax.random.key(config.seed)
    arrays = pictures.reconstructions(key, trained, split=split, num=num)
    with cli.user_errors():
        pictures.save_arrays(path.with_suffix(".npz"), arrays)
        picture = ""
        if trained.is_image:
            picture = f" and {path.name}.png"
            limits = pictures.limits(trained)
            pictures.draw_reconstructions(
                arrays, path.with_suffix(".png"), limits=limits
            )
    print(
        f"{num} rows of {split} and their reconstructions: {path}.npz{picture}; "
        f"{trained.moment}"
    )
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
