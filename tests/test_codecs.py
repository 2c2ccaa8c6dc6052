"""Codecs of the images that a model's bits per dimension are held by."""

import numpy as np
import pytest
from PIL import Image

from experiments import codecs
from experiments.command import cli
from vae_jax.data import codecs as formats


@pytest.fixture
def folder(tmp_path):
    """Ten noisy JPEG files of train, and four of test."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 10), ("test", 4)):
        (tmp_path / split).mkdir()
        for i in range(number):
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{i}.jpg", quality=90)
    return tmp_path


def lines(capsys) -> dict[str, list[str]]:
    _, _, *rows = capsys.readouterr().out.splitlines()
    return {row[:20].strip(): row[20:].split() for row in rows}


def test_each_codec_has_a_line_and_so_have_the_files_themselves(folder, capsys):
    config = codecs.Config(dataset=f"images:{folder}")
    assert codecs.main(config) == 0
    rows = lines(capsys)
    assert [*rows] == ["png", "webp", "zlib", "the 4 files"]
    sizes = [path.stat().st_size for path in (folder / "test").iterdir()]
    bits, _, per_image = rows["the 4 files"]
    assert float(per_image) == pytest.approx(np.mean(sizes), abs=0.06)
    assert float(bits) == pytest.approx(8 * np.mean(sizes) / 192, abs=1e-4)


@pytest.mark.parametrize("flags", [{"image_size": 4}, {"split": "train"}], ids=str)
def test_files_that_are_not_what_is_coded_have_no_line(folder, capsys, flags):
    assert codecs.main(codecs.Config(dataset=f"images:{folder}", **flags)) == 0
    assert [*lines(capsys)] == ["png", "webp", "zlib"]


def test_png_makes_files_of_bits_of_bits():
    bits = np.random.default_rng(0).integers(0, 2, (3, 64, 64)).astype(bool)
    sizes = formats.sizes(bits, "png")
    assert (sizes > 64 * 64 / 8).all()
    assert (sizes < formats.sizes(bits.astype(np.uint8), "png")).all()
    with pytest.raises(ValueError, match="or bits of"):
        formats.sizes(bits[..., None], "png")


def test_what_cannot_be_coded_is_one_line(folder):
    few = codecs.Config(dataset=f"images:{folder}", num_images=5)
    with pytest.raises(cli.UsageError, match=r"=5: the test split of .* has 4 rows"):
        codecs.main(few)
    np.savez(folder / "own.npz", train=np.zeros((3, 4), np.float32))
    flat = codecs.Config(dataset=f"npz:{folder / 'own.npz'}", split="train")
    with pytest.raises(cli.UsageError, match=r"float32 of shape \(3, 4\): give bytes"):
        codecs.main(flat)
