"""Which files below a folder are sound, by the same rules for speech and for noise."""

from __future__ import annotations

import os
from pathlib import Path

SOUND_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4"),
    *(".aac", ".aif", ".aiff", ".aifc", ".au", ".webm", ".wma"),
)


def sound_files(folder: Path) -> list[Path]:
    """Every sound file (SOUND_SUFFIXES) below `folder`, sorted.

    Links are followed, each folder is entered once; hidden files and folders are left out. Raises ValueError for a name
    that is not UTF-8.
    """
    found, entered, tops = [], set(), [folder]
    for top in tops:  # links to folders are appended on the way, so that a folder's own place comes before them
        for place, folders, names in os.walk(top):
            here = os.path.realpath(place)
            folders[:] = sorted(name for name in folders if name[0] != "." and here not in entered)
            found += [Path(place, name) for name in names if name[0] != "." and here not in entered]
            tops += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
            entered.add(here)
    return sorted(require_utf8(path) for path in found if path.suffix.lower() in SOUND_SUFFIXES)


def require_utf8(path: Path) -> Path:
    """The path itself. Raises ValueError where it is in another encoding, which no table can hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{os.fsencode(path)!r} is not named in UTF-8 (perhaps in Windows-1252): rename it, as with convmv"
        ) from None
    return path
