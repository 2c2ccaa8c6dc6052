import subprocess
import sys

import numpy as np
import pytest

from vae_jax.data import sources

LIGHT = (
    "import sys, vae_jax.data.sources; print(sorted({'tensorflow_datasets', 'pooch', "
    "'sklearn', 'requests', 'scipy', 'jax'} & set(sys.modules)))"
)


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        path = tmp_path / "own.npz"
        np.savez(path, **arrays)
        return f"npz:{path}"

    return save


def images(num_rows, *shape, dtype=np.uint8):
    shape = shape or (4, 3)
    return np.random.default_rng(0).integers(0, 256, (num_rows, *shape)).astype(dtype)


def test_importing_the_sources_loads_no_heavy_library():
    result = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_digits_are_split_in_row_order_on_the_scale_of_sixteenths():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    source = sources.load("digits")
    assert [len(getattr(source, split)) for split in sources.SPLITS] == [1000, 350, 447]
    rows = np.concatenate([source.train, source.valid, source.test])
    np.testing.assert_array_equal(rows, bunch.images)  # pyright: ignore[reportAttributeAccessIssue]
    labels = np.concatenate([source.labels[split] for split in sources.SPLITS])
    np.testing.assert_array_equal(labels, bunch.target)  # pyright: ignore[reportAttributeAccessIssue]
    assert source.train.dtype == np.uint8
    assert (source.offset, source.divisor) == (0, 16)
    assert source.train.max() == 16


@pytest.mark.parametrize("name", ["digits", "binarized_mnist", "frey_face"])
def test_a_valid_size_is_refused_where_the_splits_are_fixed(name):
    with pytest.raises(ValueError, match="valid_size=5, but this source fixes"):
        sources.load(name, valid_size=5)


@pytest.mark.parametrize("name", ["", "mnsit", "npz", "npz:", "tfds:", "digits:8"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(
        ValueError,
        match=r"choose one of digits, photos, .*csv:PATH, npz:PATH, tfds:NAME",
    ):
        sources.load(name)


def test_npz_keeps_all_splits_and_labels(save):
    train, test = images(10), images(3)
    labels = np.arange(10)
    source = sources.load(save(train=train, test=test, train_labels=labels))
    np.testing.assert_array_equal(source.train, train)
    np.testing.assert_array_equal(source.test, test)
    np.testing.assert_array_equal(source.labels["train"], labels)
    assert source.valid.shape == (0, 4, 3)
    assert list(source.labels) == ["train"]
    assert source.divisor == 255
    assert "own.npz" in source.origin
    assert "/" not in source.origin


def test_npz_without_valid_holds_out_the_last_rows_that_are_asked_for(save):
    train, labels = images(10), np.arange(10)
    name = save(train=train, train_labels=labels)
    source = sources.load(name, valid_size=4)
    np.testing.assert_array_equal(source.train, train[:6])
    np.testing.assert_array_equal(source.valid, train[6:])
    assert source.labels["valid"].tolist() == [6, 7, 8, 9]
    for size in (10, 11):
        with pytest.raises(ValueError, match=f"valid_size={size} leaves none of 10"):
            sources.load(name, valid_size=size)
    with pytest.raises(ValueError, match="valid_size=-1 is negative"):
        sources.load(name, valid_size=-1)
    with pytest.raises(ValueError, match="fixes its splits"):
        sources.load(save(train=train, valid=train), valid_size=2)


@pytest.mark.parametrize(
    ("dtype", "expected", "divisor"),
    [
        (np.uint8, np.uint8, 255),
        (np.int64, np.uint8, 255),
        (np.uint16, np.uint8, 255),
        (bool, np.uint8, 1),
        (np.float64, np.float32, 1),
        (np.float16, np.float32, 1),
    ],
)
def test_npz_dtypes_become_bytes_or_floats(save, dtype, expected, divisor):
    source = sources.load(save(train=images(10, dtype=dtype)))
    assert source.train.dtype == source.test.dtype == expected
    assert source.divisor == divisor


def test_stored_zeros_and_ones_are_values_and_not_shades(save):
    assert sources.load(save(train=images(10) % 2)).divisor == 1


def test_a_single_channel_is_dropped_and_three_are_kept(save):
    assert sources.load(save(train=images(5, 4, 3, 1))).train.shape == (5, 4, 3)
    assert sources.load(save(train=images(5, 4, 3, 3))).train.shape == (5, 4, 3, 3)
    assert sources.load(save(train=images(5, 4, 1))).train.shape == (5, 4, 1)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.nan, "NaN: .* mend it"),
        (np.inf, "infinity: .* mend it"),
        (1e300, r"1e\+300, more than float32 does: scale"),
    ],
)
def test_an_entry_that_is_not_finite_names_its_split_and_row(save, bad, said):
    valid = np.zeros((6, 4, 3))
    valid[4, 1, 2] = bad
    with pytest.raises(ValueError, match=f"valid row 4 holds {said}"):
        sources.load(save(train=np.zeros((5, 4, 3)), valid=valid))


def test_nan_is_a_missing_entry_where_that_is_said_and_infinity_never_is(save):
    train = np.zeros((5, 4, 3))
    train[2, 1, 0] = np.nan
    name = save(train=train)
    with pytest.raises(ValueError, match=r"train row 2 holds NaN: .*missing=nan"):
        sources.load(name)
    source = sources.load(name, missing="nan")
    np.testing.assert_array_equal(sources.missing_entries(source.train), train != train)
    with pytest.raises(ValueError, match="train row 0 holds infinity"):
        sources.load(save(train=np.full((5, 2), np.inf)), missing="nan")
    with pytest.raises(ValueError, match="missing='zero': choose one of refuse, nan"):
        sources.load(name, missing="zero")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"valid": images(5)}, "no array named train among"),
        ({"train": images(0)}, r"train has shape \(0, 4, 3\): give at least one row"),
        ({"train": images(5, 0)}, "at least one entry"),
        ({"train": np.zeros(5)}, r"train has shape \(5,\): reshape"),
        ({"train": images(5), "test": images(5, 3, 4)}, "rows of test have shape"),
        ({"train": images(5), "test": np.zeros((5, 4, 3))}, "test is float32, train"),
        ({"train": np.full((5, 2), 256)}, "integers from 256 to 256: scale"),
        ({"train": np.full((5, 2), -1)}, "integers from -1 to -1: scale"),
        ({"train": np.full((5, 2), "a")}, "store bool, float, integers .*16-bit words"),
        ({"train": np.zeros((5, 2), complex)}, "store bool, float, integers in 0..255"),
        (
            {"train": images(5), "train_labels": np.arange(4)},
            "one integer for each of the 5 rows",
        ),
        (
            {"train": images(5), "train_labels": np.zeros(5)},
            "one integer for each of the 5 rows",
        ),
        (
            {"train": images(5), "train_labels": np.arange(5) * 2**31},
            f"train label {2**31} does not fit into 32 bits: number the classes",
        ),
        (
            {"train": images(5), "test_labels": np.arange(5)},
            r"labels or context of no rows: \['test'\]",
        ),
    ],
)
def test_unfit_arrays_are_refused_with_the_fix(save, arrays, message):
    with pytest.raises(ValueError, match=message) as error:
        sources.load(save(**arrays))
    assert "\n" not in str(error.value)


def test_an_npz_file_that_is_not_there_or_holds_pickles_is_refused(save, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.npz"):
        sources.load(f"npz:{tmp_path / 'none.npz'}")
    with pytest.raises(IsADirectoryError, match=rf"^{tmp_path} is a folder: name a"):
        sources.load(f"npz:{tmp_path}")
    said = r"own\.npz: train is an array of Python objects, .*: make it one of numbers"
    with pytest.raises(ValueError, match=said):
        sources.load(save(train=np.array([{}, {}], object)))
