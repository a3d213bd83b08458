"""Hub ids against a small local server that answers like the Hub; offline behaviour; names that are refused."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pyllm.checkpoint import open_checkpoint
from pyllm.checkpoint.hub import is_hub_id
from pyllm.errors import ModelNotFoundError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"w": np.ones(3, np.float32)})


REPOSITORIES: dict[str, dict[str, bytes]] = {
    "org/both": {
        "config.json": b'{"model_type": "gpt2"}',
        "tokenizer.json": b"{}",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"unwanted",
        "onnx/model.safetensors": b"unwanted",
        "README.md": b"unwanted",
    },
    "torch-only": {"config.json": b"{}", "pytorch_model.bin": b"not read here"},
    "org/empty": {"config.json": b"{}", "model.gguf": b"x"},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of /api/models/ID/..., and /ID/resolve/REVISION/FILE."""

    requests: list[str]
    tokens: set[str | None]
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        type(self).requests.append(self.path)
        type(self).tokens.add(self.headers["authorization"])
        path = self.path.partition("?")[0]
        if "gated" in path:
            return self.answer(403, b"{}", x_error_code="GatedRepo", x_error_message="Access is restricted")
        for name, files in REPOSITORIES.items():
            if path.startswith(f"/api/models/{name}/tree"):
                return self.answer(200, json.dumps([self.file(*item) for item in files.items()]).encode())
            if path.startswith(f"/api/models/{name}/revision/missing"):
                return self.answer(404, b"{}", x_error_code="RevisionNotFound")
            if path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": file} for file in files]
                return self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
            resolved = re.match(f"/{name}/resolve/[^/]+/(.*)", path)
            if resolved and resolved[1] in files:
                body = files[resolved[1]]
                etag = f'"{hashlib.sha1(body).hexdigest()}"'
                return self.answer(200, body, etag=etag, x_repo_commit=COMMIT, accept_ranges="bytes")
        return self.answer(404, b"{}", x_error_code="RepoNotFound")

    do_HEAD = do_GET

    @staticmethod
    def file(path: str, body: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    Hub.requests, Hub.tokens = [], set()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


OPEN = """
import json, sys
from pyllm.checkpoint import open_checkpoint
try:
    with open_checkpoint(sys.argv[1], **json.loads(sys.argv[2])) as checkpoint:
        print(checkpoint.tensor("w").sum(), *sorted(path.name for path in checkpoint.folder.iterdir()))
except Exception as error:
    print(type(error).__name__, error)
"""


def open_elsewhere(endpoint: str, home: Path, model: str, offline: bool = False, **options: Any) -> str:
    """What opening `model` prints in a process with this Hub and the cache `home`; nothing may go to stderr."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, model, json.dumps(options)], capture_output=True, text=True, env=environment
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_download_then_offline(hub: str, tmp_path: Path) -> None:
    files = "config.json model.safetensors tokenizer.json"
    assert open_elsewhere(hub, tmp_path, "org/both") == f"3.0 {files}"
    assert (tmp_path / "hub" / "models--org--both").is_dir()
    before = len(Hub.requests)
    assert open_elsewhere(hub, tmp_path, "org/both", offline=True) == f"3.0 {files}"
    assert open_elsewhere(hub, tmp_path, "org/both", local_files_only=True) == f"3.0 {files}"
    assert len(Hub.requests) == before
    cache = tmp_path / "other"
    assert open_elsewhere(hub, tmp_path, "org/both", cache_dir=str(cache)) == f"3.0 {files}"
    assert (cache / "models--org--both").is_dir()


def test_torch_files_when_there_are_no_safetensors(hub: str, tmp_path: Path) -> None:
    for offline in (False, True):
        printed = open_elsewhere(hub, tmp_path, "torch-only", offline=offline)
        assert re.search("CheckpointError .*pytorch_model.bin is not a torch archive", printed), printed


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("org/absent", {}, "ModelNotFoundError .*'org/absent' is no local folder, and the Hub has no such model"),
        ("org/gated", {}, "ModelNotFoundError .*it is gated: ask for access at http.*/org/gated, then set HF_TOKEN"),
        ("org/both", {"revision": "missing"}, "ModelNotFoundError .*'org/both' has no revision 'missing' on the Hub"),
        ("org/empty", {}, "ModelNotFoundError .*holds one of model.safetensors, .*it has no weight file"),
        ("org/new", {"offline": True}, "the cache does not have it while HF_HUB_OFFLINE is set: unset it to download"),
        ("org/new", {"local_files_only": True}, "does not have it while local_files_only=True: drop that to download"),
    ],
)
def test_sentences(hub: str, tmp_path: Path, model: str, options: dict[str, Any], message: str) -> None:
    printed = open_elsewhere(hub, tmp_path, model, **options)
    assert re.search(message, printed), printed
    assert "\n" not in printed


def test_token_is_sent(hub: str, tmp_path: Path) -> None:
    open_elsewhere(hub, tmp_path, "org/both", token="hf_secret")
    assert "Bearer hf_secret" in Hub.tokens


def test_no_network(tmp_path: Path) -> None:
    printed = open_elsewhere("http://127.0.0.1:9", tmp_path, "org/new")
    assert re.search("the cache does not have it and the Hub cannot be reached .*: check the network", printed), printed


def test_offline_uses_no_network(hub: str, tmp_path: Path) -> None:
    before = len(Hub.requests)
    open_elsewhere(hub, tmp_path, "org/new", offline=True)
    assert len(Hub.requests) == before


NO_IDS = ("../x", "/x/y", "a/b/c", "a/../b", "./a", "a\\b", "", "a b", "-a/b", "a--b/c", "a/b.git")


@pytest.mark.parametrize("name", NO_IDS)
def test_names_that_are_neither_folder_nor_id(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id(name)
    with pytest.raises(ModelNotFoundError, match=r"or a Hub id like 'org/name'"):
        open_checkpoint(name)
