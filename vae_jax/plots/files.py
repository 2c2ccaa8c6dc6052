"""Figures as files."""

import os
from pathlib import Path

from matplotlib.figure import Figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG at its own resolution, whole or not at all.

    Raises:
      ValueError: the name does not end in .png.
      OSError: the folder is missing or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"a picture's name must end in .png, got {path.name!r}.")
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    os.replace(partial, path)
