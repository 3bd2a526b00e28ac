"""Download open corpora from their publishers, check and unpack them; say whom to ask for the others.

Unfinished downloads lie in `<folder>.download` beside the corpus; the corpus appears whole, by one rename.
"""

import shlex
import warnings
import zipfile
import zlib
from pathlib import Path

import pooch
import requests

from ser_kd_utils.data.corpora import load_corpus
from ser_kd_utils.data.corpora.manifest import CARDS
from ser_kd_utils.files import cache_root, replaced, sha256

ZENODO = "https://zenodo.org/records"
# address of the zip file, and its checksum ("algorithm:hex digits") as the publisher gives it; None: not given
ARCHIVES = {
    "emodb": ("http://emodb.bilderbar.info/download/download.zip", None),
    "ravdess": (f"{ZENODO}/1188976/files/Audio_Speech_Actors_01-24.zip", "md5:bc696df654c87fed845eb13823edef8a"),
}

# of what is not fetched: the option that takes its folder
ON_REQUEST = {
    "iemocap": "--corpus iemocap --data-root DIR",
    "meld": "--corpus meld --data-root DIR (or meld-4)",
    "noisex-92": "--noise-dir DIR",
}


def download(name: str, to: str = "", url: str = "") -> int:
    """Fetch the corpus `name` into the folder `to` (default: in the cache), print its card and how to go on; 0.

    url: another address of the publisher's archive. Of a name ON_REQUEST only the instructions are printed. Raises
    ValueError (unknown name, checksum, broken archive) or FileNotFoundError (the server; another corpus in the folder
    or in the archive).
    """
    if name in ON_REQUEST:
        told = (f"{item}: {CARDS[name][item]}" for item in ("access", "licence", "layout"))
        print(f"{name} is not fetched.", *told, f"Then: ser-kd reproduce {ON_REQUEST[name]}", sep="\n")
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
    """Fetch, check, unpack and put in place; nothing remains after a failure.

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
