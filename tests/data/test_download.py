"""A set that is downloaded is whole under its name or not there, whatever the server, the disk or others do."""

import hashlib
import os
import tarfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from torchvision.datasets import STL10

from kdkit import data
from kdkit.data import download
from kdkit.data.download import fetch
from kdkit.registry import KdkitError

NAME = "stl10_binary"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """STL-10 with four images a part, on a server of this machine; `how` is what the server does."""
    top = tmp_path / NAME
    top.mkdir()
    rng, sums = np.random.default_rng(0), {}
    for part in ("train", "test", "unlabeled"):
        files = {f"{part}_X.bin": rng.integers(0, 256, (4, 3, 96, 96), np.uint8)}
        if part != "unlabeled":
            files[f"{part}_y.bin"] = np.array([1, 3, 10, 2], np.uint8)
        for name, values in files.items():
            values.tofile(top / name)
            sums[name] = hashlib.md5((top / name).read_bytes()).hexdigest()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(top, NAME)
    body, how = (tmp_path / "a.tar.gz").read_bytes(), {"does": "all"}

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            if how["does"] == "nonsense":
                self.wfile.write(b"\x00\x01nonsense\r\n\r\n")
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if how["does"] == "half":
                self.wfile.write(body[: len(body) // 2])
            elif how["does"] == "wait":  # it would come, in the end
                time.sleep(1)
                with suppress(ConnectionError):
                    self.wfile.write(body)
            elif how["does"] == "other":
                self.wfile.write(body[::-1])
            else:
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(STL10, "url", f"http://127.0.0.1:{server.server_port}/a.tar.gz")
    monkeypatch.setattr(STL10, "tgz_md5", hashlib.md5(body).hexdigest())
    for parts in ("train_list", "test_list"):
        monkeypatch.setattr(STL10, parts, [[name, sums[name]] for name, _ in getattr(STL10, parts)])
    yield how
    server.shutdown()
    server.server_close()


def build(root, **options):
    return data.build("stl10", root=root, **options)


@pytest.mark.parametrize("does", ["half", "other", "nonsense", "wait"])
def test_a_download_that_fails_leaves_nothing_and_the_next_one_is_whole(served, tmp_path, monkeypatch, does):
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    there = tmp_path / "there"
    assert "will be downloaded" in build(there, download=True).missing
    served["does"] = does
    with pytest.raises(KdkitError, match=rf"{NAME}/ was not found whole in .*; its download failed \(.+\)$") as told:
        build(there, download=True).prepare_data()
    assert list(there.iterdir()) == []
    assert str(told.value).isprintable()
    served["does"] = "all"
    module = build(there, download=True)
    module.prepare_data()
    assert [path.name for path in there.iterdir()] == [NAME]
    assert module.missing == ""
    served["does"] = "nonsense"  # nobody asks it any more
    images, labels = build(there, download=True).read(True)
    assert (images.shape, labels.tolist()) == ((4, 3, 96, 96), [0, 2, 9, 1])
    assert build(there).read(False)[1].tolist() == [0, 2, 9, 1]  # data.root= is enough once it is there


def test_a_damaged_set_is_mended_or_told(served, tmp_path):
    there = tmp_path / "there"
    build(there, download=True).prepare_data()
    (there / NAME / "train_X.bin").write_bytes(b"half")
    (there / NAME / "mine.txt").write_text("stays")
    with pytest.raises(KdkitError, match=r"was not found whole .*download it with data\.download=true"):
        build(there, download=False).read(True)
    assert len(build(there, download=True).read(True)[1]) == 4
    assert (there / NAME / "mine.txt").read_text() == "stays"


def test_two_at_the_same_time_are_both_right(served, tmp_path):
    found = []
    both = [
        threading.Thread(target=lambda: found.append(build(tmp_path / "there", download=True).read(True)[1]))
        for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [labels.tolist() for labels in found] == [[0, 2, 9, 1]] * 2
    assert [path.name for path in (tmp_path / "there").iterdir()] == [NAME]


def test_nothing_is_fetched_unasked_nor_against_the_word(monkeypatch):
    monkeypatch.delenv("KDKIT_DATA", raising=False)
    assert [download.may_download(None, word) for word in (None, True, False)] == [True, True, False]
    monkeypatch.setenv("KDKIT_DATA", "/data")
    assert [download.may_download(None, word) for word in (None, True, False)] == [False, True, False]


def test_a_download_that_brings_nothing_is_a_failure(tmp_path):
    with pytest.raises(download.FAILURES):
        fetch(tmp_path, "set", lambda part: None)


def test_what_a_killed_one_left_goes_with_the_next_and_that_of_a_living_one_stays(tmp_path):
    def get(part):
        os.makedirs(os.path.join(part, "set"))

    for name, age in (("killed", 7200), ("loading", 60), ("unpacking", 7200)):
        part = tmp_path / f"{download.PART}{name}"
        (part / "set" / "train").mkdir(parents=True)
        (part / "archive.zip").write_bytes(b"half")
        (part / "set" / "train" / "1.png").write_bytes(b"half")
        for path in (part, *part.rglob("*")):
            os.utime(path, (time.time() - age,) * 2)
    os.utime(tmp_path / f"{download.PART}unpacking" / "set" / "train" / "1.png")  # and nothing above it
    fetch(tmp_path, "set", get)
    living = [f"{download.PART}{name}" for name in ("loading", "unpacking")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*living, "set"]
