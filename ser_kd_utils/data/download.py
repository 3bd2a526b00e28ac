"""Open corpora fetched from their publishers, checked and unpacked; of the others, whom to ask.

All that is on the way lies in `<folder>.download` beside the corpus; the corpus appears whole, by one rename.
"""

import json
import shlex
import shutil
import tarfile
import warnings
import zipfile
import zlib
from collections import namedtuple
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path, PureWindowsPath
from stat import S_ISLNK

import pooch
import requests

from ser_kd_utils.data.corpora import Corpus, load_corpus
from ser_kd_utils.data.corpora.iemocap import IEMOCAP
from ser_kd_utils.data.corpora.meld import MELD
from ser_kd_utils.files import cache_root, sha256

TIMEOUT = 30  # seconds without a byte


# Where a corpus comes from; checksum: "algorithm:hex digits" as its publisher gives it, None where it does not.
Archive = namedtuple("Archive", "url checksum")
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
        known = f"fetched: {', '.join(ARCHIVES)}; access explained: {', '.join(ON_REQUEST)}"
        raise ValueError(f"unknown data {name!r}; {known}")
    home = (Path(to).expanduser() if to else cache_root() / "corpora" / name).resolve()
    with warnings.catch_warnings(action="ignore"):  # the card says what differs from the published counts
        if home.is_file() or any(home.glob("*")):
            try:
                corpus = load_corpus(name, home)
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


def _fetched(name: str, home: Path, url: str) -> Corpus:
    """Fetched, checked, unpacked and put in its place; nothing stays of what fails."""
    work = home.with_name(f"{home.name}.download")
    unpacked, checksum = work / "unpacked", ARCHIVES[name].checksum
    pooch.get_logger().setLevel("WARNING")
    print(f"fetching {url}", flush=True)
    try:
        downloader = pooch.HTTPDownloader(timeout=TIMEOUT, headers={"Accept-Encoding": "identity"})
        archive = Path(pooch.retrieve(url, checksum, path=work, downloader=downloader))
        facts = {"url": url, "sha256": sha256(archive), "bytes": archive.stat().st_size}
        print(f"sha256 {facts['sha256']}; checksum as published: {checksum or 'none given'}")
        unpack(archive, unpacked)
        corpus = load_corpus(name, unpacked)
        facts["date"] = f"{datetime.now(UTC):%Y-%m-%d}"
        (unpacked / "download.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        unpacked.rename(home)
    except requests.RequestException as error:
        raise FileNotFoundError(f"{name} did not come from {url}: {_reason(error)}") from error
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"what came from {url} is of no use and was removed: {error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return corpus


def _reason(error: BaseException) -> str:
    """The status the server answers, or what went wrong first, which the library wraps several times."""
    if getattr(error, "response", None) is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    while error.__context__:
        error = error.__context__
    return str(error)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file into the new `folder` (what is there goes).

    Raises ValueError and leaves no folder: a member that is absolute, goes through "..", or links to outside (in a
    zip: is a link at all); a file that is broken or of another kind.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                links = {member.filename for member in file.infolist() if S_ISLNK(member.external_attr >> 16)}
                _refuse_unsafe(file.namelist(), links)
                file.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                _refuse_unsafe(file.getnames())
                file.extractall(folder, filter="data")  # which refuses links to outside and devices
        else:
            raise ValueError("it is neither a zip nor a tar file")
    except (ValueError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(f"{archive.name} cannot be unpacked: {error}") from None


def _refuse_unsafe(names: Iterable[str], links: Iterable[str] = ()) -> None:
    """Before anything is unpacked: the libraries would leave such a member out, or give it another name."""
    for name in names:
        path = PureWindowsPath(name)  # takes both kinds of slashes
        if path.anchor or ".." in path.parts or name in links:
            raise ValueError(f"{name} is not safe, it is absolute, goes through .. or is a link")
