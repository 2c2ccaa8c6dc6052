"""What latents have to do with factors: traversals, and a heat map of information."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def traversals(
    images: np.ndarray, *, names: Sequence[str], values: Sequence[float]
) -> Figure:
    """A row of images for each latent, as its value goes through a range.

    Args:
        images: [D, C, H, W], or with three channels behind, from 0 to 1.
        names: written beside each row.
        values: of the latent, written above each column.

    Raises:
        ValueError: images of another number of rows or columns.
    """
    if images.shape[:2] != (len(names), len(values)):
        raise ValueError(
            f"images must be [{len(names)}, {len(values)}, ...], got {images.shape}"
        )
    size = 0.55 * len(values) + 2.2, 0.55 * len(names) + 0.4
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(*images.shape[:2], squeeze=False)
    for d, (row, name) in enumerate(zip(images, names, strict=True)):
        for c, (axes, image) in enumerate(zip(grid[d], row, strict=True)):
            axes.imshow(np.clip(image, 0.0, 1.0), cmap="gray", vmin=0.0, vmax=1.0)
            axes.set(xticks=[], yticks=[])
            if not d:
                axes.set_title(f"{values[c]:g}", fontsize="x-small")
        grid[d, 0].set_ylabel(
            name, rotation=0, ha="right", va="center", fontsize="x-small"
        )
    return figure


def heat_map(
    information: np.ndarray, *, latents: Sequence[str], factors: Sequence[str]
) -> Figure:
    """Shares in [0, 1] of what each latent knows of each factor, written in the cells.

    Args:
        information: [D, F].
        latents: names of the rows.
        factors: names of the columns.

    Raises:
        ValueError: other numbers of names.
    """
    if information.shape != (len(latents), len(factors)):
        raise ValueError(
            f"information must be [{len(latents)}, {len(factors)}], got "
            f"{information.shape}"
        )
    size = 0.9 * len(factors) + 2.0, 0.35 * len(latents) + 0.8
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    shades = axes.imshow(information, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
    for d, row in enumerate(information):
        for f, share in enumerate(row):
            color = "black" if share > 0.6 else "white"
            axes.text(f, d, f"{share:.2f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(factors)), factors)
    axes.set_yticks(range(len(latents)), latents)
    figure.colorbar(shades, label="share of the entropy")
    return figure
