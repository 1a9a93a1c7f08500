"""A model by its name, folder or address; the list of the bundled ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdm.errors import ModelError
from sdm.models.bundled import BundledModel
from sdm.models.folder import DEFAULT, FILES, bundled_folders, is_model_folder
from sdm.models.joint import JOINS, join
from sdm.models.protocol import Model

if TYPE_CHECKING:
    from sdm.models.taxabind.fetch import Progress


def list_models() -> list[BundledModel]:
    """The bundled models, the default one first."""
    return [BundledModel.open(path) for path in bundled_folders().values()]


def default_model(model: Model | str | Path | None) -> Model:
    """The model given, opened where it is a name or a folder; without one the default bundled model."""
    if model is not None:
        return open_model(model)
    names = list(bundled_folders())
    if len(names) == 1 or DEFAULT in names:
        return BundledModel.open(names[0])  # the default one comes first
    raise ModelError(f"choose a model with --model: a folder, or a bundled one ({', '.join(names) or 'none'}).")


def open_model(
    model: Model | str | Path,
    *,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Model:
    """A model by name ("taxabind" or a bundled one), folder, or address hf://organisation/repository[@revision].

    Names joined by "+" are bundled models that share their encoders, as one.
    A folder may be of this project's format or hold the published TaxaBind files. Only an hf:// address is fetched,
    and only what is not in the cache (`cache_dir`, by default the Hugging Face one). An opened model is returned as
    it is. Raises ModelError.
    """
    if not isinstance(model, str | Path):
        return model
    from sdm.models.taxabind.model import PublishedModel

    name = str(model)
    if name == "taxabind":
        return PublishedModel.open(None, bundled_folders().values(), cache_dir)
    if name.startswith("hf://"):
        return _open_address(name, cache_dir, offline, progress)
    if JOINS in name and all(part in bundled_folders() for part in name.split(JOINS)):
        return join(BundledModel.open(part) for part in dict.fromkeys(name.split(JOINS)))
    path = Path(model)
    try:
        published = path.is_dir() and not is_model_folder(path)
    except (OSError, ValueError):  # a name too long, or with a null byte
        published = False
    return PublishedModel.open(path, bundled_folders().values()) if published else BundledModel.open(model)


def _open_address(address: str, cache_dir: str | Path | None, offline: bool, progress: Progress | None) -> Model:
    """A model on the Hugging Face hub, of either layout, fetched where it is not in the cache. Raises ModelError."""
    from sdm.models.taxabind.fetch import AbsentError, fetch_files, open_or_fetch, silent
    from sdm.models.taxabind.layout import parse_uri
    from sdm.models.taxabind.model import PublishedModel

    repository, revision = parse_uri(address)
    tell = progress or silent
    try:
        return BundledModel.open(fetch_files(repository, FILES, revision, cache_dir, offline, tell))
    except AbsentError:
        checkpoints = open_or_fetch(
            repository=repository, revision=revision, cache_dir=cache_dir, offline=offline, progress=tell
        )
        return PublishedModel(checkpoints, tuple(bundled_folders().values()), address)
