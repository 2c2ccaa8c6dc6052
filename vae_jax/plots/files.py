"""Figures as files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vae_jax import writing

if TYPE_CHECKING:  # a command that draws nothing does without matplotlib
    from matplotlib.figure import Figure


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG at its own resolution, whole or not at all.

    Raises:
        ValueError: the name does not end in .png.
        OSError: the folder is missing or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"a picture's name must end in .png, got {path.name!r}")
    with writing.atomically(path) as file:
        figure.savefig(file, format="png")
