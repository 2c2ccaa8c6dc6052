import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vae_jax.data import files, formats, sources

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 3, 4) + ARRAY.tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Answers(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        state = self.server.state  # pyright: ignore[reportAttributeAccessIssue]
        state["asked"].append(self.command)
        body, promised = state["body"], state["promised"] or len(state["body"])
        self.send_response(state["status"])
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        if with_body:
            self.wfile.write(body)
            if "hold" in state:
                self.wfile.flush()
                state["hold"].wait(60.0)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    """A real server on this machine; its state says what it answers."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        state = {"status": 200, "body": CONTENT, "promised": None, "asked": []}
        server.state = state  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(
            target=server.serve_forever, args=(0.01,), daemon=True
        )
        thread.start()
        state["url"] = f"http://127.0.0.1:{server.server_port}/folder/tiny"
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "cache" / "vae_jax" / "tiny"


@pytest.fixture
def no_network(monkeypatch):
    """Name look-ups that never end: what a machine behind a dead resolver sees."""
    end = threading.Event()

    def stall(*_, **__):
        end.wait(30)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", stall)
    yield
    end.set()


def tiny(url, packed_sha256=SHA256):
    read = partial(formats.read_idx, sha256=SHA256)
    return files.File("tiny", url, packed_sha256, read)


@pytest.mark.parametrize("packed_sha256", [SHA256, None])
def test_a_file_is_fetched_once_and_then_read_from_the_cache(
    server, cache, packed_sha256
):
    for _ in range(2):
        (read,) = files.read_all(
            "tiny", [tiny(server["url"], packed_sha256)], data_dir=None
        )
        np.testing.assert_array_equal(read, ARRAY)
    assert server["asked"] == ["HEAD", "GET"]
    assert [path.name for path in cache.iterdir()] == ["tiny"]


@pytest.mark.parametrize("packed_sha256", [SHA256, None])
def test_another_content_never_lies_under_the_final_name(server, cache, packed_sha256):
    server["body"] = b"<html>please log in</html>"
    with pytest.raises(ValueError, match="did not send the original file") as error:
        files.read_all("tiny", [tiny(server["url"], packed_sha256)], data_dir=None)
    assert "\n" not in str(error.value)
    assert list(cache.iterdir()) == []


def test_a_transfer_cut_short_leaves_nothing_behind(server, cache):
    server["body"], server["promised"] = CONTENT[:20], len(CONTENT)
    with pytest.raises((FileNotFoundError, ValueError), match="tiny"):
        files.read_all("tiny", [tiny(server["url"])], data_dir=None)
    assert list(cache.iterdir()) == []


FETCH = """
import sys
from functools import partial
from vae_jax.data import files, formats
url, sha256 = sys.argv[1:]
read = partial(formats.read_idx, sha256=sha256)
files.read_all("tiny", [files.File("tiny", url, sha256, read)], data_dir=None)
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_download_leaves_no_file_of_the_final_name(
    server, tmp_path
):
    server["body"], server["promised"] = CONTENT[:20], len(CONTENT)
    server["hold"] = threading.Event()
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, server["url"], SHA256],
        cwd=Path(files.__file__).parents[2],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )
    folder, deadline = tmp_path / "vae_jax" / "tiny", time.monotonic() + 60.0
    while not any(folder.glob("*")):  # the half that came
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    server["hold"].set()
    assert not (folder / "tiny").exists()
    server["body"], server["promised"] = CONTENT, None
    subprocess.run(
        [sys.executable, "-c", FETCH, server["url"], SHA256],
        cwd=Path(files.__file__).parents[2],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        check=True,
    )
    assert (folder / "tiny").read_bytes() == CONTENT


def test_an_address_without_the_file_says_so(server):
    server["status"] = 404
    with pytest.raises(FileNotFoundError, match=r"missing tiny.*tried to fetch.*404"):
        files.read_all("tiny", [tiny(server["url"])], data_dir=None)


def test_a_damaged_cache_is_fetched_again(server, cache):
    cache.mkdir(parents=True)
    (cache / "tiny").write_bytes(CONTENT[:-3])
    (read,) = files.read_all("tiny", [tiny(server["url"])], data_dir=None)
    np.testing.assert_array_equal(read, ARRAY)
    assert (cache / "tiny").read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["tiny", "tiny.gz", "tiny/tiny", "tiny/tiny.gz"])
def test_a_file_is_found_in_the_folder_or_in_the_data_sets_own(tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    (read,) = files.read_all("tiny", [tiny("http://0.0.0.0:1/")], data_dir=tmp_path)
    np.testing.assert_array_equal(read, ARRAY)


def test_the_data_sets_own_folder_comes_first(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny").write_bytes(CONTENT)
    (tmp_path / "tiny.gz").write_bytes(b"a file of another data set")
    files.read_all("tiny", [tiny("http://0.0.0.0:1/")], data_dir=tmp_path)


def test_a_wrong_file_in_the_folder_is_not_passed_over(server, tmp_path):
    changed = CONTENT[:-1] + b"\0"
    (tmp_path / "tiny").write_bytes(changed)
    got = hashlib.sha256(changed).hexdigest()
    with pytest.raises(ValueError, match=f"expected sha256 {SHA256}.*got {got}"):
        files.read_all("tiny", [tiny(server["url"])], data_dir=tmp_path)
    assert server["asked"] == []


@pytest.mark.slow
def test_missing_data_without_a_network_is_said_in_under_five_seconds(
    no_network, tmp_path
):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError) as error:
        sources.load("mnist", data_dir=tmp_path)
    assert time.perf_counter() - start < 5
    message = str(error.value)
    for part in (
        *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        *(str(tmp_path), str(tmp_path / "mnist"), "no answer in 3 seconds"),
        "https://storage.googleapis.com/cvdf-datasets/mnist/train-images-idx3-ubyte.gz",
    ):
        assert part in message
    assert "\n" not in message


def test_a_server_that_accepts_and_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = time.perf_counter()
        reason = files.silence(
            f"http://127.0.0.1:{mute.getsockname()[1]}/", seconds=0.3
        )
        assert time.perf_counter() - start < 2
    assert reason


def test_an_address_that_refuses_is_no_answer_and_one_that_answers_is(server):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert files.silence(f"http://127.0.0.1:{port}/") == "ConnectionError"
    server["status"] = 403
    assert files.silence(server["url"]) is None


def test_a_proxy_of_the_environment_is_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server["url"].rsplit("/", 2)[0])
    assert files.silence("http://name.invalid/file") is None
    assert server["asked"] == ["HEAD"]
