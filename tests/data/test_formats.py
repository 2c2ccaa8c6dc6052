import gzip
import hashlib
import struct
import time
import tracemalloc

import numpy as np
import pytest
import scipy.io

from vae_jax.data import formats

CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}


def idx(array, code=8, shape=None):
    shape = array.shape if shape is None else shape
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)
    return header + array.tobytes()


def amat(rows):
    return "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()


@pytest.fixture
def write(tmp_path):
    def write(content, name="file"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("dtype", CODES)
def test_idx_of_every_type_reads_back_in_native_order(write, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    read = formats.read_idx(write(idx(array, CODES[dtype])))
    np.testing.assert_array_equal(read, array)
    assert read.dtype.isnative


def test_gzip_is_recognized_by_its_content_and_not_by_its_name(write):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    packed = write(gzip.compress(idx(array)), "plain-name")
    plain = write(idx(array), "name.gz")
    np.testing.assert_array_equal(formats.read_idx(packed), array)
    np.testing.assert_array_equal(formats.read_idx(plain), array)


def test_checksums_are_those_of_the_unpacked_content(write):
    content = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))
    sha256 = hashlib.sha256(content).hexdigest()
    for level in (1, 9):
        formats.read_idx(write(gzip.compress(content, level)), sha256=sha256)
    other = write(idx(np.zeros((2, 3), np.uint8)))
    with pytest.raises(ValueError, match=f"expected sha256 {sha256}.*got.*remove"):
        formats.read_idx(other, sha256=sha256)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_truncated_idx_file_says_what_was_promised_and_what_is_there(write, pack):
    content = idx(np.zeros((5, 4, 3), np.uint8))[:-7]
    with pytest.raises(ValueError, match="5 x 4 x 3 = 60 bytes, file holds 53"):
        formats.read_idx(write(pack(content)))


def test_a_file_that_ends_inside_its_idx_header_is_truncated(write):
    with pytest.raises(ValueError, match="ends inside its idx header"):
        formats.read_idx(write(struct.pack(">BBBBI", 0, 0, 8, 3, 5)))


@pytest.mark.parametrize("content", [b"", b"\0\0", b"<html>no</html>", b"\0\0\7\1xxxx"])
def test_a_wrong_magic_is_not_an_idx_file(write, content):
    with pytest.raises(ValueError, match="not an idx file"):
        formats.read_idx(write(content))


def test_an_idx_file_longer_than_promised_is_refused(write):
    with pytest.raises(ValueError, match="too long"):
        formats.read_idx(write(idx(np.zeros((5, 4), np.uint8), shape=(4, 4))))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_header_that_claims_two_to_the_31_images_allocates_nothing(write, pack):
    content = idx(np.zeros(100, np.uint8), shape=(2**31, 28, 28))
    path = write(pack(content))
    tracemalloc.start()
    with pytest.raises(ValueError, match="truncated: header promises 2147483648 x 28"):
        formats.read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    "read", [formats.read_idx, formats.read_amat, lambda p: formats.read_mat(p, "ff")]
)
def test_a_gzip_bomb_is_read_no_further_than_the_limit(write, monkeypatch, read):
    monkeypatch.setattr(formats, "LIMIT", 1 << 20)
    zeros = np.zeros(64 << 20, np.uint8)
    path = write(gzip.compress(idx(zeros, shape=(2**31, 28)), 1))
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds more than the 1048576 bytes"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_damaged_gzip_is_a_one_line_error_that_names_the_file(write):
    content = gzip.compress(idx(np.arange(200, dtype=np.uint8)))
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for damaged in (content[:-20], bytes(flipped)):
        with pytest.raises(ValueError, match=r"damaged.*gzip|truncated") as error:
            formats.read_idx(write(damaged, "some-file"))
        assert "some-file" in str(error.value)
        assert "\n" not in str(error.value)


def test_amat_reads_back_with_or_without_its_last_newline(write):
    rows = np.random.default_rng(0).integers(0, 2, (20, 9))
    for content in (amat(rows), amat(rows)[:-1], gzip.compress(amat(rows))):
        read = formats.read_amat(write(content))
        np.testing.assert_array_equal(read, rows)
        assert read.dtype == np.uint8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0 1 0\n0 2 0\n", "line 2 is not 3 zeros and ones"),
        (b"0 1 0\n0 1 1\n1-1 1\n", "line 3"),
        (b"0 1 0\n0 1 1 1 0 1\n", "line 2"),
        (b"0 1 0\n0 1\n", "truncated or not an amat"),
        (b"0.5 1.0\n0.5 1.0\n", "line 1"),
        (b"10\n01\n", "truncated or not an amat"),
        (b"0 1 0 1 0\n0 1 0\n1 1\n", "truncated or not|line 2"),
        (b"", "empty"),
        (b"0 1 0", "no line ends"),
    ],
)
def test_other_text_than_zeros_and_ones_is_refused(write, content, message):
    with pytest.raises(ValueError, match=message):
        formats.read_amat(write(content))


@pytest.mark.slow
def test_fifty_thousand_amat_rows_take_about_a_second(write):
    row = b"0 1 " * 392
    path = write((row[:-1] + b"\n") * 50_000)
    start = time.perf_counter()
    read = formats.read_amat(path)
    assert time.perf_counter() - start < 5  # measured 0.4 s; parsing takes 60
    assert read.shape == (50_000, 784)
    assert read.sum() == 50_000 * 392


@pytest.mark.parametrize("do_compression", [False, True])
def test_mat_gives_the_variable_and_checks_the_array(tmp_path, do_compression):
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    path = tmp_path / "file.mat"
    scipy.io.savemat(path, {"ff": array}, do_compression=do_compression)
    sha256 = hashlib.sha256(array.tobytes()).hexdigest()
    np.testing.assert_array_equal(formats.read_mat(path, "ff", sha256=sha256), array)
    with pytest.raises(ValueError, match="wrong checksum"):
        formats.read_mat(path, "ff", sha256="0" * 64)
    with pytest.raises(ValueError, match=r"no variable 'gg'; it holds \['ff'\]"):
        formats.read_mat(path, "gg")


def test_a_damaged_mat_is_a_one_line_error(tmp_path, write):
    path = tmp_path / "file.mat"
    scipy.io.savemat(path, {"ff": np.zeros((30, 40), np.uint8), "name": "text"})
    for content in (path.read_bytes()[:-200], b"", b"x" * 500):
        with pytest.raises(ValueError, match="not a whole MATLAB 5 file") as error:
            formats.read_mat(write(content), "ff")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="not numeric"):
        formats.read_mat(path, "name")


def test_npz_reads_back_and_refuses_pickles_and_damage(tmp_path, write):
    path = tmp_path / "file.npz"
    np.savez(path, a=np.arange(3), b=np.ones((2, 2)))
    read = formats.read_npz(path)
    assert sorted(read) == ["a", "b"]
    np.testing.assert_array_equal(read["b"], np.ones((2, 2)))
    flipped = bytearray(path.read_bytes())
    flipped[flipped.index(np.ones(2).tobytes())] ^= 1
    np.savez(tmp_path / "pickle.npz", a=np.array([{}, []], object))
    np.save(tmp_path / "array.npy", np.arange(3))
    for other in (
        write(path.read_bytes()[:-50]),
        write(b"", "empty"),
        write(b"text", "text"),
        write(bytes(flipped), "flipped"),
        tmp_path / "array.npy",
    ):
        said = r"not a whole \.npz of plain .* numpy\.savez.* text by .*loadtxt"
        with pytest.raises(ValueError, match=said) as error:
            formats.read_npz(other)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"pickle\.npz: a is an array of Python obj"):
        formats.read_npz(tmp_path / "pickle.npz")
