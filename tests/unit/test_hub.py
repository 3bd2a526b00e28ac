"""Checkpoints from the hub, played by a server on this machine: one commit, safetensors only, no code, no pickle."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2Model
from waveform import TEACHER

from ser_kd_utils.methods import settings_of
from ser_kd_utils.methods.teacher.encoders import build_teacher
from ser_kd_utils.methods.teacher.settings import TeacherSettings

LABELS = ("angry", "happy", "neutral", "sad")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOADS = """
import json, sys
from ser_kd_utils.methods.teacher.encoders import build_teacher
from ser_kd_utils.methods.teacher.settings import TeacherSettings
from safetensors.torch import save_file
for name, commit, kept in json.loads(sys.argv[1]):
    try:
        settings = TeacherSettings.of("tiny", checkpoint=name, revision=commit, model_type="wav2vec2")
        model = build_teacher(settings, "abcd")
        save_file({key: value.contiguous() for key, value in model.wav2vec2.state_dict().items()}, kept)
        print("loaded")
    except (ValueError, FileNotFoundError) as error:
        print(type(error).__name__, error)
"""


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a tiny encoder: config.json and model.safetensors."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    build_teacher(TEACHER, LABELS).wav2vec2.save_pretrained(folder)
    return folder


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks a hub for: the list of a commit's files, then each file."""

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.split("?")[0].strip("/")
        for name, files in self.server.repositories.items():
            if path == f"api/models/{name}/tree/{COMMIT}":
                rows = [{"type": "file", "path": file, "size": len(body), "oid": ""} for file, body in files.items()]
                return self.answer(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
            if (file := path.removeprefix(f"{name}/resolve/{COMMIT}/")) in files:
                return self.answer(200, files[file], {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(files[file]):x}"'})
        return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})

    do_HEAD = do_GET

    def answer(self, status, body, headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Visit(NamedTuple):
    printed: dict[str, str]  # by repository
    asked: list[str]  # paths
    folder: Path  # with the weights that were loaded, the hub's cache and what a trap would write


@pytest.fixture(scope="module")
def visit(encoder, tmp_path_factory):
    """What a fresh process prints and asks for when it loads three repositories, and one at another commit."""
    folder = tmp_path_factory.mktemp("hub")
    trap = pickle.dumps(Trap(folder / "sprung"))
    weights, config = (encoder / "model.safetensors").read_bytes(), (encoder / "config.json").read_bytes()
    names = {"AutoConfig": "evil.Config", "AutoModelForAudioClassification": "evil.Model"}
    coded = json.dumps({**json.loads(config), "auto_map": names}).encode()
    code = f"open({str(folder / 'sprung')!r}, 'w')".encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    server.repositories = {
        "lab/plain": {"config.json": config, "model.safetensors": weights, "pytorch_model.bin": trap},
        "lab/coded": {"config.json": coded, "model.safetensors": weights, "evil.py": code},
        "lab/pickled": {"config.json": config, "pytorch_model.bin": trap},
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    own = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1"}
    asks = [(name, COMMIT, str(folder / f"{Path(name).name}.safetensors")) for name in server.repositories]
    asks.append(("lab/plain", COMMIT[::-1], ""))
    command = [sys.executable, "-c", LOADS, json.dumps(asks)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=300)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return Visit(dict(zip([*server.repositories, "another commit"], lines, strict=True)), server.asked, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "coded"])
def test_a_hub_name_gives_the_weights_of_its_commit(visit, encoder, name):
    assert visit.printed[f"lab/{name}"] == "loaded"
    wanted, found = load_file(encoder / "model.safetensors"), load_file(visit.folder / f"{name}.safetensors")
    assert wanted.keys() == found.keys() and all(torch.equal(value, found[key]) for key, value in wanted.items())


def test_nothing_but_that_commits_config_and_weights_is_asked_for(visit):
    asked = [path for path in visit.asked if "/lab/" in path]  # the library also asks for a list of no repository
    assert asked and all(COMMIT in path or COMMIT[::-1] in path for path in asked)
    assert {Path(path).name for path in asked if "/resolve/" in path} == {"config.json", "model.safetensors"}


def test_a_repositorys_code_and_pickles_are_not_even_fetched(visit):
    assert not (visit.folder / "sprung").exists()
    assert not [*visit.folder.rglob("*.py"), *visit.folder.rglob("*.bin")]


def test_a_repository_with_only_a_pickle_is_refused_with_what_to_do(visit):
    said = visit.printed["lab/pickled"]
    assert said.startswith("ValueError lab/pickled holds no weights in safetensors")
    assert f"M.from_pretrained('lab/pickled', revision='{COMMIT}').save_pretrained('folder')" in said
    assert said.endswith("then pass teacher.checkpoint='folder'.")


def test_a_commit_the_hub_does_not_have_is_one_line(visit):
    said = visit.printed["another commit"]
    assert said.startswith("FileNotFoundError lab/plain is no folder here, and the hub does not give its commit")
    assert said.endswith("pass a folder with teacher.checkpoint='folder'.")


@pytest.mark.parametrize("revision", ["", "main", "v1.0", "0123abc", COMMIT.upper(), f"{COMMIT}\n"])
def test_a_hub_name_without_a_whole_commit_is_refused_at_the_door(revision):
    for make in (
        lambda: TeacherSettings.of("tiny", checkpoint="lab/plain", revision=revision),
        lambda: settings_of("tiny", f"teacher.checkpoint='lab/plain', teacher.revision={revision!r}"),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert str(caught.value).startswith(f"teacher.checkpoint='lab/plain', revision={revision!r}: ")
        assert "40 hex digits of a commit" in str(caught.value)


def test_a_folder_needs_no_commit_and_takes_the_profiles(encoder):
    for profile in ("tiny", "paper"):
        teacher = build_teacher(
            TeacherSettings.of(profile, checkpoint=str(encoder), num_hidden_layers=3, model_type="wav2vec2"), LABELS
        )
        weights = load_file(encoder / "model.safetensors")
        assert all(torch.equal(value, weights[name]) for name, value in teacher.wav2vec2.state_dict().items())


def test_a_pickle_in_a_folder_is_refused_unopened(encoder, tmp_path):
    sprung, folder = tmp_path / "sprung", tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_bytes((encoder / "config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(
        ValueError, match=r"holds no weights in safetensors.*convert it once.*save_pretrained\('folder'\)"
    ):
        build_teacher(TEACHER.replace(checkpoint=str(folder)), LABELS)
    assert not sprung.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes()).close()
    assert sprung.exists()  # the trap works


@pytest.mark.slow
def test_the_conversion_that_the_refusal_names_works(encoder, tmp_path):
    pickled, folder = tmp_path / "pickled", tmp_path / "folder"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((encoder / "config.json").read_bytes())
    torch.save(Wav2Vec2Model.from_pretrained(encoder).state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(ValueError) as caught:
        build_teacher(TEACHER.replace(checkpoint=str(pickled)), LABELS)
    code = str(caught.value).split('python -c "')[1].split('"')[0]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    build_teacher(TEACHER.replace(checkpoint=str(folder)), LABELS)
