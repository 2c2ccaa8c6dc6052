"""Readers meet files made of chance: the array, or the error they document."""

import gzip
import hashlib
import io
import json
import pathlib
import struct
import time
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.choices.config import Config
from experiments.command import cli
from vae_jax.coding import files as coded_files
from vae_jax.data import formats, image_files, image_pixels
from vae_jax.training import checkpoints

MEMORY = 64 << 20  # bytes, for files of a few hundred: more is a header believed


def written(save) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
IDX = b"\0\0\x08\x03" + struct.pack(">3I", *IMAGES.shape) + IMAGES.tobytes()
AMAT = b"0 1 1 0\n1 0 0 1\n"
MAT = written(lambda file: scipy.io.savemat(file, {"ff": IMAGES[0]}))
NPZ = written(lambda file: np.savez(file, train=IMAGES, labels=IMAGES[0]))
FLAGS = cli.write_flagfile(Config()).encode()
COLORS = Image.fromarray(IMAGES.repeat(3).reshape(6, 4, 3))
PICTURES = {
    form: written(lambda file, form=form: COLORS.save(file, form))
    for form in image_pixels.FORMATS
}
CAMERA = Image.Exif()
CAMERA[0x0112] = 6
PICTURES["JPEG turned"] = written(lambda f: COLORS.save(f, "JPEG", exif=CAMERA))


def write_zip(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("cat/1.png", "dog/2.png"):
            archive.writestr(name, PICTURES["PNG"])


ZIP = written(write_zip)
BITS = b'{"num_rows": 3}' + bytes(range(12))  # a header, then words
WHOLE = {"idx": IDX, "amat": AMAT, "mat": MAT, "npz": NPZ, "flags": FLAGS, "zip": ZIP}
WHOLE["bits"] = BITS
WHOLE |= PICTURES


def read_flags(path):
    return cli.parse(Config, ["train", f"--flagfile={path}"])


def read_picture(path):
    image_pixels.header(path.read_bytes())
    return image_pixels.decode(path.read_bytes(), image_size=3, color=True)


def read_zip(path):
    with image_files.listed(path) as listing:
        for file in listing.parts["train"]:
            image_pixels.decode(file.read(), image_size=None, color=False)


def read_bits(path):
    """Of a file whose digest is right, whatever it holds."""
    body = (len(BITS) - 12).to_bytes(4, "little") + path.read_bytes()
    digest = hashlib.sha256(body).digest()
    path.write_bytes(b"vae_jax bits-back 2\n" + digest + body)
    coded_files.read(path)


READ = {
    "idx": (formats.read_idx, ValueError),
    "amat": (formats.read_amat, ValueError),
    "mat": (lambda path: formats.read_mat(path, "ff"), ValueError),
    "npz": (formats.read_npz, ValueError),
    "flags": (read_flags, cli.UsageError),
    "zip": (read_zip, ValueError),
    "bits": (read_bits, ValueError),
    **dict.fromkeys(PICTURES, (read_picture, ValueError)),
}


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A whole file with a few bytes changed, put in, taken out, or repeated."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        some = draw(st.binary(max_size=8))
        kind = draw(st.sampled_from(("put", "insert", "cut", "drop", "repeat")))
        if kind == "put":
            content[at : at + len(some)] = some
        elif kind == "insert":
            content[at:at] = some
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + len(some)]
        else:
            content[at:at] = content[at : at + 64]
    packed = bytes(content)
    return gzip.compress(packed, 1) if draw(st.booleans()) else packed


def files(kind: str):
    return st.one_of(damaged(WHOLE[kind]), st.binary(max_size=200))


def check(kind: str, path, content: bytes) -> None:
    read, documented = READ[kind]
    path.write_bytes(content)
    said = ""
    tracemalloc.start()
    try:
        read(path)
    except documented as error:
        said = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert "\n" not in said
    assert peak < MEMORY


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", READ)
def test_a_damaged_file_is_read_or_refused_as_documented(kind, tmp_path):
    path, (read, _) = tmp_path / "file", READ[kind]
    path.write_bytes(WHOLE[kind])
    read(path)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(content=files(kind))
    def run(content):
        check(kind, path, content)

    run()


def test_an_npz_that_promises_more_than_it_holds_allocates_nothing(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 36,)}
    )
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.npy", header.getvalue() + b"1234")
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"train.npy promises"):
        formats.read_npz(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY


TREE = {"a": jnp.arange(6.0), "b": jnp.ones((2, 3))}


def saved_card(folder: pathlib.Path) -> pathlib.Path:
    """The card of a checkpoint that lies alone in a folder."""
    checkpoints.save(folder, 1, TREE)
    (card,) = folder.rglob("card.json")
    return card


def is_refused(card: pathlib.Path, content: bytes) -> bool:
    """Whether a checkpoint whose card holds this is called damaged, in one line.

    One that is not must be what was saved.
    """
    whole, results, said = card.read_bytes(), None, ""
    card.write_bytes(content)
    try:
        results = checkpoints.restore(card.parents[1], TREE)
    except checkpoints.DamagedError as error:
        said = str(error)
    card.write_bytes(whole)
    if results is None:
        assert "0000000001 is damaged" in said
        assert "\n" not in said
        return True
    assert json.loads(content)["contents"] == json.loads(whole)["contents"]
    for name, array in TREE.items():
        np.testing.assert_array_equal(results.tree[name], array)
    return False


@pytest.mark.slow
def test_a_card_changed_in_any_byte_or_cut_at_any_is_refused(tmp_path):
    card = saved_card(tmp_path)
    whole = card.read_bytes()
    assert not is_refused(card, whole)
    bits = np.random.default_rng(0).integers(0, 8, len(whole))
    for at, bit in enumerate(bits):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(bit)
        assert is_refused(card, bytes(changed)), at
        # The line's end alone has no effect.
        assert is_refused(card, whole[:at]) or at == len(whole) - 1


@pytest.mark.long
@pytest.mark.parametrize("kind", [*READ, "card"])
def test_two_minutes_of_damaged_files(kind, tmp_path):
    end, count = time.monotonic() + 120.0, 0
    card = saved_card(tmp_path / "saved")
    whole = card.read_bytes()

    @settings(
        max_examples=1000,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(content=files(kind) if kind != "card" else damaged(whole))
    def run(content):
        nonlocal count
        count += 1
        if time.monotonic() > end:
            return
        if kind == "card":
            is_refused(card, content)
        else:
            check(kind, tmp_path / "file", content)

    while time.monotonic() < end:
        run()
    print(f"{kind}: {count} files")
    assert count > 100
