"""The bundled models and layers are those of the release: hashes of their files, compared when one is first used.

`models/SHA256SUMS` and `data/SHA256SUMS` list the files that results depend on; `sha256sum --check` reads them, and
`make hashes` writes them.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from sdm.errors import LayerError
from sdm.files.paths import folder

SUMS = "SHA256SUMS"
KINDS = ("models", "data")


def data_file(name: str) -> Path:
    """The path of a file of the bundled `data`. Raises LayerError unless it is that of the release."""
    root = folder("data")
    if problem := differs(root, name):
        raise LayerError(f"bundled layer {name} {problem}")
    return root / name


def differs(root: Path, name: str) -> str:
    """What is wrong with a file of a bundled folder, as the rest of a sentence; "" if nothing.

    `root` is the folder with the list, `name` the path below it. A file is read once per process.
    """
    try:
        expected = listed(root).get(name)
        state = (root / name).stat()
        found = _sha256(str(root / name), state.st_size, state.st_mtime_ns)
    except (OSError, ValueError) as error:
        return f"cannot be checked ({error}); install taxabind-map again."
    if found == expected:
        return ""
    what = "is not in the list of the release" if expected is None else f"is not that of the release ({found[:16]})"
    return f"{what}; install taxabind-map again, or, where it was changed on purpose, run `make hashes`."


def problems(root: Path) -> dict[str, str]:
    """What is wrong with each file of a folder with a list: changed, missing or new; {} if nothing."""
    found = {name: differs(root, name) for name in sorted({*_files(root), *listed(root)})}
    return {name: problem for name, problem in found.items() if problem}


def write_sums(root: Path) -> Path:
    """Write the list of a folder; returns its path."""
    lines = [f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in _files(root)]
    (root / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")
    return root / SUMS


def _files(root: Path) -> list[str]:
    """The files that a result may depend on, below a folder."""
    names = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    kept = (n for n in names if n.name != SUMS and n.suffix != ".md" and "licences" not in n.parts)
    return sorted(name.as_posix() for name in kept if not name.name.startswith("."))


def listed(root: Path) -> dict[str, str]:
    """sha256 by name, as a list has them. Raises OSError, ValueError where it cannot be read."""
    path = root / SUMS
    return _read(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: str, changed: int) -> dict[str, str]:
    rows = (line.split("  ", 1) for line in Path(path).read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, name in rows}


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
