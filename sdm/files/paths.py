"""Paths: the bundled `models`, `recipes` and `data` folders, and the user's cache."""

import os
import uuid
from importlib.resources import files
from pathlib import Path


def folder(kind: str) -> Path:
    """Folder of bundled resources; `kind` is "models", "recipes" or "data".

    An installed wheel carries them inside the package; a checkout has them at its top level.
    Raises FileNotFoundError when neither is there.
    """
    package = Path(str(files("sdm")))
    for candidate in (package / "_resources" / kind, package.parent / kind):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the bundled folder {kind!r} is missing from this installation of taxabind-map")


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old one or the new one, and a failure leaves the old one.

    Raises OSError. For what is kept for speed; outputs must also survive a power cut (`sdm.files.atomic`).
    """
    # Not the tempfile module's, which only their owner may read.
    part = path.with_name(f".part-{uuid.uuid4().hex}")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def cache_folder(given: str | Path | None = None) -> Path:
    """The folder for what is fetched or computed once: `given`, $TAXABIND_MAP_CACHE, or one in the user's cache folder.

    It may not exist yet.
    """
    chosen = given or os.environ.get("TAXABIND_MAP_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("taxabind-map", appauthor=False, opinion=False).expanduser()


def absolute(path: str | Path) -> str:
    """A path that means the same in another process, whose working folder may be another."""
    text = str(path)
    # An environment may be a word ("approximate"), a path may carry options after a "#".
    if text.partition("#")[0] == "approximate":
        return text
    return text if "://" in text or text.startswith("/vsi") else str(Path(text).absolute())
