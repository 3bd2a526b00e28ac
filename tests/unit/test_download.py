"""`ser-kd download` and a server on this machine: what comes, what is refused and leaves nothing."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from ser_kd_utils.cli import main
from ser_kd_utils.data import download as downloading
from ser_kd_utils.data.download import ARCHIVES, ON_REQUEST
from ser_kd_utils.data.noise import NOISEX92_STUDY
from ser_kd_utils.files import cache_root


class Server(ThreadingHTTPServer):
    """One file at any address; it cuts the first `cuts` answers off half-way."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.cuts, self.status = b"", 0, 200
        self.asked = []  # the headers of each request
        self.url = f"http://127.0.0.1:{self.server_port}/some/corpus.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(dict(self.headers))
        body = server.body if server.status == 200 else b""
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def emodb():
    """A zip as EMO-DB's: each speaker with each emotion, a fifth of a second of noise; a text beside them."""
    made, rng = io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for speaker in ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16"):
            for emotion in "WLEAFTN":
                sound = io.BytesIO()
                wavfile.write(sound, 16_000, rng.integers(-3000, 3000, 3200).astype(np.int16))
                file.writestr(f"wav/{speaker}a01{emotion}a.wav", sound.getvalue())
        file.writestr("erkennung.txt", "text")
    return made.getvalue()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "Daten für mich" / "emo db"


def run(server, home, capsys, *more, name="emodb"):
    """Exit code, standard output and standard error of the command."""
    code = main(["download", name, "--url", server.url, "--to", str(home), *more])
    return code, *capsys.readouterr()


# --- from the command to the corpus


def test_a_corpus_is_fetched_unpacked_and_opened(server, emodb, home, capsys):
    server.body = emodb
    code, out, err = run(server, home, capsys)
    assert (code, err, len(server.asked)) == (0, "", 1)
    sha256 = hashlib.sha256(emodb).hexdigest()
    assert out.splitlines() == [
        f"fetching {server.url}",
        f"sha256 {sha256}; checksum as published: none given",
        f"emodb is in {home}.",
        "name: emodb",
        "speech: recorded",
        "utterances: 40",
        "speakers: 10",
        "classes: angry 10, happy 10, neutral 10, sad 10",
        "hours: 0.00",
        "protocols: speaker-groups, random",
        "left out: none",
        "differs from published: angry: 10 utterances, published 127; happy: 10 utterances, published 71; "
        "neutral: 10 utterances, published 79; sad: 10 utterances, published 62",
        "licence: CC0-1.0 (as github.com/audeering/emodb states)",
        "access: open (ser-kd download emodb): emodb.bilderbar.info",
        "citation: Burkhardt et al., A database of German emotional speech, Interspeech 2005",
        f"Go on: ser-kd reproduce --corpus emodb --data-root '{home}'",
    ]
    assert [path.name for path in home.parent.iterdir()] == [home.name]
    assert len(list((home / "wav").iterdir())) == 70


def test_where_it_is_already_nothing_is_fetched(server, emodb, home, capsys):
    server.body = emodb
    run(server, home, capsys)
    code, out, err = run(server, home, capsys)
    assert (code, err, len(server.asked)) == (0, "", 1)
    assert out.startswith(f"emodb is already in {home}.\nname: emodb\n")


def test_a_folder_with_something_else_is_left_alone(server, home, capsys):
    home.mkdir(parents=True)
    (home / "thesis.txt").write_text("mine")
    code, out, err = run(server, home, capsys)
    assert (code, out, server.asked) == (2, "", [])
    assert err.startswith(f"ser-kd: no emodb at {home}: ") and err.endswith("found thesis.txt\n")
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]


def test_without_a_folder_it_lies_in_the_cache(server, emodb, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SER_KD_CACHE", str(tmp_path))
    server.body = emodb
    assert main(["download", "emodb", "--url", server.url]) == 0
    assert (cache_root() / "corpora" / "emodb" / "wav" / "03a01Wa.wav").is_file()


def test_an_interrupted_unpacking_leaves_nothing_and_a_killed_one_is_done_anew(
    server, emodb, home, capsys, monkeypatch
):
    server.body, work = emodb, home.with_name(f"{home.name}.download")

    def interrupted(archive):
        assert len(list((work / home.name / "wav").iterdir())) == 70
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(downloading, "sha256", interrupted)
        downloading.download("emodb", str(home), server.url)
    assert not any(home.parent.iterdir())
    (work / home.name / "wav").mkdir(parents=True)  # what a killed one leaves
    (work / home.name / "wav" / "03a01Wb.wav").write_bytes(b"half")
    code, out, _ = run(server, home, capsys)
    assert code == 0 and "utterances: 40" in out and not (home / "wav" / "03a01Wb.wav").exists()
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_what_is_no_such_corpus_is_refused_and_removed(server, home, capsys):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("readme.txt", "moved")
    for body, reason in (
        (made.getvalue(), "found readme.txt"),
        (b"<html>Moved</html>", "not a zip file"),
    ):
        server.body = body
        code, _, err = run(server, home, capsys)
        assert code == 2 and err.startswith(f"ser-kd: what came from {server.url} is of no use and was removed: ")
        assert reason in err and err.count("\n") == 1
        assert not any(home.parent.iterdir())


def test_a_wrong_checksum_is_refused_and_removed(server, emodb, home, capsys):
    server.body = emodb
    code, _, err = run(server, home, capsys, name="ravdess")
    assert code == 2 and err.startswith(f"ser-kd: what came from {server.url} is of no use and was removed: MD5 hash")
    assert ARCHIVES["ravdess"][1] in err and hashlib.md5(emodb).hexdigest() in err and err.count("\n") == 1
    assert not any(home.parent.iterdir())


def test_the_right_checksum_is_said(server, emodb, home, capsys, monkeypatch):
    checksum = f"md5:{hashlib.md5(emodb).hexdigest()}"
    monkeypatch.setitem(ARCHIVES, "emodb", (server.url, checksum))
    server.body = emodb
    code, out, _ = run(server, home, capsys)
    assert code == 0 and f"checksum as published: {checksum}\n" in out


# --- the server


def test_a_cut_connection_is_one_line_and_leaves_nothing(server, emodb, home, capsys):
    server.body, server.cuts = emodb, 1
    code, _, err = run(server, home, capsys)
    assert code == 2 and err.startswith(f"ser-kd: emodb did not come from {server.url}: ")
    assert "IncompleteRead(" in err and err.count("\n") == 1 and not any(home.parent.iterdir())
    code, out, _ = run(server, home, capsys)
    assert code == 0 and "utterances: 40" in out
    assert f"sha256 {hashlib.sha256(emodb).hexdigest()};" in out


def test_a_server_that_does_not_have_it_is_one_line(server, home, capsys):
    server.status = 404
    code, out, err = run(server, home, capsys)
    assert (code, out) == (2, f"fetching {server.url}\n")
    assert err.startswith(f"ser-kd: emodb did not come from {server.url}: 404 Client Error: Not Found")
    assert err.count("\n") == 1
    assert not any(home.parent.iterdir())


def test_no_server_at_all_is_one_line(server, home, capsys):
    server.shutdown()
    server.server_close()
    code, _, err = run(server, home, capsys)
    assert code == 2 and err.startswith(f"ser-kd: emodb did not come from {server.url}: ")
    assert "Connection refused" in err and err.count("\n") == 1 and not any(home.parent.iterdir())


def test_what_is_no_address_is_one_line(home, capsys):
    assert main(["download", "emodb", "--url", "corpus.zip", "--to", str(home)]) == 2
    assert capsys.readouterr().err.startswith("ser-kd: emodb did not come from corpus.zip: Invalid URL")


# --- archives


UNSAFE = {
    "up": ("../evil.txt", ""),
    "up inside": ("wav/../../../evil.txt", ""),
    "up with backslashes": ("..\\evil.txt", ""),
    "absolute": ("/tmp/evil-of-this-test.txt", ""),
    "drive": ("C:\\evil.txt", ""),
    "link up": ("wav/link", "../../../evil.txt"),
    "absolute link": ("wav/link", "/etc/passwd"),
}


@pytest.mark.parametrize(("member", "link"), UNSAFE.values(), ids=UNSAFE)
def test_no_member_of_an_archive_leaves_the_folder(server, emodb, home, capsys, tmp_path, member, link):
    """Whatever its name, it lies in the corpus's folder as a file; a link is a file with the address in it."""
    made, info = io.BytesIO(emodb), zipfile.ZipInfo(member)
    info.external_attr = 0o120777 << 16 if link else 0
    with zipfile.ZipFile(made, "a") as file:
        file.writestr(info, link or "evil")
    server.body = made.getvalue()
    assert run(server, home, capsys)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == [home.parent.name]
    assert [path.name for path in home.parent.iterdir()] == [home.name]
    assert not Path("/tmp/evil-of-this-test.txt").exists()
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) == 72 and not any(path.is_symlink() for path in home.rglob("*"))
    assert (link or "evil").encode() in [path.read_bytes() for path in files]


@pytest.mark.parametrize("broken", ["sound", "directory"])
def test_a_broken_archive_is_refused_and_nothing_left(server, emodb, home, capsys, broken):
    half = len(emodb) // 2
    server.body = emodb[:half] + (bytes(64) + emodb[half + 64 :] if broken == "sound" else b"")
    code, _, err = run(server, home, capsys)
    assert code == 2 and err.startswith(f"ser-kd: what came from {server.url} is of no use and was removed: ")
    assert err.count("\n") == 1 and not any(home.parent.iterdir())


# --- names


@pytest.mark.parametrize("name", ON_REQUEST)
def test_what_is_not_open_is_explained(name, capsys):
    assert main(["download", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{name} is not fetched.", "access", "licence", "layout", "Then"]


def test_the_noises_that_are_named_are_those_of_the_study():
    assert all(f"{kind}.wav" in ON_REQUEST["noisex-92"][2] for kind in NOISEX92_STUDY)


def test_an_unknown_name_is_one_line_with_those_there_are(capsys):
    assert main(["download", "emo-db"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "ser-kd: unknown data 'emo-db'; fetched: emodb, ravdess; access explained: iemocap, meld, noisex-92\n"
    )


def test_the_help_names_all_and_is_light():
    code = (
        "import sys; from ser_kd_utils.cli import main\n"
        "try: main(['download', '--help'])\n"
        "except SystemExit: print(sorted({'pooch', 'requests', 'pandas', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and all(name in done.stdout for name in (*ARCHIVES, *ON_REQUEST))
