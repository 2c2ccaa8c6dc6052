import numpy as np
import pytest

from vae_jax.data import ranges, sources


def understand(array, data_range="auto", **more):
    return ranges.understand("own", {"train": array, **more}, data_range=data_range)


def up_to(top, dtype, shape=(10, 4, 3)):
    return np.linspace(0, top, int(np.prod(shape))).reshape(shape).astype(dtype)


@pytest.mark.parametrize(
    ("top", "dtype", "data_range", "divisor"),
    [
        (1, np.uint8, "auto", 1),
        (1, bool, "auto", 1),
        (255, np.uint8, "auto", 255),
        (255, np.uint16, "auto", 255),
        (128, np.int64, "auto", 255),
        (65535, np.uint16, "auto", 65535),
        (40000, np.uint16, "auto", 65535),
        (1, np.float32, "auto", 1),
        (255, np.float32, "auto", 1),
        (1, np.float64, "unit", 1),
        (1, np.int64, "unit", 1),
        (255, np.float64, "byte", 255),
        (16, np.uint8, "byte", 255),
        (1, np.uint8, "byte", 255),
        (65535, np.float32, "word", 65535),
        (200, np.uint16, "word", 65535),
        (1000, np.int64, "word", 65535),
        (1e6, np.float32, "value", 1),
        (90, np.int64, "value", 1),
    ],
)
def test_numbers_are_on_the_scale_that_they_show_or_that_is_said(
    top, dtype, data_range, divisor
):
    array = up_to(top, dtype)
    arrays, results = understand(array, data_range)
    assert results == divisor
    np.testing.assert_array_equal(arrays["train"], array)
    source = sources.checked("own", arrays, {}, offset=0.0, divisor=results, origin="")
    np.testing.assert_array_equal(source.train, array.astype(np.float32))


def test_bytes_stay_bytes_and_longer_integers_become_floats():
    assert understand(up_to(255, np.uint8))[0]["train"].dtype == np.uint8
    assert understand(up_to(65535, np.uint16))[0]["train"].dtype == np.float32
    assert understand(up_to(9, np.uint8), "value")[0]["train"].dtype == np.float32


def test_values_may_be_negative_and_a_range_skips_missing_entries():
    assert understand(up_to(-3, np.float32), "value")[1] == 1
    assert understand(up_to(-3, np.int64), "value")[1] == 1
    holes = up_to(255, np.float32)
    holes[0] = np.nan
    assert understand(holes, "byte")[1] == 255
    assert understand(np.full((2, 2), np.nan), "byte")[1] == 255


SETTLES = r"say what they are \(data_range="


@pytest.mark.parametrize(
    ("array", "data_range", "said"),
    [
        (up_to(16, np.uint8), "auto", "up to 16, .* from 0 to 255: .*" + SETTLES),
        (up_to(127, np.int64), "auto", "up to 127, .*" + SETTLES),
        (up_to(4095, np.uint16), "auto", "up to 4095, .* 0 to 65535: .*" + SETTLES),
        (up_to(300, np.int64), "auto", "integers from 0 to 300: scale .*" + SETTLES),
        (up_to(-3, np.int64), "auto", "integers from -3 to 0: scale .*" + SETTLES),
        (up_to(70000, np.uint32), "auto", "from 0 to 70000: scale .*" + SETTLES),
        (up_to(2, np.float32), "unit", "from 0 to 2, but data_range=unit .*0 to 1:"),
        (up_to(256, np.int64), "byte", "data_range=byte are those from 0 to 255: take"),
        (up_to(65536, np.float32), "word", "0 to 65536, but data_range=word"),
        (up_to(-1, np.float32), "byte", "from -1 to 0, but data_range=byte"),
        (up_to(1, np.float32), "bytes", "data_range='bytes': choose one of auto, unit"),
    ],
)
def test_what_may_be_one_or_another_is_refused_with_what_settles_it(
    array, data_range, said
):
    with pytest.raises(ValueError, match=said) as error:
        understand(array, data_range)
    assert "\n" not in str(error.value)


def test_one_split_on_another_scale_is_refused_and_named():
    with pytest.raises(ValueError, match="test holds integers up to 20"):
        understand(up_to(255, np.uint8), test=up_to(20, np.uint8))
    with pytest.raises(ValueError, match="test holds numbers from 0 to 9, but"):
        understand(up_to(1, np.uint8), "unit", test=up_to(9, np.uint8))


@pytest.mark.parametrize(("data_range", "divisor"), [("byte", 255), ("value", 1)])
def test_a_range_that_is_said_is_in_the_source(tmp_path, data_range, divisor):
    np.savez(tmp_path / "own.npz", train=up_to(90, np.uint16, (10, 4, 3, 1)))
    name = f"npz:{tmp_path / 'own.npz'}"
    with pytest.raises(ValueError, match="data_range"):
        sources.load(name)
    source = sources.load(name, data_range=data_range)
    assert source.origin.endswith(f", data_range {data_range}")
    assert source.train.shape == (10, 4, 3)
    assert source.divisor == divisor
