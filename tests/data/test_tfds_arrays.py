"""Against a real builder, prepared offline into a temporary folder as array_record.

Its images are handed over as PNG bytes, because encoding arrays is the one step of
preparing that needs TensorFlow.
"""

import importlib.util
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vae_jax.data import files, sources, tfds_arrays

SIZES = {"train": 20, "test": 7, "validation": 4}


def picture(split, row):
    generator = np.random.default_rng((len(split), row))
    return generator.integers(0, 256, (6, 5), np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    stream.seek(0)
    return stream


class TinyNoise(tfds.core.GeneratorBasedBuilder):
    """Noise with a label, in two splits."""

    VERSION = tfds.core.Version("1.2.0")
    SPLITS = ("train", "test")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(6, 5, 1)),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for row in range(SIZES[split]):
            yield row, {"image": png(picture(split, row)), "label": row % 3}


class TinyThree(TinyNoise):
    """The same with a validation split."""

    SPLITS = ("train", "validation")


class TinyMixed(tfds.core.GeneratorBasedBuilder):
    """Images of two shapes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 1))}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for row in range(2):
            yield row, {"image": png(np.zeros((4 + row, 3), np.uint8))}


class TinyValues(tfds.core.GeneratorBasedBuilder):
    """Vectors that are no images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"vector": tfds.features.Tensor(shape=(2,), dtype=np.float32)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"vector": np.zeros(2, np.float32)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds_arrays.prepare("tiny_noise", data_dir=folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "vae_jax" / "tfds"


def rows_of(split):
    return {picture(split, row).tobytes(): row % 3 for row in range(SIZES[split])}


def test_a_prepared_data_set_gives_its_images_and_labels(prepared):
    source = sources.load("tfds:tiny_noise", data_dir=prepared)
    assert source.train.shape == (18, 6, 5)  # a tenth is held out
    assert source.valid.shape == (2, 6, 5)
    assert source.test.shape == (7, 6, 5)
    assert source.train.dtype == np.uint8
    assert (source.offset, source.divisor) == (0, 255)
    assert source.origin == "TensorFlow Datasets tiny_noise/1.2.0"
    images = np.concatenate([source.train, source.valid])
    labels = np.concatenate([source.labels["train"], source.labels["valid"]])
    got = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert got == rows_of("train")
    pairs = zip(source.test, source.labels["test"], strict=True)
    assert {image.tobytes(): label for image, label in pairs} == rows_of("test")


def test_valid_size_says_how_much_is_held_out(prepared):
    whole = sources.load("tfds:tiny_noise", data_dir=prepared, valid_size=0)
    some = sources.load("tfds:tiny_noise:1.2.0", data_dir=prepared, valid_size=5)
    assert (len(whole.train), len(whole.valid)) == (20, 0)
    np.testing.assert_array_equal(some.valid, whole.train[15:])


def test_a_validation_split_is_taken_as_it_is(tmp_path):
    tfds_arrays.prepare("tiny_three", data_dir=tmp_path)
    source = sources.load("tfds:tiny_three", data_dir=tmp_path)
    assert [len(getattr(source, split)) for split in sources.SPLITS] == [20, 4, 0]
    assert set(source.labels) == {"train", "valid"}
    with pytest.raises(ValueError, match="fixes its splits"):
        sources.load("tfds:tiny_three", data_dir=tmp_path, valid_size=2)


def test_images_are_decoded_once_and_kept(prepared, cache, monkeypatch):
    first = tfds_arrays.read("tiny_noise", data_dir=prepared)
    (saved,) = cache.iterdir()
    assert saved.name.startswith("tiny_noise-1.2.0-")
    assert saved.suffix == ".npz"
    with monkeypatch.context() as patch:
        patch.setattr(tfds_arrays, "_decoded", None)
        again = tfds_arrays.read("tiny_noise", data_dir=prepared)
    np.testing.assert_array_equal(again.arrays["train"], first.arrays["train"])
    np.testing.assert_array_equal(again.labels["test"], first.labels["test"])
    assert again.full_name == "tiny_noise/1.2.0"


def test_a_damaged_cache_is_decoded_again(prepared, cache):
    first = tfds_arrays.read("tiny_noise", data_dir=prepared)
    (saved,) = cache.iterdir()
    saved.write_bytes(saved.read_bytes()[:-100])
    again = tfds_arrays.read("tiny_noise", data_dir=prepared)
    np.testing.assert_array_equal(again.arrays["train"], first.arrays["train"])


def test_a_cache_that_cannot_be_written_costs_only_time(prepared, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not kept"):
        assert len(tfds_arrays.read("tiny_noise", data_dir=prepared).arrays) == 2


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow can prepare"
)
def test_what_is_not_prepared_says_what_to_install_and_run(tmp_path):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=r"vae_jax\[tf\].*prepare") as error:
        sources.load("tfds:mnist", data_dir=tmp_path)
    assert time.perf_counter() - start < 5
    assert "\n" not in str(error.value)


def test_preparing_does_not_wait_for_an_address_that_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "silence", lambda url: "no answer")
    with pytest.raises(FileNotFoundError, match=r"tried to fetch http.*no answer"):
        tfds_arrays.prepare("mnist", data_dir=tmp_path)


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither prepared nor known") as error:
        sources.load("tfds:no_such_data", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_in_another_file_format_says_so(prepared, tmp_path):
    (info,) = Path(prepared).glob("tiny_noise/*/dataset_info.json")
    folder = tmp_path / "tiny_noise" / "1.2.0"
    folder.mkdir(parents=True)
    changed = json.loads(info.read_text()) | {"fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(changed))
    features = (info.parent / "features.json").read_text()
    (folder / "features.json").write_text(features)
    with pytest.raises(ValueError, match=r"cannot be read without TensorFlow.*prepare"):
        tfds_arrays.read("tiny_noise", data_dir=tmp_path)


def test_images_of_several_shapes_name_the_row(tmp_path):
    tfds_arrays.prepare("tiny_mixed", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"image 1 has shape.*image 0 has.*npz:PATH"):
        tfds_arrays.read("tiny_mixed", data_dir=tmp_path)


def test_a_data_set_without_images_names_its_features(tmp_path):
    tfds_arrays.prepare("tiny_values", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"no feature image, only \['vector'\]"):
        tfds_arrays.read("tiny_values", data_dir=tmp_path)


def test_two_data_sets_never_unpack_into_one_folder(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(
        tfds.core.GeneratorBasedBuilder,
        "download_and_prepare",
        lambda _, download_config, **__: folders.append(download_config.extract_dir),
    )
    for name in ("tiny_noise", "tiny_mixed"):
        tfds_arrays.prepare(name, data_dir=tmp_path)
    assert len(set(folders)) == 2
