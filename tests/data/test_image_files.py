import io
import os
import threading
import zipfile

import pytest

from vae_jax.data import image_files

NAMES = ("a.png", "b.JPG")


@pytest.fixture
def plant(tmp_path):
    """Files of these names below a folder, each with its own name as content."""

    def plant(*names, root="data"):
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        return tmp_path / root

    return plant


@pytest.fixture
def pack(tmp_path):
    """The same in a .zip."""

    def pack(*names, root="data.zip"):
        path = tmp_path / root
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, name)
        return path

    return pack


def listing(path):
    """(class, content) of each file by split; and the number of others."""
    with image_files.listed(path) as results:
        classes = image_files.class_names(results.parts)
        parts = {
            split: [
                (name, file.read().decode())
                for name, file in zip(classes[split], part, strict=True)
            ]
            for split, part in results.parts.items()
        }
        return parts, results.num_others


def sha256(path):
    with image_files.listed(path) as results:
        return results.sha256


@pytest.fixture(params=["folder", "zip"])
def source(request, plant, pack):
    return plant if request.param == "folder" else pack


def test_files_are_found_by_their_suffix_in_the_order_of_their_names(source):
    path = source("b.JPG", "a.png", "labels.csv", "read.me", "noext", "c.tiff")
    parts, num_others = listing(path)
    assert parts == {"train": [("", "a.png"), ("", "b.JPG"), ("", "c.tiff")]}
    assert num_others == 3


def test_hidden_files_are_passed_over(source):
    hidden = ("__MACOSX/a.png", ".DS_Store", "._a.png", ".git/b.png", "Thumbs.db")
    assert listing(source("a.png", *hidden)) == ({"train": [("", "a.png")]}, 1)


def test_folders_are_classes(source):
    parts, _ = listing(source("cat/1.png", "dog/1.png", "dog/old/2.png"))
    assert [name for name, _ in parts["train"]] == ["cat", "dog", "dog/old"]


def test_a_folder_that_all_lie_in_is_no_part_of_a_class(source):
    parts, _ = listing(source("set/x/cat/1.png", "set/x/dog/1.png"))
    assert [name for name, _ in parts["train"]] == ["cat", "dog"]
    parts, _ = listing(source("set/x/cat/1.png", "set/x/cat/2.png", root="b.zip"))
    assert [name for name, _ in parts["train"]] == ["cat", "cat"]


@pytest.mark.parametrize("top", ["", "set/"])
@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Val"])
def test_folders_of_their_names_are_splits(source, top, valid):
    splits = ("train", valid, "test")
    names = [f"{top}{split}/cat/{i}.png" for split in splits for i in range(2)]
    parts, num_others = listing(source(*names, f"{top}more/3.png"))
    assert set(parts) == {"train", "valid", "test"}
    assert parts["valid"] == [("cat", f"{top}{valid}/cat/{i}.png") for i in range(2)]
    assert num_others == 1


def test_without_a_train_folder_they_are_classes(source):
    parts, _ = listing(source("test/1.png", "valid/1.png"))
    assert [name for name, _ in parts["train"]] == ["test", "valid"]


def test_archives_of_their_names_are_splits(tmp_path, pack):
    train = pack("train/cat/1.png", "train/dog/2.png", "x.txt", root="data/train.zip")
    pack("cat/3.png", root="data/test.zip")
    pack("cat/4.png", root="data/val.zip")
    expected = {
        "train": [("cat", "train/cat/1.png"), ("dog", "train/dog/2.png")],
        "valid": [("cat", "cat/4.png")],
        "test": [("cat", "cat/3.png")],
    }
    assert listing(train) == (expected, 1)
    assert listing(tmp_path / "data") == (expected, 1)
    assert sha256(train) == sha256(tmp_path / "data")
    parts, _ = listing(tmp_path / "data" / "test.zip")
    assert parts == {"train": [("cat", "cat/3.png")]}


def test_a_split_with_fewer_folders_than_train_keeps_the_classes_of_train(source):
    names = ("train/cat/a", "train/cat/b", "train/dog/a", "test/cat/a", "test/cat/b")
    parts, _ = listing(source(*(f"{name}/1.png" for name in names)))
    assert [name for name, _ in parts["train"]] == ["cat/a", "cat/b", "dog/a"]
    assert [name for name, _ in parts["test"]] == ["cat/a", "cat/b"]


def test_an_archive_of_another_name_stands_alone(pack):
    pack("1.png", root="test.zip")
    assert set(listing(pack("1.png", root="own.zip"))[0]) == {"train"}


def test_a_train_zip_alone_may_hold_the_splits(pack):
    path = pack("train/1.png", "test/2.png", root="data/train.zip")
    for inputs in (path, path.parent):
        assert set(listing(inputs)[0]) == {"train", "test"}


def test_the_digest_is_of_names_and_contents_and_not_of_the_place(tmp_path, plant):
    one, other = plant(*NAMES), plant(*NAMES, root="other")
    assert sha256(one) == sha256(other)
    (other / "a.png").write_text("b.png")
    assert sha256(one) != sha256(other)
    (other / "a.png").rename(other / "c.png")
    (other / "c.png").write_text("a.png")
    assert sha256(one) != sha256(other)
    (one / "b.JPG").unlink()
    assert sha256(one) != sha256(other)


def test_an_archive_with_other_contents_has_another_digest(pack):
    first = sha256(pack("a.png"))
    assert sha256(pack("a.png", "b.png")) != first


def test_a_link_to_a_folder_above_ends_and_one_aside_is_followed(tmp_path, plant):
    path, aside = plant("cat/a.png"), plant("b.png", root="aside")
    os.symlink(path, path / "cat" / "loop")
    os.symlink(aside, path / "dog")
    parts, _ = listing(path)
    assert parts == {"train": [("cat", "cat/a.png"), ("dog", "b.png")]}


def test_names_that_lead_out_of_an_archive_are_names_alone(tmp_path, pack):
    path = pack("../up.png", "/etc/top.png", "C:\\dir\\win.png", "a.png")
    before = sorted(tmp_path.rglob("*"))
    parts, _ = listing(path)
    assert [content for _, content in parts["train"]] == [
        "a.png",
        "C:\\dir\\win.png",
        "/etc/top.png",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_not_there_or_holds_no_images_says_so(tmp_path, plant, pack):
    with pytest.raises(FileNotFoundError, match=r"there is no folder or \.zip"):
        listing(tmp_path / "none")
    for path in (plant("a.txt"), pack("a.txt")):
        with pytest.raises(ValueError, match="no images to train on among 1 files"):
            listing(path)
    with pytest.raises(ValueError, match=r"neither a folder nor a whole \.zip"):
        listing(plant("a.txt") / "a.txt")
    whole = pack("a.png")
    whole.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"nor a whole \.zip") as error:
        listing(whole)
    assert "\n" not in str(error.value)


def test_a_file_is_read_no_further_than_the_limit(monkeypatch, source):
    path = source("a.png", "long-name.png")
    monkeypatch.setattr(image_files, "MAX_BYTES", 5)
    with image_files.listed(path) as results:
        short, long = results.parts["train"]
        assert short.read() == b"a.png"
        with pytest.raises(ValueError, match="more than the 5 bytes"):
            long.read()


def test_a_member_that_is_damaged_is_an_error_of_its_own(tmp_path):
    path, stream = tmp_path / "own.zip", io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.png", b"content")
    path.write_bytes(stream.getvalue().replace(b"content", b"CONTENT", 1))
    with image_files.listed(path) as results, pytest.raises(ValueError, match="CRC-32"):
        results.parts["train"][0].read()


def test_results_come_in_turn_from_several_threads():
    threads, results = set(), []

    def double(item):
        threads.add(threading.get_ident())
        return 2 * item

    items = list(range(1000))
    image_files.in_threads(
        double, items, lambda *pair: results.append(pair), doing="it"
    )
    assert results == [(item, 2 * item) for item in items]
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("raises", ["function", "take"])
def test_no_thread_outlives_an_error(raises):
    def fail_at_five(name):
        def function(item, *result):
            if name == raises and item == 5:
                raise ValueError("five")

        return function

    with pytest.raises(ValueError, match="five") as error:  # whose frames are kept
        image_files.in_threads(
            fail_at_five("function"), range(2000), fail_at_five("take"), doing="it"
        )
    assert error.traceback
    assert not [t for t in threading.enumerate() if t.name.startswith("images")]
