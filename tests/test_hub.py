"""Models from the hub: a small one on this machine, which can be slow to anger, interrupted, private or gone."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import formats
import pytest
from safetensors.numpy import load_file, save_file

from styleid.models.hub import needed

UNET = "unet/diffusion_pytorch_model.safetensors"
PROGRAM = """
import sys, styleid
try:
    model = styleid.load_model(sys.argv[1], dtype="float32", threads=1)
    print("loaded", model.fingerprint, model.encode_prompt("a cat").shape[1])
except styleid.ModelError as error:
    print("refused", error)
"""


class Hub(ThreadingHTTPServer):
    """One repository, tiny/model, from a folder. The hub's interface as far as downloads use it."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests = []  # (method, path)
        self.status = {}  # answered instead of the truth: beginning of the path -> status, name of the error
        self.interrupt = {}  # file -> how many more times its download breaks off half-way
        self.token = None  # without it nothing is given out

    @property
    def files(self):
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}

    @property
    def commit(self):
        return hashlib.sha1(
            b"".join(name.encode() + content for name, content in sorted(self.files.items()))
        ).hexdigest()

    @property
    def downloads(self):
        return {path.split("/", 5)[5] for method, path in self.requests if method == "GET" and "/resolve/" in path}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        hub.requests.append((self.command, path))
        for beginning, (status, code) in hub.status.items():
            if path.startswith(beginning):
                return self.answer(status, b"{}", {"X-Error-Code": code} if code else {})
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if re.fullmatch(r"/api/models/tiny/model(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in hub.files]
            return self.answer_json({"id": "tiny/model", "sha": hub.commit, "siblings": siblings})
        if re.fullmatch(r"/api/models/tiny/model/tree/[^/]+", path):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in hub.files.items()
            ]
            return self.answer_json(entries)
        match = re.fullmatch(r"/tiny/model/resolve/[^/]+/(.+)", path)
        if match and match[1] in hub.files:
            return self.answer_file(match[1], hub.files[match[1]])
        return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound" if match else "RepoNotFound"})

    do_HEAD = do_GET

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer_file(self, name, content):
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.server.commit}
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if begin:
            headers["Content-Range"] = f"bytes {begin[1]}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[int(begin[1]) :], headers)
        breaks = self.command == "GET" and self.server.interrupt.get(name, 0) > 0
        self.server.interrupt[name] = self.server.interrupt.get(name, 0) - breaks
        return self.answer(200, content, headers, breaks)

    def answer(self, status, content, headers, breaks=False):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content)), "Accept-Ranges": "bytes"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if breaks else content)
        if breaks:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    folder = formats.write_diffusers(tmp_path / "repository", formats.configuration("1.x"))
    (folder / "README.md").write_text("not needed")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/model.safetensors").write_bytes(bytes(1000))
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"not needed")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not needed")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def load(hub, tmp_path):
    """Loads a model in a process of its own, since the library reads the environment once. -> what PROGRAM prints"""

    def run(name="tiny/model", **environment):
        (tmp_path / "empty").mkdir(exist_ok=True)
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        command = [sys.executable, "-c", PROGRAM, name]
        done = subprocess.run(
            command, env=inherited | settings | environment, cwd=tmp_path / "empty", capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.long
def test_only_what_is_needed_is_downloaded_and_once(hub, load):
    first = load()
    assert first.startswith("loaded ") and first.endswith(" 77")
    assert hub.downloads == {
        "unet/config.json", UNET, "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors",
        "tokenizer/merges.txt", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json",
    }  # fmt: skip
    hub.requests.clear()
    assert load("tiny/model@main") == first
    assert not hub.downloads
    # without a connection, by a setting or because there is none, it is taken from the cache
    hub.requests.clear()
    assert load(HF_HUB_OFFLINE="1") == first
    assert not hub.requests
    assert load(HF_ENDPOINT="http://127.0.0.1:9") == first


def test_offline_and_not_in_the_cache(load):
    answer = load(HF_HUB_OFFLINE="1")
    assert answer.startswith("refused tiny/model: ") and "HF_HUB_OFFLINE is set" in answer
    answer = load(HF_ENDPOINT="http://127.0.0.1:9")
    assert answer.startswith("refused tiny/model: no such file or folder, and as a model on the hub: ")


@pytest.mark.long
def test_interrupted_download_is_taken_up_again(hub, load):
    """By the library, which asks for the rest of what is large. Nothing of the broken one is used."""
    hub.interrupt[UNET] = 1
    assert load().startswith("loaded ")
    assert sum(method == "GET" and path.endswith(UNET) for method, path in hub.requests) == 2


@pytest.mark.long
def test_download_that_never_ends_well(hub, load):
    hub.interrupt[UNET] = 1000
    assert load().startswith("refused tiny/model: ")
    hub.interrupt[UNET] = 0
    assert load().startswith("loaded ")


@pytest.mark.long
def test_a_changed_repository_is_downloaded_anew(hub, load):
    before = load()
    commit = hub.commit
    tensors = load_file(hub.folder / UNET)
    tensors["conv_out.bias"] += 1
    save_file(tensors, hub.folder / UNET)
    hub.requests.clear()
    assert load() not in (before, "") and hub.downloads == {UNET}
    assert load(f"tiny/model@{commit}", HF_HUB_OFFLINE="1") == before


@pytest.mark.parametrize(
    "name, status, message",
    [
        ("tiny/other", {}, "none of this name, or a private one"),
        ("tiny/model", {"/api": (401, "GatedRepo")}, "on request only"),
        ("tiny/model", {"/api": (403, "GatedRepo")}, "on request only"),
        ("tiny/model", {"/api": (404, "RevisionNotFound")}, "no such revision"),
        ("tiny/model", {"/tiny": (404, "EntryNotFound")}, "404"),
        ("tiny/model", {"/tiny": (403, None)}, "403"),
        ("tiny/..", {}, "tiny/..: "),
    ],
)
def test_refusals(hub, load, name, status, message):
    hub.status |= status
    answer = load(name)
    assert answer.startswith(f"refused {name}: no such file or folder, and as a model on the hub: ")
    assert message in answer and "\n" not in answer


def test_tokens(hub, load):
    hub.token = "hf_secret"
    answer = load()
    assert "HF_TOKEN" in answer and "hf_secret" not in answer
    assert load(HF_TOKEN="hf_secret").startswith("loaded ")


def test_a_folder_of_that_name_wins(hub, load, tmp_path):
    shutil.copytree(hub.folder, tmp_path / "empty/tiny/model")
    assert load().startswith("loaded ")
    assert not hub.requests


def test_repositories_in_another_layout(hub, load):
    shutil.rmtree(hub.folder / "unet")
    assert "there is no unet/config.json" in load()


def test_what_is_needed():
    small = ["unet/config.json", "vae/config.json", "tokenizer/vocab.json"]
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    others = [
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
        "text_encoder/model.fp16.safetensors",
    ]
    unneeded = ["README.md", "unet/flax_model.msgpack", "v1-5.ckpt", "vae/other/config.json", "x/tokenizer/vocab.json"]
    chosen = set(needed([*small, *shards, index, *others, *unneeded]))
    assert chosen == {*small, *shards, index, others[0], others[2]}
