"""A model by its name, folder or address."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from sdm.errors import ModelError
from sdm.models.bundled import DEFAULT, FILES, Model, bundled
from sdm.models.config import FORMAT

if TYPE_CHECKING:
    from sdm.models.taxabind.model import PublishedModel


def default_model(model: Any) -> AnyModel:
    """The model given, opened where it is a name or a folder; without one the bundled model of most species."""
    if model is not None:
        return open_model(model) if isinstance(model, str | Path) else model
    names = list(bundled())
    if len(names) == 1 or DEFAULT in names:
        return Model.open(names[0])  # the usual one comes first
    raise ModelError(f"choose a model with --model: a folder, or a bundled one ({', '.join(names) or 'none'}).")


AnyModel = "Model | PublishedModel"
"""What the engine works with; both have the same members."""


def is_published(model: AnyModel) -> TypeGuard[PublishedModel]:
    """Whether this is the published TaxaBind model, rather than one of this project's own format."""
    return not isinstance(model, Model)


def open_model(
    name: str | Path, *, cache_dir: str | Path | None = None, offline: bool = False, progress: Any = None
) -> AnyModel:
    """A model by name ("taxabind" or a bundled one), folder, or address hf://organisation/repository[@revision].

    A folder may be of this project's format or hold the published TaxaBind files. Only an hf:// address is fetched,
    and only what is not in the cache (`cache_dir`, by default the Hugging Face one). Raises ModelError.
    """
    from sdm.models.taxabind.model import PublishedModel, open_published

    text = str(name)
    if text == "taxabind":
        return open_published(None, bundled().values(), cache_dir)
    if text.startswith("hf://"):
        from sdm.models.taxabind.fetch import AbsentError, fetch_files, open_or_fetch
        from sdm.models.taxabind.layout import parse_uri

        repository, revision = parse_uri(text)
        where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "offline": offline}
        if progress is not None:
            where["progress"] = progress
        try:
            return Model.open(fetch_files(repository, FILES, **where))
        except AbsentError:
            return PublishedModel(open_or_fetch(repository=repository, **where), tuple(bundled().values()), text)
    path = Path(name)
    try:
        foreign = path.is_dir() and not _is_ours(path)
    except (OSError, ValueError):  # a name too long, or with a null byte
        foreign = False
    return open_published(path, bundled().values()) if foreign else Model.open(name)


def _is_ours(path: Path) -> bool:
    """Whether a folder is meant to hold a model of this format, complete or not."""
    if any((path / f).exists() for f in ("vocabulary.txt", "taxa.csv")):
        return True
    try:
        return FORMAT in (path / "config.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
