"""Color patches of the two photographs that scikit-learn carries."""

import numpy as np

NAMES = ("china", "flower")
"""The photographs, by label."""

SIDE = 32
"""Pixels of a patch's side."""

PERIOD = 160
COLUMNS = {"train": (0, 96), "valid": (96, 128), "test": (128, 160)}
"""Of every PERIOD columns of both photographs (427 x 640), those of each split."""

_ROW_STRIDE, _COLUMN_STRIDE = 4, 8

ORIGIN = (
    f"scikit-learn load_sample_images: {SIDE}x{SIDE} patches at every {_ROW_STRIDE}th "
    f"row and {_COLUMN_STRIDE}th column, of every {PERIOD} columns "
    + ", ".join(f"{a}-{b - 1} {split}" for split, (a, b) in COLUMNS.items())
    + ", permuted by numpy default_rng(0)"
)


def patches() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Patches uint8 [N, 32, 32, 3] by split, and the photograph [N] of each.

    They lie within stripes of columns that belong to one split each, so that those of
    one split overlap, and those of two never do.
    """
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images  # pyright: ignore[reportAttributeAccessIssue]
    arrays, labels = {}, {}
    for split, (left, right) in COLUMNS.items():
        results = [
            _cut(photograph[:, start + left : start + right])
            for photograph in photographs
            for start in range(0, photograph.shape[1], PERIOD)
        ]
        rows = np.concatenate(results)
        of = np.repeat(np.arange(len(photographs)), len(rows) // len(photographs))
        order = np.random.default_rng(0).permutation(len(rows))
        arrays[split], labels[split] = rows[order], of[order]
    return arrays, labels


def _cut(stripe: np.ndarray) -> np.ndarray:
    """The patches [N, 32, 32, 3] of a stripe [H, W, 3] of a photograph."""
    windows = np.lib.stride_tricks.sliding_window_view(stripe, (SIDE, SIDE), (0, 1))
    chosen = windows[::_ROW_STRIDE, ::_COLUMN_STRIDE]  # [rows, columns, 3, 32, 32]
    return np.moveaxis(chosen, 2, 4).reshape(-1, SIDE, SIDE, 3)
