"""The flags of the data that a training run is of."""

import dataclasses

from experiments.command import cli
from vae_jax.data import batches, csv_tables, ranges, sources


@dataclasses.dataclass(frozen=True)
class DataFlags(cli.Flags):
    """What a run is of, and where it is written."""

    workdir: str = cli.flag("", "Where the run is written; runs/DATASET if empty.")
    dataset: str = cli.flag(
        "digits",
        "digits, photos, sprites, sprites:64 and sprites:color (of known factors), "
        "mnist, fashion_mnist, binarized_mnist, frey_face, images:PATH (a folder or "
        ".zip of image files), csv:PATH (a table, or a folder with a train.csv), "
        "npz:PATH or tfds:NAME.",
        section="Data",
    )
    columns: tuple[str, ...] = cli.flag(
        (),
        "NAME:FAMILY,... of a table's columns that are not what is guessed: "
        f"{', '.join(csv_tables.KINDS)} (csv; npz, where they are x0, x1, ...).",
    )
    condition: str = cli.flag(
        "",
        "What p and q are given beside x: labels, one of as many as the training rows "
        "have, or context, columns of that family (csv) or arrays train_context "
        "[N, C], ... (npz), standardized. All bounds are then of log p(x | c), and "
        "p(z) does not read c.",
        choices=("", "labels", "context"),
    )
    size_factor: str = cli.flag(
        "",
        "Entry of the context, by its column (csv) or number (npz), that means of "
        "counts are multiples of; networks read its logarithm, centered.",
    )
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    data_seed: int = cli.flag(
        0, "Seed of binarization and splits, apart from --seed.", least=0
    )
    valid_size: int = cli.flag(
        -1,
        "Training rows kept for validation; -1: the data set's usual number.",
        least=-1,
    )
    num_train: int = cli.flag(
        0, "Training rows that are used, from the start; 0 for all of them.", least=0
    )
    binarization: str = cli.flag(
        "auto",
        "What x is of a stored pixel: its value (none), the stored k of K values as "
        "k / (K - 1) (grid) or with uniform noise as (k + u) / K (dequantized, for "
        "densities), or zeros and ones (threshold; static: drawn once; dynamic: at "
        "each visit). auto: threshold, but grid for likelihoods of stored values, and "
        "none for photos, sprites, images, npz and tfds, which have to be zeros and "
        "ones already under --likelihood=bernoulli.",
        choices=("auto", *batches.BINARIZATIONS),
    )
    image_size: int = cli.flag(
        0,
        "Side of the square that the middle of each image is scaled to; 0: as it is "
        "(images).",
        least=0,
    )
    channels: str = cli.flag(
        "auto", "Of images; auto: what the files hold.", choices=sources.CHANNELS
    )
    skip_broken: bool = cli.flag(
        False, "Leave out, and count, files that cannot be read (images)."
    )
    data_range: str = cli.flag(
        "auto",
        "What numbers of npz and tfds are: unit in [0, 1], byte from 0 to 255, word "
        "from 0 to 65535, value any; auto: floats are values, integers have to show.",
        choices=ranges.RANGES,
    )
    missing: str = cli.flag(
        "refuse",
        "What NaN in the data is: an error, or a missing entry, of which the model "
        "then takes no notice; always so of empty cells (csv).",
        choices=sources.MISSING,
    )
    missing_rate: float = cli.flag(
        0.0,
        "Share of train and valid made missing at random, once (missing=nan).",
        least=0,
        below=1,
    )
