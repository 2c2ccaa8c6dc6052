import numpy as np
import pytest

from vae_jax.data import photos, sources


@pytest.fixture(scope="module")
def source():
    return sources.load("photos")


def photographs():
    from sklearn.datasets import load_sample_images

    return load_sample_images().images  # pyright: ignore[reportAttributeAccessIssue]


def test_photos_are_color_patches_of_bytes_in_three_splits(source):
    shapes = [getattr(source, split).shape for split in sources.SPLITS]
    assert shapes == [(7128, 32, 32, 3), (792, 32, 32, 3), (792, 32, 32, 3)]
    assert source.train.dtype == np.uint8
    assert (source.offset, source.divisor) == (0, 255)
    assert source.classes == ("china", "flower")
    assert [*np.bincount(source.labels["test"])] == [396, 396]


def test_the_columns_of_the_splits_are_apart_and_all_there_are():
    ends = [end for columns in photos.COLUMNS.values() for end in columns]
    assert ends == [0, 96, 96, 128, 128, photos.PERIOD]
    assert [p.shape for p in photographs()] == [(427, 4 * photos.PERIOD, 3)] * 2


def test_every_patch_is_of_its_split_and_its_photograph(source):
    for split, (left, right) in photos.COLUMNS.items():
        rows, labels = getattr(source, split), source.labels[split]
        expected = {
            (label, photograph[i : i + 32, start + j : start + j + 32].tobytes())
            for label, photograph in enumerate(photographs())
            for start in (0, 160, 320, 480)
            for i in range(0, 427 - 31, 4)
            for j in range(left, right - 31, 8)
        }
        results = {(int(k), row.tobytes()) for k, row in zip(labels, rows, strict=True)}
        assert results == expected


def test_photos_are_the_same_each_time_and_in_no_order_of_place(source):
    again = sources.load("photos")
    assert sources.digest(again) == sources.digest(source)
    assert 0.3 < source.labels["train"][:100].mean() < 0.7
    with pytest.raises(ValueError, match="valid_size=5, but this source fixes"):
        sources.load("photos", valid_size=5)
