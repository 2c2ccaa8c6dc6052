import io
import json
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments.choices.config import Config
from experiments.runs import protocol
from vae_jax.data import files, image_arrays, image_files, image_pixels, sources

# So are nearly all of these.
pytestmark = pytest.mark.filterwarnings("ignore:.*no pixel to train on is above")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return files.cache_dir("images")


@pytest.fixture
def save(tmp_path):
    """Images below a folder, by name; the folder."""

    def save(images, root="own"):
        for name, pixels in images.items():
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(pixels, bytes):
                path.write_bytes(pixels)
            else:
                Image.fromarray(pixels).save(path)
        return tmp_path / root

    return save


def noise(*shape, start=0):
    return np.random.default_rng(start).integers(0, 256, shape, np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def shade(number, *shape):
    return np.full(shape or (4, 3), number, np.uint8)


def load(path, **how):
    return sources.load(f"images:{path}", **how)


def numbered(num, *shape, folder=""):
    return {f"{folder}{i:03d}.png": shade(i, *shape) for i in range(num)}


def test_gray_files_are_rows_and_one_in_color_makes_all_color(save):
    assert load(save(numbered(20))).train.shape == (17, 4, 3)
    source = load(save({"z.png": noise(4, 3, 3)}))
    assert source.train.shape[1:] == (4, 3, 3)
    assert source.train.dtype == np.uint8
    assert (source.offset, source.divisor) == (0, 255)


def test_channels_are_what_is_asked_for(save):
    path = save({"a.png": noise(4, 3, 3), "b.png": noise(4, 3)})
    assert load(path, channels="gray").train.shape == (2, 4, 3)
    assert load(path, channels="color").train.shape == (2, 4, 3, 3)
    with pytest.raises(ValueError, match="channels='rgb': choose one of auto, gray"):
        load(path, channels="rgb")


def test_images_of_fewer_bits_than_their_files_are_nearly_black_and_said_to_be(save):
    twelve = {f"{i}.png": np.full((4, 3), 4095 - i, np.uint16) for i in range(3)}
    path = save(twelve)
    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(UserWarning, match="no pixel to train on is above 15 of 255"):
            load(path)
    save({"3.png": np.full((4, 3), 8192, np.uint16)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(path, valid_size=0).train.max() == 32


def test_without_splits_a_tenth_is_test_and_a_tenth_of_the_rest_valid(save):
    path = save(numbered(100))
    source = load(path)
    assert [len(getattr(source, s)) for s in sources.SPLITS] == [81, 9, 10]
    every = np.concatenate([source.train, source.valid, source.test])[:, 0, 0]
    assert sorted(every) == list(range(100))
    assert "its last 10 test" in source.origin
    other = load(path, data_seed=1)
    assert not np.array_equal(np.sort(other.test, 0), np.sort(source.test, 0))
    assert "data_seed 1" in other.origin
    more = load(path, valid_size=40)
    np.testing.assert_array_equal(more.test, source.test)
    np.testing.assert_array_equal(more.valid[-9:], source.valid)
    assert len(load(path, valid_size=0).train) == 90
    with pytest.raises(ValueError, match="valid_size=90 leaves none of 90 training"):
        load(path, valid_size=90)


def test_splits_that_are_there_are_kept(save):
    train, test = numbered(20, folder="train/"), numbered(5, folder="test/")
    source = load(save(train | test))
    assert [len(getattr(source, s)) for s in sources.SPLITS] == [18, 2, 5]
    assert "its last" not in source.origin
    path = save(numbered(3, folder="val/"))
    assert [len(getattr(load(path), s)) for s in sources.SPLITS] == [20, 3, 5]
    with pytest.raises(ValueError, match="valid_size=2, but this source fixes"):
        load(path, valid_size=2)


def test_labels_are_the_sorted_names_of_the_folders_and_follow_the_rows(save):
    cats = {f"train/cat/{i}.png": shade(i) for i in range(10)}
    apes = {f"train/ape/{i}.png": shade(100 + i) for i in range(10)}
    bees = {"test/bee/0.png": shade(50)}
    source = load(save(cats | apes | bees), valid_size=6)
    assert source.classes == ("ape", "bee", "cat")
    assert source.labels["train"].dtype == np.int32
    for split in ("train", "valid"):
        rows = getattr(source, split)[:, 0, 0]
        assert source.labels[split].tolist() == [0 if r >= 100 else 2 for r in rows]
    assert source.labels["test"].tolist() == [1]
    assert len(set(source.labels["train"])) == 2


def test_there_are_no_labels_of_one_class_or_beside_files_in_none(save):
    path = save(numbered(5, folder="only/"))
    assert load(path).labels == {}
    save(numbered(5, folder="other/"))
    assert load(path).classes == ("only", "other")
    source = load(save(numbered(1)))
    assert (source.labels, source.classes) == ({}, ())


def test_an_archive_gives_what_the_folder_gives(save, tmp_path):
    path = save(numbered(9, folder="a/") | numbered(9, folder="b/"))
    with zipfile.ZipFile(tmp_path / "own.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(path))
    unpacked, packed = load(path), load(tmp_path / "own.zip")
    assert sources.digest(packed) == sources.digest(unpacked)
    np.testing.assert_array_equal(packed.labels["train"], unpacked.labels["train"])
    assert packed.classes == unpacked.classes


def test_images_of_several_sizes_need_an_image_size_and_name_two_files(save):
    path = save({"a.png": noise(6, 6), "b.png": noise(9, 7, 3)})
    said = r"b\.png is 9 x 7, .*a\.png is 6 x 6: scale all to one size \(image_size\)"
    with pytest.raises(ValueError, match=said) as error:
        load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=said):
        load(path, skip_broken=True)
    source = load(path, image_size=5)
    assert source.train.shape == (2, 5, 5, 3)
    assert "squares in the middle scaled to 5 by Lanczos" in source.origin
    with pytest.raises(ValueError, match="image_size=0 is not positive"):
        load(path, image_size=0)


BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "cut": png(noise(40, 40))[:-300],
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("image_size", [None, 4])
def test_a_broken_file_is_named_or_left_out_and_counted(save, kind, image_size):
    whole = {f"{i}.png": noise(40, 40, start=i) for i in range(6)}
    path, how = save({**whole, "bad.png": BROKEN[kind]}), {"image_size": image_size}
    said = r"bad\.png: .*: mend or remove this image, or leave out .*\(skip_broken\)"
    with pytest.raises(ValueError, match=said) as error:
        load(path, **how)
    assert "\n" not in str(error.value)
    clean = load(save(whole, root="clean"), **how)
    assert "broken" not in clean.origin
    rows = {row.tobytes() for row in clean.train}
    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(match=r"1 of 7 files cannot .*first: .*bad\.png"):
            source = load(path, skip_broken=True, **how)
        assert "1 of them broken and left out" in source.origin
        assert {row.tobytes() for row in source.train} == rows


def test_an_image_that_is_not_of_the_size_in_its_header_is_broken(save, monkeypatch):
    path = save({"a.png": noise(4, 6)})
    lines_said = image_pixels.Header(False, 6, 4)
    monkeypatch.setattr(image_pixels, "header", lambda content: lines_said)
    said = r"a\.png: its pixels are \(4, 6\), its header says \(6, 4\): mend"
    with pytest.raises(ValueError, match=said):
        load(path)


def test_labels_stay_with_their_rows_where_broken_files_are_left_out(save):
    files_of = {f"{i % 3}/{i}.png": shade(i) for i in range(30)}
    broken = {f"{i % 3}/x{i}.png": b"" for i in range(12)}
    with pytest.warns(match="12 of 42 files"):
        source = load(save(files_of | broken), skip_broken=True)
    assert len(source.train) == len(source.labels["train"])
    assert (source.labels["train"] == source.train[:, 0, 0] % 3).all()


def test_where_no_file_can_be_read_none_is_left_out_in_silence(save):
    path = save({"a.png": b"", "b.png": b""})
    with pytest.raises(ValueError, match="none of"):
        load(path, skip_broken=True)
    with pytest.raises(ValueError, match=r"own: none of 2 .*\.png: it is empty"):
        load(path, skip_broken=True, image_size=2, channels="gray")


@pytest.fixture
def decoded(monkeypatch):
    """How many images were decoded or looked at."""
    calls = []

    def counting(function):
        def counted(content, **how):
            calls.append(function.__name__)
            return function(content, **how)

        return counted

    for name in ("decode", "header"):
        counted = counting(getattr(image_pixels, name))
        monkeypatch.setattr(image_pixels, name, counted)
    return calls


def test_a_second_load_decodes_nothing_and_is_the_same(save, decoded):
    path = save(numbered(10, folder="a/") | numbered(10, folder="b/"))
    first = load(path)
    assert decoded.count("decode") == decoded.count("header") == 20
    again = load(path)
    assert len(decoded) == 40
    assert again.origin == first.origin
    assert again.classes == first.classes
    assert sources.digest(again) == sources.digest(first)
    np.testing.assert_array_equal(again.labels["train"], first.labels["train"])
    load(save(numbered(10, folder="a/") | numbered(10, folder="b/"), root="copy"))
    assert len(decoded) == 40


def test_what_changes_the_arrays_is_decoded_again(save, decoded):
    path = save(numbered(10))
    load(path)
    for how in (
        {"image_size": 2},
        {"channels": "color"},
        {"channels": "gray"},
        {"data_seed": 1},
        {"skip_broken": True},
    ):
        before = len(decoded)
        load(path, **how)
        assert len(decoded) > before, how
    before, old = len(decoded), load(path)
    save({"003.png": shade(200)})
    new = load(path)
    assert len(decoded) > before
    assert {200} == {*new.train[:, 0, 0]} - {*old.train[:, 0, 0]}


def test_a_damaged_cache_is_written_anew(save, cache, decoded):
    path = save(numbered(10))
    load(path)
    (folder,) = cache.iterdir()
    for damage in (
        lambda: (folder / "train.npy").write_bytes(b"\x93NUMPY"),
        lambda: (folder / "train.npy").write_bytes(
            (folder / "train.npy").read_bytes()[:-5]
        ),
        lambda: (folder / "card.json").write_text(json.dumps({})),
        lambda: (folder / "card.json").unlink(),
    ):
        damage()
        before = len(decoded)
        assert len(load(path).train) == 8 + 1
        assert len(decoded) == before + 20
    assert [*cache.iterdir()] == [folder]


def test_a_failed_load_leaves_nothing_in_the_cache(save, cache):
    with pytest.raises(ValueError, match="bad"):
        load(save({**numbered(5), "bad.png": b""}), image_size=4, channels="gray")
    assert [*cache.iterdir()] == []


def test_a_cache_that_cannot_be_written_is_named(save, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"cannot be written .*XDG_CACHE_HOME"):
        load(save(numbered(5)))


def mapped(array):
    """Whether an array lies in a file."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def test_rows_stay_on_the_disk(save):
    source = load(save(numbered(20)))
    for split in sources.SPLITS:
        assert mapped(getattr(source, split))
    rows = source.train
    assert np.shares_memory(
        rows,
        sources.checked(
            "own", {"train": rows}, {}, offset=0.0, divisor=255.0, origin=""
        ).train,
    )


@pytest.mark.slow
def test_what_reads_the_rows_copies_none(save):
    path = save(numbered(100, 256, 256, 3))
    config = Config(dataset=f"images:{path}", binarization="none", likelihood="normal")
    protocol.load(config)
    tracemalloc.start()
    data = protocol.load(config)
    assert protocol.stamp(config, data)["split_sizes"]["train"] == 81
    assert "256x256x3 uint8" in protocol.opening(config, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mapped(data.prepared.train)
    assert peak < data.source.train.nbytes / 2


def test_only_a_block_of_files_waits_in_memory(save, monkeypatch):
    monkeypatch.setattr(image_files, "_BLOCK", 3)
    assert len(load(save(numbered(20)), valid_size=0).train) == 18


def test_pillow_does_not_warn_beside_an_error(save):
    content = png(noise(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="bad"):
            load(save({"bad.png": content[:40]}))


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("digits", {"image_size": 8}, "image_size=8 has no effect .* of images:PATH"),
        ("digits", {"channels": "gray"}, "channels=gray has no effect"),
        ("digits", {"skip_broken": True}, "skip_broken=True has no effect"),
        ("digits", {"data_range": "byte"}, "of npz:PATH and tfds:NAME"),
        ("images:own", {"data_range": "byte"}, "data_range=byte has no effect"),
    ],
)
def test_an_argument_that_says_nothing_to_a_source_is_refused(name, how, said):
    with pytest.raises(ValueError, match=said):
        sources.load(name, **how)


def test_the_reader_is_told_where_nothing_is():
    with pytest.raises(FileNotFoundError, match="there is no folder or"):
        image_arrays.read("no-such-folder")


def test_real_photographs_from_an_archive(data_dir):
    source = load(f"{data_dir}/cifar10_jpeg/test.zip")
    assert source.train.shape == (8100, 32, 32, 3)
    assert len(source.classes) == 10
    assert np.bincount(source.labels["train"]).min() > 700
