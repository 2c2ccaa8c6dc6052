r"""Reconstructs images with a trained model: x to z by q(z | x), and back.

    python -m experiments.reconstruct --workdir=runs/digits

Writes reconstructions.png and reconstructions.npz (x, z, mean) to the workdir.
"""

import dataclasses
import pathlib

import jax

from experiments.command import cli
from experiments.measures import pictures
from experiments.runs import trained_runs


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One set of reconstructions; every field is a flag."""

    split: str = cli.flag("test", "Split.", choices=("train", "valid", "test"))
    num: int = cli.flag(50, "Images, at equal distances in the split.", least=1)
    seed: int = cli.flag(0, "Seed of z.", least=0)


def main(config: Config) -> int:
    """Reconstructs, draws and writes."""
    trained = config.load()
    folder = pathlib.Path(config.workdir).expanduser()
    with cli.user_errors():
        size = len(trained_runs.rows(trained, split=config.split))
    if config.num > size:
        raise cli.UsageError(
            f"--num={config.num} is more than the {size} rows of the {config.split} "
            f"split of {trained.config.dataset}: give as many or fewer"
        )
    arrays = pictures.reconstructions(
        jax.random.key(config.seed), trained, split=config.split, num=config.num
    )
    with cli.user_errors():
        pictures.save_arrays(folder / "reconstructions.npz", arrays)
        drawn = ""
        if pictures.is_image(trained):
            drawn = " and reconstructions.png"
            pictures.draw_reconstructions(
                arrays,
                folder / "reconstructions.png",
                limits=pictures.limits(trained),
            )
    print(
        f"{config.num} rows of the {config.split} split and their reconstructions "
        f"written to {folder / 'reconstructions.npz'}{drawn}"
    )
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
