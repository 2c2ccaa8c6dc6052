r"""Bits per dimension of images as PNG, lossless WebP and zlib, beside a model's.

    python -m experiments.codecs --dataset=photos
    python -m experiments.codecs --dataset=images:DIR/train.zip

Each image is a file of its own, with its header. Of image files that are not scaled,
and whose split has a folder or archive, the files themselves are a line too: those of a
lossy format hold the same pixels in fewer bits, as what it cannot hold is not coded.
"""

import dataclasses
import math

import numpy as np

from experiments.command import cli, report
from experiments.measures import measure
from experiments.runs import protocol
from vae_jax.data import batches, codecs, image_files, sources

COLUMNS = (
    report.field("codec", "codec", width=20),
    report.field("bits / dim", "bits_per_dimension", ".4f", 10),
    report.field("s.e.", "standard_error", ".4f", 7),
    report.field("bytes an image", "bytes_per_image", ".1f", 14),
)


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One table; every field is a flag."""

    dataset: str = cli.flag("photos", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    data_seed: int = cli.flag(0, "As of the run that is compared.", least=0)
    valid_size: int = cli.flag(-1, "As of the run that is compared.", least=-1)
    image_size: int = cli.flag(0, "As of the run that is compared.", least=0)
    channels: str = cli.flag(
        "auto", "As of the run that is compared.", choices=sources.CHANNELS
    )
    skip_broken: bool = cli.flag(False, "As of the run that is compared.")
    split: str = cli.flag("test", "Split that is coded.", choices=sources.SPLITS)
    num_images: int = cli.flag(
        0, "Images of the split, at equal distances; 0 for all.", least=0
    )


def main(config: Config) -> int:
    """Codes, and prints a line for each codec."""
    with cli.user_errors():
        with protocol.naming_flags():
            source = sources.load(
                config.dataset,
                data_dir=config.data_dir or None,
                valid_size=None if config.valid_size < 0 else config.valid_size,
                data_seed=config.data_seed,
                image_size=config.image_size or None,
                channels=config.channels,
                skip_broken=config.skip_broken,
            )
        whole = getattr(source, config.split)
        number = config.num_images or len(whole)
        if not 0 < number <= len(whole):
            raise ValueError(
                f"--num_images={config.num_images}: the {config.split} split of "
                f"{source.name} has {len(whole)} rows"
            )
        images = whole[batches.at_equal_distances(len(whole), number)]
        print(
            f"{source.name} ({source.origin}): {number} of {len(whole)} {config.split} "
            f"images of {'x'.join(map(str, images.shape[1:]))}, each a file of its own"
        )
        num_entries = math.prod(images.shape[1:])
        print(report.heading(COLUMNS))
        for codec in codecs.CODECS:
            _print(codec, codecs.sizes(images, codec), num_entries)
        files = _files(config)
        if len(files):
            _print(f"the {len(files)} files", files, num_entries)
    return 0


def _files(config: Config) -> np.ndarray:
    """Bytes [N] of the files that the split was read from, where they are as it is."""
    kind, _, path = config.dataset.partition(":")
    # A part of train may have become another split, and broken ones are no images.
    is_whole = config.split != "train" and not config.skip_broken
    if kind != "images" or config.image_size or not is_whole:
        return np.zeros(0)
    with image_files.listed(path) as listing:
        part = listing.parts.get(config.split, [])
        return np.array([len(file.read()) for file in part])


def _print(codec: str, sizes: np.ndarray, num_entries: int) -> None:
    bits = 8.0 * sizes / num_entries
    row = {
        "codec": codec,
        "bits_per_dimension": float(bits.mean()),
        "standard_error": measure.standard_error(bits),
        "bytes_per_image": float(sizes.mean()),
    }
    print(report.line(COLUMNS, row), flush=True)


if __name__ == "__main__":
    cli.run(Config, main)
