"""The download against a real HTTP server on loopback that misbehaves on request."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

from helpers import UserError, download, zoo

NAMES = download.PUBLISHED


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def validators(self, content):
        """Headers that tell one version of a file from another: the test chooses which."""
        changed = zlib.crc32(content)
        values = {
            "ETag": f'"{changed}"',
            "weak ETag": f'W/"{changed}"',
            "Last-Modified": formatdate(changed, usegmt=True),
        }
        return {name.split()[-1]: values[name] for name in self.server.validators}

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, self.headers.get("Range")))
        content = server.files.get(self.path.rsplit("/", 1)[-1])
        if content is None:
            return self.send_error(404)
        start, validators = 0, self.validators(content)
        asked = self.headers.get("If-Range") if server.conditions else None
        if self.headers.get("Range") and server.ranges and asked in (None, *validators.values()):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if not (start and server.conditions):  # who asked with If-Range knows them
            for name, value in validators.items():
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if server.cut:
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.wfile.flush()
        if server.stall:
            time.sleep(server.stall)


@pytest.fixture
def server(small):
    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    web.files = {NAMES[kind]: small[kind].read_bytes() for kind in NAMES}
    web.seen, web.cut, web.stall, web.ranges = [], False, 0, True
    web.validators, web.conditions = ["ETag"], True  # conditions: it understands If-Range
    web.url = f"http://127.0.0.1:{web.server_port}/models"
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield web
    web.shutdown()
    web.server_close()


def get(server, folder):
    return download.published(folder, server.url, progress=False)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_records_and_reuses(server, small, tmp_path):
    paths = get(server, tmp_path)
    assert paths["fp32"].read_bytes() == small["fp32"].read_bytes()
    assert leftovers(tmp_path) == sorted(["checksums.json", *NAMES.values()])
    asked = len(server.seen)
    assert get(server, tmp_path) == paths
    assert len(server.seen) == asked, "a cached file should not be asked for"


def cut_short(server, folder, monkeypatch):
    """A download whose server breaks off in the middle of the first file."""
    monkeypatch.setattr(download, "CHUNK", 1024)
    server.cut = True
    with pytest.raises(UserError) as failure:
        get(server, folder)
    server.cut = False
    return str(failure.value)


def ranges(server):
    return [asked for path, asked in server.seen if path.endswith(NAMES["fp32"])]


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_cut_transfer_is_resumed(validator, server, small, tmp_path, monkeypatch):
    server.validators = [validator]
    assert "goes on from there" in cut_short(server, tmp_path, monkeypatch)
    part = NAMES["fp32"] + ".part"
    assert leftovers(tmp_path) == [part, part + ".validator"]
    paths = get(server, tmp_path)
    half = len(small["fp32"].read_bytes()) // 2
    assert half - 1024 <= int(ranges(server)[-1].strip("bytes=-")) <= half
    assert paths["fp32"].read_bytes() == small["fp32"].read_bytes()
    assert leftovers(tmp_path) == sorted(["checksums.json", *NAMES.values()])


@pytest.mark.parametrize("conditions", [True, False], ids=["If-Range", "If-Range unknown"])
def test_two_versions_are_never_spliced(conditions, server, small, tmp_path, monkeypatch):
    """The file changes on the server between the two halves, its length does not."""
    cut_short(server, tmp_path, monkeypatch)
    server.conditions = conditions
    content = small["fp32"].read_bytes()
    changed = content[:64] + bytes([content[64] ^ 1]) + content[65:]
    server.files[NAMES["fp32"]] = changed
    monkeypatch.setattr(download.graphs, "read_graph", lambda path: None)
    monkeypatch.setattr(download.graphs, "find_signature", lambda graph, path: None)
    assert get(server, tmp_path)["fp32"].read_bytes() == changed


@pytest.mark.parametrize("validators", [[], ["weak ETag"]], ids=["none", "weak ETag"])
def test_without_a_validator_it_starts_over(validators, server, small, tmp_path, monkeypatch):
    server.validators = validators
    assert "goes on from there" not in cut_short(server, tmp_path, monkeypatch)
    assert leftovers(tmp_path) == []
    (tmp_path / (NAMES["fp32"] + ".part")).write_bytes(b"from who knows when")
    assert get(server, tmp_path)["fp32"].read_bytes() == small["fp32"].read_bytes()
    assert ranges(server)[-1] is None


def leave_part(server, folder, content):
    """A partial download of `content`, under the validator that the server still gives."""
    part = folder / (NAMES["fp32"] + ".part")
    part.write_bytes(content)
    tag = zlib.crc32(server.files[NAMES["fp32"]])
    part.with_name(part.name + ".validator").write_text(f'"{tag}"')


def test_a_server_without_ranges_starts_over(server, small, tmp_path):
    server.ranges = False
    leave_part(server, tmp_path, b"old start")
    assert get(server, tmp_path)["fp32"].read_bytes() == small["fp32"].read_bytes()


def test_a_part_that_is_whole_already_starts_over(server, small, tmp_path):
    leave_part(server, tmp_path, small["fp32"].read_bytes() + b"more")
    assert get(server, tmp_path)["fp32"].read_bytes() == small["fp32"].read_bytes()


@pytest.mark.parametrize("content", [b"<html>log in first</html>", b""])
def test_something_else_is_not_kept(server, tmp_path, content):
    server.files[NAMES["int8"]] = content
    with pytest.raises(UserError, match="not the model it should be"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == ["checksums.json", NAMES["fp32"]]


def test_tampering_after_the_download_is_noticed(server, tmp_path):
    path = get(server, tmp_path)["int8"]
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(UserError, match="not the file that was downloaded.*Delete it"):
        get(server, tmp_path)


def test_a_changed_file_on_the_server_is_noticed(server, small, tmp_path):
    get(server, tmp_path)["int8"].unlink()
    server.files[NAMES["int8"]] = small["fp32"].read_bytes()
    with pytest.raises(UserError, match="has changed since"):
        get(server, tmp_path)
    assert NAMES["int8"] not in leftovers(tmp_path)


def test_missing_on_the_server(server, tmp_path):
    server.files.clear()
    with pytest.raises(UserError, match="404.*random"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == []


def test_stall_ends(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)
    server.cut, server.stall = True, 30
    start = time.monotonic()
    with pytest.raises(UserError, match=r"0\.5 seconds|ended early|no connection"):
        get(server, tmp_path)
    assert time.monotonic() - start < 10


def test_no_server(tmp_path):
    with pytest.raises(UserError, match="no connection"):
        download.published(tmp_path, "http://127.0.0.1:9/models", progress=False)


def test_no_test_downloads(tmp_path):
    """All of them inherit an address where nobody answers."""
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/.*no connection"):
        download.published(tmp_path, progress=False)


def test_full_disk(server, tmp_path):
    """On a file system of 64 KiB, in a mount namespace of its own."""
    server.files[NAMES["fp32"]] = b"\x00" * 1_000_000
    code = (
        "import sys; from helpers import UserError, download\n"
        "try: download.published(sys.argv[1], sys.argv[2], progress=False)\n"
        "except UserError as error: print(error)"
    )
    script = 'mount -t tmpfs -o size=64k none "$0" && "$1" -c "$2" "$0" "$3" && ls -A "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "bash", "-c", script]
        + [str(tmp_path), sys.executable, code, server.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert "disk is full" in done.stdout and "part" not in done.stdout, done.stderr


def test_auto_uses_the_published_pair_where_it_is_reachable(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET50_URL", server.url)
    monkeypatch.setattr(zoo, "_if_it_runs", lambda path: path)  # these take other images
    model = zoo.resnet50("auto", tmp_path)
    assert model.weights == "published" and model.int8.name == NAMES["int8"]


def test_an_int8_graph_that_does_not_run_is_made_anew(server, tmp_path, capsys):
    path = get(server, tmp_path)["int8"]
    assert zoo._if_it_runs(path) is None  # it wants 32×32 images and gets 224×224
    assert "made anew" in capsys.readouterr().out


def test_auto_without_network_makes_the_model_here(tmp_path, monkeypatch, capsys, keras_model):
    monkeypatch.setenv("RESNET50_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(zoo, "keras_resnet50", lambda weights: keras_model)
    model = zoo.resnet50("auto", tmp_path)
    assert model.weights == "random, seed 0" and model.int8 is None and model.fp32.exists()
    assert "seeded random weights" in capsys.readouterr().out
    with pytest.raises(UserError, match="no connection"):
        zoo.resnet50("published", tmp_path)


def test_a_folder_with_the_two_files(small, tmp_path):
    shutil.copy(small["fp32"], tmp_path / "fp32.pb")
    with pytest.raises(UserError, match=r"int8\.pb"):
        zoo.resnet50(str(tmp_path), tmp_path / "unused")
    shutil.copy(small["int8"], tmp_path / NAMES["int8"])
    model = zoo.resnet50(str(tmp_path), tmp_path / "unused")
    assert model.fp32.name == "fp32.pb" and model.int8.name == NAMES["int8"]


def test_checksums_are_those_of_the_files(server, tmp_path):
    get(server, tmp_path)
    known = json.loads((tmp_path / "checksums.json").read_text())
    listed = subprocess.run(["sha256sum", *NAMES.values()], cwd=tmp_path, capture_output=True)
    assert {
        name: value for value, name in map(str.split, listed.stdout.decode().splitlines())
    } == known
    assert os.path.exists(tmp_path / NAMES["fp32"])
