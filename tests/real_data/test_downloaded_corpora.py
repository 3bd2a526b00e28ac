"""Recorded corpora packed as their publishers do, served on this machine, through the command to their counts."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ser_kd_utils.cli import main
from ser_kd_utils.data.corpora import load_corpus
from ser_kd_utils.data.download import ARCHIVES


@pytest.fixture
def served(tmp_path):
    """A folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_emo_db_in_a_zip(shared_data, served, tmp_path, capsys):
    folder, address = served
    with zipfile.ZipFile(folder / "download.zip", "w") as file:
        for path in (shared_data / "emodb").glob("*.flac"):
            file.write(path, f"wav/{path.name}")
    home = tmp_path / "emodb"
    assert main(["download", "emodb", "--url", f"{address}/download.zip", "--to", str(home)]) == 0
    out = capsys.readouterr().out
    assert "utterances: 339\n" in out and "classes: angry 127, happy 71, neutral 79, sad 62\n" in out
    assert "differs from published: no\n" in out
    corpus = load_corpus("emodb", home)
    assert len(corpus.manifest) == 339 and corpus.notes == ()
    assert f"sha256 {hashlib.sha256((folder / 'download.zip').read_bytes()).hexdigest()};" in out


def test_ravdess_in_a_zip_with_its_checksum(shared_data, served, tmp_path, capsys, monkeypatch):
    folder, address = served
    with zipfile.ZipFile(folder / "speech.zip", "w") as file:
        for path in (shared_data / "ravdess").rglob("*.flac"):
            file.write(path, f"Actor_{path.stem[-2:]}/{path.name}")
    url, home = f"{address}/speech.zip", tmp_path / "ravdess"
    md5 = hashlib.md5((folder / "speech.zip").read_bytes()).hexdigest()
    monkeypatch.setitem(ARCHIVES, "ravdess", (url, f"md5:{md5}"))
    assert main(["download", "ravdess", "--to", str(home)]) == 0
    out = capsys.readouterr().out
    assert f"checksum as published: md5:{md5}\n" in out and "differs from published: no\n" in out
    assert load_corpus("ravdess", home).manifest.speaker.nunique() == 24
