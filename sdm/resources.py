"""Where the bundled `models`, `recipes` and `data` folders are: in the wheel, or in the checkout."""

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
