"""Open corpora fetched from their publishers, checked and unpacked; of the others, whom to ask.

All that is on the way lies in `<folder>.download` beside the corpus; the corpus appears whole, by one rename.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tarfile
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PureWindowsPath
from stat import S_ISLNK

import pooch
import requests

from ser_kd_utils import __version__
from ser_kd_utils.data.corpora import Corpus, load_corpus
from ser_kd_utils.data.corpora.iemocap import IEMOCAP
from ser_kd_utils.data.corpora.meld import MELD
from ser_kd_utils.files import cache_root

TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """Where a corpus comes from; checksum: "algorithm:hex digits" as its publisher gives it, None where it does not."""

    url: str
    checksum: str | None


ARCHIVES = {
    "emodb": Archive("http://emodb.bilderbar.info/download/download.zip", None),
    "ravdess": Archive(
        "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip",
        "md5:bc696df654c87fed845eb13823edef8a",
    ),
}

# access, licence, what the folder holds then, the option that takes it
ON_REQUEST = {
    "iemocap": (IEMOCAP.access, IEMOCAP.licence, IEMOCAP.layout, "--corpus iemocap --data-root DIR"),
    "meld": (MELD.access, MELD.licence, MELD.layout, "--corpus meld --data-root DIR (or meld-4)"),
    "noisex-92": (
        "made by TNO and the Speech Research Unit (Varga & Steeneken, Speech Communication 12, 1993), once on CD-ROM; "
        "a copy in MATLAB files, to be saved as WAV: spib.linse.ufsc.br/noise.html",
        "none stated with the copies: ask its makers",
        "at least five files named as NOISEX-92's, such as babble.wav, f16.wav, factory1.wav, hfchannel.wav, volvo.wav",
        "--noise-dir DIR",
    ),
}


def download(name: str, to: str = "", url: str = "") -> int:
    """Fetch the corpus `name` into the folder `to` (default: in the cache), print its card and how to go on; 0.

    url: another address of the publisher's archive. Of a name ON_REQUEST only the instructions are printed. Raises
    ValueError (unknown name, checksum, unsafe or broken archive) or FileNotFoundError (the server; another corpus in
    the folder or in the archive).
    """
    if name in ON_REQUEST:
        if to or url:
            raise ValueError(f"{name} is not fetched, it takes no --to and no --url: ser-kd download {name}")
        access, licence, layout, option = ON_REQUEST[name]
        print(f"{name} is not fetched.\naccess: {access}\nlicence: {licence}\nlayout: {layout}")
        print(f"Then: ser-kd reproduce {option}")
        return 0
    if name not in ARCHIVES:
        raise ValueError(
            f"unknown data {name!r}; fetched: {', '.join(ARCHIVES)}; access explained: {', '.join(ON_REQUEST)}"
        )
    home = (Path(to).expanduser() if to else cache_root() / "corpora" / name).resolve()
    if home.is_file() or any(home.glob("*")):
        try:
            corpus = _load(name, home)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; pass with --to a new or an empty folder") from None
        print(f"{name} is already in {home}: nothing fetched.")
    else:
        corpus = _fetched(name, home, url or ARCHIVES[name].url)
        print(f"{name} is in {home}.")
    card = dict(corpus.card().itertuples(index=False))
    for item in ("utterances", "speakers", "classes", "differs from published", "licence", "citation"):
        print(f"{item}: {card[item]}")
    print(f"Go on: ser-kd reproduce --corpus {name} --data-root {shlex.quote(str(home))}")
    return 0


def _load(name: str, folder: Path) -> Corpus:
    with warnings.catch_warnings(action="ignore"):  # the card says what differs from the published counts
        return load_corpus(name, folder)


def _fetched(name: str, home: Path, url: str) -> Corpus:
    """Fetched, or resumed, or there already with the right checksum; then unpacked and put in its place."""
    work = home.with_name(f"{home.name}.download")
    unpacked, part, checksum = work / "unpacked", _part(work, url), ARCHIVES[name].checksum
    pooch.get_logger().setLevel("WARNING")
    try:
        archive = Path(pooch.retrieve(url, checksum, path=work, downloader=resume))
        sha256 = pooch.file_hash(str(archive))
        print(
            f"checksum as published: {checksum}" if checksum else f"sha256 {sha256} (the publisher gives no checksum)"
        )
        unpack(archive, unpacked)
        corpus = _load(name, unpacked)
    except requests.RequestException as error:
        kept = ""
        if _tag(part).exists():
            kept = f"; {part.stat().st_size / 1e6:.1f} MB are kept, the same command goes on from there"
        else:
            shutil.rmtree(work, ignore_errors=True)
        raise FileNotFoundError(f"{name} did not come from {url}: {_reason(error)}{kept}") from error
    except (ValueError, FileNotFoundError) as error:
        shutil.rmtree(work)
        raise ValueError(f"what came from {url} is of no use and was removed: {error}") from None
    facts = {"url": url, "sha256": sha256, "bytes": archive.stat().st_size, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    (unpacked / "download.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    unpacked.rename(home)
    shutil.rmtree(work)
    return corpus


def _reason(error: BaseException) -> str:
    """The status the server answers, or what went wrong first, which the library wraps several times."""
    if getattr(error, "response", None) is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    while error.__context__:
        error = error.__context__
    return str(error)


def _part(folder: Path, url: str) -> Path:
    return folder / f"{pooch.utils.unique_file_name(url)}.part"


def _tag(part: Path) -> Path:
    return part.with_suffix(".tag")


def resume(url: str, output: str, _: object = None) -> None:
    """A pooch downloader that keeps what came in `<name>.part` beside `output` and asks for the rest the next time.

    The rest is of the same file or does not come: If-Range names the ETag or the date that came with the part, kept in
    `<name>.tag`. A server that gave neither, knows no ranges or has another file by now starts anew. Raises
    requests.RequestException.
    """
    part = _part(Path(output).parent, url)
    tag = _tag(part)
    headers = {"User-Agent": f"ser-kd/{__version__}", "Accept-Encoding": "identity"}
    if tag.exists():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text(encoding="utf-8")}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing after it: it was whole, or the server forgot about If-Range
            tag.unlink()
            return resume(url, output)
        answer.raise_for_status()
        if answer.status_code != 206:
            tag.unlink(missing_ok=True)
            part.write_bytes(b"")
            mark = answer.headers.get("ETag", "W/")
            if mark.startswith("W/"):  # none, or a weak one, which is not of the bytes
                mark = answer.headers.get("Last-Modified", "")
            if mark:
                tag.write_text(mark, encoding="utf-8")
        done, left = part.stat().st_size, int(answer.headers.get("Content-Length", 0))
        here = f", {done / 1e6:.1f} MB of them here already" if done else ""
        print(f"{url}: {(done + left) / 1e6:.1f} MB{here}", flush=True)
        with part.open("ab") as file:
            for piece in answer.iter_content(2**16):
                file.write(piece)
    tag.unlink(missing_ok=True)
    part.replace(output)
    return None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file into the new `folder` (what is there goes).

    Raises ValueError and leaves no folder: a member that is absolute, goes through "..", or links to outside (in a
    zip: is a link at all); a file that is broken or of another kind.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if zipfile.is_zipfile(archive):
            unpacker = pooch.Unzip
            with zipfile.ZipFile(archive) as file:
                faults = [(m.filename, "a link" if S_ISLNK(m.external_attr >> 16) else "") for m in file.infolist()]
        elif tarfile.is_tarfile(archive):
            unpacker = pooch.Untar
            with tarfile.open(archive) as file:
                faults = [(member.name, _unsafe(member, folder)) for member in file]
        else:
            raise ValueError(f"{archive.name} is neither a zip nor a tar file")
        for (
            name,
            fault,
        ) in faults:  # refused before pooch begins, which leaves out or rewrites what is unsafe, or trusts
            path = PureWindowsPath(name)  # takes both kinds of slashes
            fault = "a path through .." if ".." in path.parts else "an absolute path" if path.anchor else fault
            if fault:
                raise ValueError(f"{archive.name} is not safe to unpack: {name} is {fault}")
        unpacker(extract_dir=str(folder))(str(archive), "download", None)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(f"{archive.name} cannot be unpacked: {error}") from None


def _unsafe(member: tarfile.TarInfo, folder: Path) -> str:
    """What Python's own filter for data has against a member; nothing: ""."""
    try:
        tarfile.data_filter(member, str(folder))
    except tarfile.FilterError as error:
        return f"not data ({error})"
    return ""
