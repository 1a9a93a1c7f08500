"""Fetching from a hub on this machine that speaks the real one's few endpoints, and misbehaves on request."""

import hashlib
import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from sdm.errors import ModelError
from sdm.models.taxabind import MODALITIES, Checkpoints, transfer
from sdm.models.taxabind.fetch import fetch, fetch_files, open_or_fetch

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`files`: "org/name/file" -> bytes. Large ones (safetensors, bin) come by a link to elsewhere, as on the hub."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {}
        self.requests = []
        self.commit = COMMIT
        self.cuts = []
        """Bytes after which successive answers with content break off; None: complete."""
        self.cut_kind = "close"
        self.ranges = True
        self.lie = b""
        """Put in the place of the first bytes of large files."""
        self.status = None
        self.busy, self.busy_at = [], ""
        """Retry-After of successive refusals for being busy, of paths that begin so."""
        self.signature = None
        """What a signed address of the storage must end with, valid for one answer."""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self, part):
        return [r for r in self.requests if r[0] == "GET" and part in r[1]]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def fail(self, status, code, wait=None):
        self.send_response(status)
        if wait is not None:
            self.send_header("Retry-After", wait)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body):
        hub = self.server
        path = unquote(self.path).lstrip("/")
        hub.requests.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        if hub.busy and (not hub.busy_at or path.startswith(hub.busy_at)):
            return self.fail(429, "TooMany", hub.busy.pop(0))
        if hub.status:
            return self.fail(*hub.status)
        if path.startswith("cdn/"):
            path, _, query = path.partition("?")
            if hub.signature is not None and query != f"Signature={hub.signature}":
                return self.fail(403, "Expired")
            if hub.signature is not None and body:
                hub.signature += 1
            return self.content(path.removeprefix("cdn/"), body)
        organisation, name, _, revision, file = path.split("/", 4)
        repository = f"{organisation}/{name}"
        if not any(f.startswith(f"{repository}/") for f in hub.files):
            return self.fail(401, "RepoNotFound")
        if revision not in ("main", hub.commit, "v1"):
            return self.fail(404, "RevisionNotFound")
        key = f"{repository}/{file}"
        if key not in hub.files:
            return self.fail(404, "EntryNotFound")
        content = hub.files[key]
        if not key.endswith((".safetensors", ".bin", ".pth")):
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self.content(key, body, {"X-Repo-Commit": hub.commit, "ETag": f'"{etag}"'})
        signed = "" if hub.signature is None else f"?Signature={hub.signature}"
        self.send_response(302)
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        # Another name of this machine: to the client, another host.
        self.send_header("Location", f"http://localhost:{hub.server_address[1]}/cdn/{key}{signed}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def content(self, key, body, headers=()):
        hub, whole = self.server, self.server.files[key]
        if hub.lie and key.endswith(".safetensors"):
            whole = hub.lie + whole[len(hub.lie) :]
        start = 0
        wanted = self.headers.get("Range")
        if wanted and hub.ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(whole):
                return self.fail(416, "Range")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_response(200)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        if not body:
            return
        cut = hub.cuts.pop(0) if hub.cuts and key.endswith((".safetensors", ".bin")) else None
        self.wfile.write(whole[start:] if cut is None else whole[start : start + cut])
        if cut is not None:
            self.wfile.flush()
            if hub.cut_kind == "reset":  # as a router does that forgets a connection
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif hub.cut_kind == "stall":
                hub.release.wait(10)
            self.close_connection = True
            self.connection.close()


@pytest.fixture
def hub(published, monkeypatch):
    """The small model on a hub, which is where HF_ENDPOINT points."""
    server = Hub()
    server.release = threading.Event()
    for folder in published.root.iterdir():
        for file in folder.iterdir():
            server.files[f"MVRL/{folder.name}/{file.name}"] = file.read_bytes()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(transfer, "wait", lambda tries: None)
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def test_everything(hub, published, tmp_path):
    seen = {}
    checkpoints = fetch(
        cache_dir=tmp_path / "cache", progress=lambda name, done, total: seen.update({name: (done, total)})
    )
    assert checkpoints.modalities == MODALITIES
    assert checkpoints.digest == Checkpoints.open(published.root).digest
    assert Checkpoints.open(cache_dir=tmp_path / "cache").digest == checkpoints.digest
    size = len(hub.files["MVRL/ecosat/model.safetensors"])
    assert seen["MVRL/ecosat/model.safetensors"] == (size, size)
    before = len(hub.gets(""))
    assert fetch(cache_dir=tmp_path / "cache") == checkpoints
    assert len(hub.gets("")) == before, "what is there is not fetched again"


def test_the_library_of_the_hub_reads_the_same_cache(hub, tmp_path):
    """And we read what it has fetched."""
    import huggingface_hub

    fetch(["environment"], cache_dir=tmp_path / "ours")
    path = huggingface_hub.try_to_load_from_cache("MVRL/ecoclim", "model.safetensors", cache_dir=tmp_path / "ours")
    assert Path(path).read_bytes() == hub.files["MVRL/ecoclim/model.safetensors"]
    for name in ("config.json", "model.safetensors"):
        huggingface_hub.hf_hub_download("MVRL/ecoclim", name, cache_dir=tmp_path / "theirs", endpoint=hub.url)
    assert Checkpoints.open(cache_dir=tmp_path / "theirs").modalities == ("environment",)
    gets = len(hub.gets("ecoclim"))
    fetch(["environment"], cache_dir=tmp_path / "theirs")
    assert len(hub.gets("ecoclim")) == gets


@pytest.mark.parametrize("kind", ["close", "reset", "stall"])
def test_dropped_connections_are_resumed(hub, tmp_path, kind, monkeypatch):
    """No byte is asked for twice."""
    monkeypatch.setattr(transfer, "TIMEOUT", 0.5)
    hub.cut_kind = kind
    hub.cuts = [50_000, 1, 0, 0, 20_000, 0]
    fetch(["environment"], cache_dir=tmp_path)
    asked = [r[2] for r in hub.gets("cdn/MVRL/ecoclim")]
    starts = [int(r.removeprefix("bytes=").rstrip("-")) if r else 0 for r in asked]
    assert starts == sorted(starts)
    if kind != "reset":  # a reset may also lose bytes that had already arrived
        assert starts == [0, 50_000, 50_001, 50_001, 50_001, 70_001, 70_001]
    assert not list(tmp_path.rglob("*.incomplete"))
    path = Checkpoints.open(cache_dir=tmp_path).find("environment").weights
    assert path.read_bytes() == hub.files["MVRL/ecoclim/model.safetensors"]


def test_a_later_run_goes_on(hub, tmp_path):
    hub.cuts = [60_000] + [0] * 6
    with pytest.raises(ModelError) as error:
        fetch(["environment"], cache_dir=tmp_path)
    for fact in (
        "model.safetensors (8.4 MB) of MVRL/ecoclim",
        "60,000 bytes",
        "run the command again",
        "huggingface.co",
    ):
        assert fact in str(error.value)
    with pytest.raises(ModelError, match="none of TaxaBind's files"):
        Checkpoints.open(cache_dir=tmp_path)
    hub.requests.clear()
    fetch(["environment"], cache_dir=tmp_path)
    assert [r[2] for r in hub.gets("cdn/MVRL/ecoclim")] == ["bytes=60000-"]


def test_a_server_without_ranges(hub, tmp_path):
    hub.ranges = False
    hub.cuts = [60_000, 10_000]
    fetch(["environment"], cache_dir=tmp_path)
    path = Checkpoints.open(cache_dir=tmp_path).find("environment").weights
    assert path.read_bytes() == hub.files["MVRL/ecoclim/model.safetensors"]


def test_a_partial_file_longer_than_the_whole(hub, tmp_path):
    content = hub.files["MVRL/ecoclim/model.safetensors"]
    partial = tmp_path / "models--MVRL--ecoclim" / "blobs" / f"{hashlib.sha256(content).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content + b"more")
    with pytest.raises(ModelError, match="damaged"):
        fetch(["environment"], cache_dir=tmp_path)
    assert fetch(["environment"], cache_dir=tmp_path).modalities == ("environment",)


def test_wrong_content_is_noticed(hub, tmp_path):
    hub.lie = b"something else"
    with pytest.raises(ModelError, match="SHA-256 is not the announced one"):
        fetch(["environment"], cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.lie = b""
    fetch(["environment"], cache_dir=tmp_path)


def test_only_what_is_asked_for(hub, tmp_path):
    checkpoints = fetch(["location", "environment"], cache_dir=tmp_path)
    assert checkpoints.modalities == ("location", "environment")
    assert not [r for r in hub.requests if "ecosat" in r[1] or "vit-b-16" in r[1]]
    with pytest.raises(ModelError, match="'smell'"):
        fetch(["smell"], cache_dir=tmp_path)


def test_pickles_where_there_are_no_safetensors(hub, tmp_path):
    import io

    import torch
    from safetensors.torch import load

    file = io.BytesIO()
    torch.save(load(hub.files.pop("MVRL/ecoclim/model.safetensors")), file)
    hub.files["MVRL/ecoclim/pytorch_model.bin"] = file.getvalue()
    checkpoints = fetch(["environment"], cache_dir=tmp_path)
    assert checkpoints.find("environment").weights.name == "pytorch_model.bin"
    checkpoints.load("environment")


def test_a_config_that_may_be_missing_and_one_that_may_not(hub, tmp_path):
    del hub.files["MVRL/ecoclim/config.json"], hub.files["MVRL/ecosat/config.json"]
    fetch(["environment"], cache_dir=tmp_path)
    with pytest.raises(ModelError, match=r"MVRL/ecosat has no file config\.json"):
        fetch(["satellite"], cache_dir=tmp_path)


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline(hub, tmp_path, how, monkeypatch):
    fetch(["environment"], cache_dir=tmp_path)
    hub.requests.clear()
    if how == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"cache_dir": tmp_path, "offline": how == "argument"}
    assert fetch(["environment"], **options).modalities == ("environment",)
    with pytest.raises(ModelError) as error:
        fetch(["satellite"], **options)
    for fact in ("config.json of MVRL/ecosat", "offline", "sdm models fetch", "--model"):
        assert fact in str(error.value)
    assert hub.requests == []


def test_without_a_network(hub, tmp_path, monkeypatch):
    """What is in the cache serves; for the rest the sentence says what to do."""
    fetch(["environment"], cache_dir=tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert fetch(["environment"], cache_dir=tmp_path).modalities == ("environment",)
    with pytest.raises(
        ModelError, match=r"config\.json of MVRL/ecosat could not be fetched: .*gives no answer.*--model"
    ):
        fetch(["satellite"], cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ((401, "RepoNotFound"), "no repository MVRL/ecoclim"),
        ((403, "GatedRepo"), "agreement"),
        ((500, "Oops"), "no answer"),
        ((404, "RevisionNotFound"), "no revision 'main'"),
    ],
)
def test_answers_of_the_hub_that_are_no_file(hub, tmp_path, status, says):
    hub.status = status
    with pytest.raises(ModelError, match=says):
        fetch(["environment"], cache_dir=tmp_path)


def test_a_configuration_repository(hub, tmp_path):
    """hf://someone/blend@v1, which names a repository of its own for one part."""
    hub.files["someone/clim2/model.safetensors"] = hub.files["MVRL/ecoclim/model.safetensors"]
    config = {"sat_encoder": "MVRL/ecosat", "env_encoder": "someone/clim2"}
    hub.files["someone/blend/config.json"] = json.dumps(config).encode()
    checkpoints = fetch(repository="someone/blend", revision="v1", cache_dir=tmp_path)
    assert checkpoints.modalities == ("satellite", "environment")
    assert (tmp_path / "models--someone--blend" / "refs" / "v1").read_text() == COMMIT
    with pytest.raises(ModelError, match="no revision 'v2'"):
        fetch(repository="someone/blend", revision="v2", cache_dir=tmp_path)
    with pytest.raises(ModelError, match="no repository someone/nothing"):
        fetch(repository="someone/nothing", cache_dir=tmp_path)


def test_a_commit_needs_no_network_once_it_is_there(hub, tmp_path):
    hub.files["someone/model/a.json"] = b"{}"
    hub.files["someone/model/b.safetensors"] = bytes(5000)
    names = ["a.json", "b.safetensors"]
    folder = fetch_files("someone/model", names, COMMIT, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == names
    hub.requests.clear()
    assert fetch_files("someone/model", names, COMMIT, tmp_path) == folder
    assert hub.requests == []


def test_opening_asks_the_hub_only_for_what_is_missing(hub, tmp_path):
    assert open_or_fetch(["environment"], cache_dir=tmp_path).modalities == ("environment",)
    hub.requests.clear()
    assert open_or_fetch(["environment"], cache_dir=tmp_path).modalities == ("environment",)
    assert hub.requests == []
    with pytest.raises(ModelError, match="offline"):
        open_or_fetch(["location"], cache_dir=tmp_path, offline=True)
    assert open_or_fetch(["location"], cache_dir=tmp_path).modalities == ("location", "environment")


def test_a_new_version_is_noticed(hub, tmp_path):
    first = fetch(["environment"], cache_dir=tmp_path)
    hub.commit = "f" * 40
    hub.files["MVRL/ecoclim/model.safetensors"] = hub.files["MVRL/ecoclim/model.safetensors"][::-1]
    second = fetch(["environment"], cache_dir=tmp_path)
    assert second.find("environment").weights != first.find("environment").weights
    assert second.find("environment").weights.read_bytes() == hub.files["MVRL/ecoclim/model.safetensors"]
    assert second.digest != first.digest


def test_the_token_goes_to_the_hub_alone(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(["environment"], cache_dir=tmp_path)
    sent = {bool(r[1].startswith("cdn/")): r[3] for r in hub.requests}
    assert sent == {False: "Bearer hf_secret", True: None}


def test_two_at_once(hub, tmp_path):
    """One fetches, the other waits and finds it there."""
    done = []

    def run():
        done.append(fetch(["environment"], cache_dir=tmp_path).digest)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 4
    assert len(set(done)) == 1
    assert len(hub.gets("cdn/MVRL/ecoclim")) == 1


def test_hostile_names_and_sizes(hub, tmp_path):
    hub.commit = "../../../escape"
    with pytest.raises(ModelError, match="not a hash"):
        fetch(["environment"], cache_dir=tmp_path / "cache")
    assert not (tmp_path / "escape").exists()
    hub.commit = COMMIT
    hub.files["MVRL/ecoclim/config.json"] = b" " * 2**21
    with pytest.raises(ModelError, match="more than such a file can have"):
        fetch(["environment"], cache_dir=tmp_path / "cache")


def test_a_full_disk_and_a_folder_that_cannot_be_made(hub, tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10))
    with pytest.raises(ModelError, match="do not fit on the disk"):
        fetch(["environment"], cache_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be stored"):
        fetch(["environment"], cache_dir=tmp_path / "file")


def test_signed_addresses_that_expire_while_a_download_breaks_off(hub, tmp_path):
    hub.signature, hub.cuts = 1, [1000, 1000, 1000]
    assert fetch(["environment"], cache_dir=tmp_path).modalities == ("environment",)
    assert [r[2] for r in hub.gets("cdn/")] == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-"]
    assert hub.signature == 5


@pytest.mark.parametrize("where", ["", "cdn/"])
def test_a_busy_hub_is_given_the_time_it_asks_for(hub, tmp_path, monkeypatch, where):
    slept = []
    monkeypatch.setattr(transfer, "sleep", slept.append)
    hub.busy, hub.busy_at = ["7", "Wed, 01 Jan 2020 00:00:00 GMT", "3"], where
    assert fetch(["environment"], cache_dir=tmp_path).modalities == ("environment",)
    assert slept == [7.0, 3.0] and not hub.busy  # the date has passed


@pytest.mark.parametrize("where", ["", "cdn/"])
def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub, tmp_path, where):
    hub.busy, hub.busy_at = ["3600"] * 9, where
    with pytest.raises(ModelError, match="busy and asks to wait 3600 s"):
        fetch(["environment"], cache_dir=tmp_path)


def test_a_revision_that_moves_while_it_is_fetched(hub, tmp_path):
    hub.files["someone/model/a.json"] = b"{}"
    hub.files["someone/model/b.safetensors"] = bytes(5000)

    def moves(name, done, total):
        hub.commit = "e" * 40

    with pytest.raises(ModelError, match="changed while it was fetched; run the command again"):
        fetch_files("someone/model", ["a.json", "b.safetensors"], "main", tmp_path, progress=moves)
    assert len(list(fetch_files("someone/model", ["a.json", "b.safetensors"], "main", tmp_path).iterdir())) == 2
