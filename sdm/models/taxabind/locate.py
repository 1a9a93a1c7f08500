"""Find the published files on this machine: in a folder made by hand, or in the Hugging Face cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdm.errors import ModelError
from sdm.models.taxabind.layout import CONFIG, CONFIG_REPOSITORY, PARTS, Part, parts_from_config, read_config


@dataclass(frozen=True)
class PartFiles:
    """The files of a part on this machine; links are not resolved."""

    part: Part
    weights: Path
    config: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files that decide what the encoder computes."""
        return (self.weights,) if self.config is None else (self.weights, self.config)


def hub_cache(cache_dir: str | Path | None = None) -> Path:
    """The Hugging Face cache, from the argument or from the variables that its own library reads."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if given := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(given).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def folders(root: Path, repository: str, revision: str = "main") -> Iterator[Path]:
    """Possible paths of a repository's files below a folder, the most explicit first."""
    organisation, name = repository.split("/")
    yield root / name
    yield root / organisation / name
    if root.name == name:
        yield root
    for cache in (root, root / "hub"):
        stored = cache / f"models--{organisation}--{name}"
        if (stored / "snapshots" / revision).is_dir():
            yield stored / "snapshots" / revision
        try:
            commit = (stored / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            commit = ""
        if commit.isalnum():
            yield stored / "snapshots" / commit
        elif revision == "main":
            # Copied without its refs: accepted where there is only one snapshot.
            snapshots = sorted((stored / "snapshots").glob("*"))
            if len(snapshots) == 1:
                yield snapshots[0]


def find_config(root: Path) -> tuple[dict, Path] | None:
    """TaxaBind's configuration below a folder, with its path: at the top, or in its repository's folder."""
    for folder in (root, *folders(root, CONFIG_REPOSITORY)):
        path = folder / CONFIG
        if path.is_file():
            config = read_config(path)
            if any(part.key in config for part in PARTS):
                return config, path
    return None


def parts_below(root: Path) -> tuple[Part, ...]:
    """The parts to look for: those of the configuration in the folder, or the published ones."""
    if (configuration := find_config(root)) is None:
        return PARTS
    config, path = configuration
    return parts_from_config(config, str(path))


def find_files(root: Path, part: Part) -> PartFiles | None:
    """The files of a part below a folder; None when there are no weights.

    Raises ModelError when there are weights without the config they need.
    """
    for folder in folders(root, part.repository, part.revision):
        for name in part.weights:
            weights = folder / name
            if not weights.is_file():
                continue
            config = folder / part.config
            if config.is_file():
                return PartFiles(part, weights, config)
            if part.config_required:
                raise ModelError(
                    f"{str(weights)!r} is there, but {part.config} of {part.repository} is missing beside it; "
                    "without it the architecture is unknown; download it too."
                )
            return PartFiles(part, weights, None)
    return None
