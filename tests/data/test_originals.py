"""The original files themselves: run with --data_dir."""

import gzip
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vae_jax.data import originals, sources


def test_every_data_set_of_original_files_says_where_it_came_from():
    assert set(originals.FILES) == set(originals.ORIGINS)
    for files in originals.FILES.values():
        for file in files:
            assert file.url.rsplit("/", 1)[1] in (file.name, f"{file.name}.gz")


def test_every_original_file_is_read_against_a_checksum_of_its_content():
    checked = [file for files in originals.FILES.values() for file in files]
    assert len(checked) == 12
    for file in checked:
        assert isinstance(file.read, partial)
        assert re.fullmatch("[0-9a-f]{64}", file.read.keywords["sha256"]), file.name


def test_mnist_has_its_known_mean_and_holds_out_the_last_ten_thousand(data_dir):
    mnist = sources.load("mnist", data_dir=data_dir)
    whole = sources.load("mnist", data_dir=data_dir, valid_size=0)
    assert mnist.train.shape == (50_000, 28, 28)
    assert mnist.valid.shape == mnist.test.shape == (10_000, 28, 28)
    assert whole.train.shape == (60_000, 28, 28)
    assert whole.valid.shape == (0, 28, 28)
    assert {name: len(rows) for name, rows in mnist.labels.items()} == {
        "train": 50_000,
        "valid": 10_000,
        "test": 10_000,
    }
    assert mnist.train.dtype == np.uint8
    np.testing.assert_allclose(whole.train.mean(), 33.318421, atol=1e-6)
    np.testing.assert_array_equal(whole.train[50_000:], mnist.valid)
    np.testing.assert_array_equal(whole.labels["train"][50_000:], mnist.labels["valid"])
    assert mnist.labels["train"][:5].tolist() == [5, 0, 4, 1, 9]
    assert (mnist.offset, mnist.divisor) == (0, 255)


def test_binarized_mnist_holds_zeros_and_ones_in_fixed_splits(data_dir):
    source = sources.load("binarized_mnist", data_dir=data_dir)
    assert source.train.shape == (50_000, 28, 28)
    assert source.valid.shape == source.test.shape == (10_000, 28, 28)
    assert set(np.unique(source.test)) == {0, 1}
    assert source.labels == {}
    assert (source.offset, source.divisor) == (0, 1)


def test_frey_face_holds_upright_faces_split_by_a_fixed_permutation(data_dir):
    source = sources.load("frey_face", data_dir=data_dir)
    assert source.train.shape == (1565, 28, 20)
    assert source.valid.shape == (0, 28, 20)
    assert source.test.shape == (400, 28, 20)
    everything = np.concatenate([source.train, source.test])
    np.testing.assert_allclose(everything.mean(), 154.46, atol=5e-3)
    assert (everything.min(), everything.max()) == (8, 238)
    assert (source.offset, source.divisor) == (0.5, 256)
    order = np.random.default_rng(0).permutation(1965)
    frames = np.empty_like(everything)
    frames[order] = everything
    steps = np.abs(np.diff(frames.astype(float), axis=0)).mean()
    shuffled = np.abs(np.diff(everything.astype(float), axis=0)).mean()
    assert steps < shuffled / 2  # neighbors of the film, once put back in order
    across = np.abs(np.diff(frames.astype(float), axis=2)).mean()
    rolled = np.abs(frames[:, :, 0].astype(float) - frames[:, :, -1]).mean()
    assert across < rolled  # rows are rows


def test_a_changed_pixel_is_a_wrong_checksum_that_names_the_file(data_dir, tmp_path):
    folder = tmp_path / "mnist"
    shutil.copytree(Path(data_dir) / "mnist", folder)
    folder.chmod(0o755)
    path = folder / "t10k-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[5000] ^= 1
    path.unlink()
    (folder / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte: wrong checksum"):
        sources.load("mnist", data_dir=tmp_path)


def test_mnist_under_the_name_of_fashion_mnist_is_refused(data_dir):
    with pytest.raises(ValueError, match="wrong checksum"):
        sources.load("fashion_mnist", data_dir=Path(data_dir) / "mnist")
