"""Open corpora fetched from their publishers, checked and unpacked; of the others, whom to ask.

All that is on the way lies in `<folder>.download` beside the corpus; the corpus appears whole, by one rename.
"""

import shlex
import warnings
import zipfile
import zlib
from pathlib import Path

import pooch
import requests

from ser_kd_utils.data.corpora import load_corpus
from ser_kd_utils.data.corpora.iemocap import IEMOCAP
from ser_kd_utils.data.corpora.meld import MELD
from ser_kd_utils.files import cache_root, replaced, sha256

ZENODO = "https://zenodo.org/records"
# address of the zip file, and its checksum ("algorithm:hex digits") as the publisher gives it; None: not given
ARCHIVES = {
    "emodb": ("http://emodb.bilderbar.info/download/download.zip", None),
    "ravdess": (f"{ZENODO}/1188976/files/Audio_Speech_Actors_01-24.zip", "md5:bc696df654c87fed845eb13823edef8a"),
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
    ValueError (unknown name, checksum, broken archive) or FileNotFoundError (the server; another corpus in the folder
    or in the archive).
    """
    if name in ON_REQUEST:
        access, licence, layout, option = ON_REQUEST[name]
        print(f"{name} is not fetched.\naccess: {access}\nlicence: {licence}\nlayout: {layout}")
        print(f"Then: ser-kd reproduce {option}")
        return 0
    if name not in ARCHIVES:
        known = f"fetched: {', '.join(ARCHIVES)}; access explained: {', '.join(ON_REQUEST)}"
        raise ValueError(f"unknown data {name!r}; {known}")
    home = (Path(to).expanduser() if to else cache_root() / "corpora" / name).resolve()
    with warnings.catch_warnings(action="ignore"):  # the card says what differs from the published counts
        there = home.is_file() or any(home.glob("*"))
        if not there:
            _fetch(name, home, url or ARCHIVES[name][0])
        corpus = load_corpus(name, home)
    print(f"{name} is {'already in' if there else 'in'} {home}.")
    for item, value in corpus.card().itertuples(index=False):
        print(f"{item}: {value}")
    print(f"Go on: ser-kd reproduce --corpus {name} --data-root {shlex.quote(str(home))}")
    return 0


def _fetch(name: str, home: Path, url: str) -> None:
    """Fetch, check, unpack and put in its place; nothing stays of what fails.

    Python's zipfile keeps every member below the folder it unpacks to, whatever the member's name.
    """
    pooch.get_logger().setLevel("WARNING")
    print(f"fetching {url}", flush=True)
    checksum, downloader = ARCHIVES[name][1], pooch.HTTPDownloader()
    try:
        with replaced(home, home.with_name(f"{home.name}.download")) as fresh:
            archive = fresh / "archive.zip"
            pooch.retrieve(url, checksum, archive.name, fresh, pooch.Unzip(extract_dir="."), downloader)
            print(f"sha256 {sha256(archive)}; checksum as published: {checksum or 'none given'}")
            archive.unlink()
            load_corpus(name, fresh)
    except requests.RequestException as error:
        raise FileNotFoundError(f"{name} did not come from {url}: {error}") from error
    except (ValueError, FileNotFoundError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"what came from {url} is of no use and was removed: {error}") from None
