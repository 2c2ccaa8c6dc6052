import io
import struct

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from vae_jax.data import matlab

LIMIT = 1 << 20
KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


def saved(variables, **options) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, **options)
    return file.getvalue()


@pytest.mark.parametrize("do_compression", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_scipy_writes_reads_back(kind, do_compression):
    many = np.arange(24).reshape(2, 3, 4).astype(kind)
    one = np.array([[7]], kind)
    content = saved(
        {"text": "abc", "many": many, "a_longer_name": one},
        do_compression=do_compression,
    )
    for name, array in (("many", many), ("a_longer_name", one)):
        got = matlab.read(content, name, limit=LIMIT)
        assert got.dtype == array.dtype
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, array)
    with pytest.raises(ValueError, match=r"it holds \['a_longer_name', 'many', 'text'"):
        matlab.read(content, "none", limit=LIMIT)


def test_the_other_byte_order_and_entries_stored_smaller_than_their_class():
    def element(kind: int, content: bytes) -> bytes:
        padding = bytes(-len(content) % 8)
        return struct.pack(">2I", kind, len(content)) + content + padding

    array = (
        element(6, struct.pack(">2I", 6, 0))  # of class double
        + element(5, struct.pack(">2i", 1, 3))
        + struct.pack(">2H", 2, 1)  # the small form: length, type, content
        + b"ff\0\0"
        + element(4, struct.pack(">3H", 1, 2, 300))
    )
    header = b"MATLAB 5.0".ljust(124) + b"\1\0MI"
    got = matlab.read(header + element(14, array), "ff", limit=LIMIT)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, [[1.0, 2.0, 300.0]])


@pytest.mark.parametrize("do_compression", [False, True])
def test_no_beginning_of_a_file_is_taken_for_the_whole(do_compression):
    content = saved(
        {"ff": np.arange(60, dtype=np.uint8).reshape(6, 10)},
        do_compression=do_compression,
    )
    for length in range(len(content) - 8):
        with pytest.raises((ValueError, matlab.zlib.error)):
            matlab.read(content[:length], "ff", limit=LIMIT)


@pytest.mark.parametrize(
    "value", ["text", np.array([[1j]]), scipy.sparse.eye(3), np.array([[{}]], object)]
)
def test_what_is_not_real_dense_and_numeric_is_refused(value):
    with pytest.raises(ValueError, match=r"not numeric, real and dense"):
        matlab.read(saved({"ff": value}), "ff", limit=LIMIT)


def test_a_promise_of_more_than_there_is_is_refused():
    content = bytearray(saved({"ff": np.zeros((6, 10), np.uint8)}))
    at = content.index(struct.pack("<2i", 6, 10))
    content[at : at + 4] = struct.pack("<i", 1 << 30)
    with pytest.raises(ValueError, match=r"promise 10737418240 bytes, 60 are there"):
        matlab.read(content, "ff", limit=LIMIT)
    packed = saved({"ff": np.zeros((600, 1000), np.uint8)}, do_compression=True)
    with pytest.raises(ValueError, match="truncated"):
        matlab.read(packed, "ff", limit=1000)
