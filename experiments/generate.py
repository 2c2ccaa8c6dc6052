r"""Draws from a trained model: z from the prior, then x from the decoder.

    python -m experiments.generate --workdir=runs/digits

Writes samples.png and samples.npz (z, mean, x) to the workdir; with two latents the
manifold too (manifold.png, manifold.npz).
"""

import dataclasses
import pathlib

import jax

from experiments import cli, measure, pictures


@dataclasses.dataclass(frozen=True)
class Config:
    """One set of samples; every field is a flag."""

    workdir: str = cli.flag("runs/digits", "Folder of a training run.")
    checkpoint: str = cli.flag(
        "auto",
        "best by validation bound, or last; auto: best if the run stops early.",
        choices=("auto", "best", "last"),
    )
    data_dir: str = cli.flag("", "Data folder, if not the run's own.")
    num: int = cli.flag(100, "Samples.")
    manifold_size: int = cli.flag(20, "Tiles a side of the manifold.")
    seed: int = cli.flag(0, "Seed of the samples.")

    def __post_init__(self) -> None:
        """Refuses numbers that make no samples.

        Raises:
            ValueError: naming the flag and its value.
        """
        for name in ("num", "manifold_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be positive, got {getattr(self, name)}"
                )


def main(config: Config) -> int:
    """Samples, draws and writes."""
    trained = measure.load_trained(
        config.workdir, checkpoint=config.checkpoint, data_dir=config.data_dir
    )
    folder = pathlib.Path(config.workdir).expanduser()
    arrays = pictures.samples(jax.random.key(config.seed), trained, num=config.num)
    with cli.user_errors():
        pictures.save_arrays(folder / "samples.npz", arrays)
        if pictures.is_image(trained):
            pictures.draw_samples(arrays, folder / "samples.png")
        if pictures.has_manifold(trained):
            tiles = pictures.manifold(trained, size=config.manifold_size)
            pictures.save_arrays(folder / "manifold.npz", {"mean": tiles})
            pictures.draw_manifold(tiles, folder / "manifold.png")
    print(f"{config.num} samples written to {folder / 'samples.npz'} and samples.png")
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
