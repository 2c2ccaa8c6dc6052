"""A file of bits is read back whole, or refused in one line."""

import hashlib

import numpy as np
import pytest

from vae_jax.coding import files

WORDS = np.arange(7, dtype=np.uint32) * 2**29
HEADER = {"num_rows": 3, "shape": [2, 2], "model": "a"}


@pytest.fixture
def path(tmp_path):
    """A file that is whole."""
    path = tmp_path / "rows.bits"
    assert files.write(path, HEADER, WORDS) == path.stat().st_size
    return path


def test_a_file_is_read_as_it_was_written(path):
    header, words = files.read(path)
    assert header == HEADER
    np.testing.assert_array_equal(words, WORDS)
    assert words.dtype == np.uint32


def test_a_header_costs_its_text_alone(path):
    text = '{"model": "a", "num_rows": 3, "shape": [2, 2]}'
    assert path.stat().st_size == 20 + 32 + 4 + len(text) + 4 * len(WORDS)


def test_a_file_that_is_cut_anywhere_is_refused(path):
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"damaged|not written by this coder"):
            files.read(path)


def test_a_file_with_any_bit_changed_is_refused(path):
    content = bytearray(path.read_bytes())
    for at in range(len(content)):
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged|not written by this coder"):
            files.read(path)
        content[at] ^= 1 << at % 8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no such file"),
        (b"\x89PNG", "no such file"),
        (b"vae_jax bits-back 1\n" + bytes(99), "another version"),
    ],
)
def test_another_format_is_refused(tmp_path, content, said):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        files.read(tmp_path / "a")


@pytest.mark.parametrize(
    ("header", "words", "said"),
    [
        (b"{", b"", "no header and words"),
        (b"[" * 100_000, b"", "no header and words"),
        (b"\xff", b"", "no header and words"),
        (b"{}", b"123", "no header and words"),
        (b"[1]", b"", "a list for a header"),
    ],
    ids=["cut", "deep", "no text", "no words", "no header"],
)
def test_what_another_writer_sealed_is_refused(path, header, words, said):
    body = len(header).to_bytes(4, "little") + header + words
    digest = hashlib.sha256(body).digest()
    path.write_bytes(b"vae_jax bits-back 2\n" + digest + body)
    with pytest.raises(ValueError, match=said):
        files.read(path)
