"""Downloads from the Hugging Face hub into its cache: resumed and checked; offline, only from the cache."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sdm.errors import ModelError
from sdm.files.paths import replace_file
from sdm.models.taxabind import transfer
from sdm.models.taxabind.checkpoints import Checkpoints
from sdm.models.taxabind.layout import (
    CONFIG,
    MAX_CONFIG_BYTES,
    PARTS,
    Part,
    check_repository,
    check_revision,
    megabytes,
    parts_from_config,
    read_config,
)
from sdm.models.taxabind.locate import hub_cache
from sdm.models.taxabind.transfer import CorruptError, resume

MAX_WEIGHT_BYTES = 20 * 10**9
Progress = Callable[[str, int, int | None], None]
"""Called with a file ("MVRL/ecosat/model.safetensors"), bytes done and bytes in all, if known."""


def silent(name: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class _Download:
    """Settings of a fetch."""

    cache: Path
    """The Hugging Face cache, or a folder of the same layout."""
    offline: bool
    progress: Progress


class AbsentError(ModelError):
    """The repository, or offline the cache, has no such file."""


class UnreachableError(ModelError):
    """The hub gave no answer."""


def fetch(
    modalities: Iterable[str] | None = None,
    *,
    repository: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Checkpoints:
    """The published model, or the one that a configuration repository names; what is missing is fetched.

    The variables HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are respected.

    Parameters
    ----------
    modalities : only the parts that these need; None: all.
    repository, revision : of a TaxaBind configuration, as in `hf://org/repo@revision`.
    cache_dir : folder in the layout of the Hugging Face cache, so that other programs find the files; None: that cache.
    offline : use only what is in the cache.
    progress : called while a file is fetched.

    Raises
    ------
    ModelError
    """
    how = _Download(hub_cache(cache_dir), offline, progress)
    parts: tuple[Part, ...] = PARTS
    if repository is not None:
        config = _fetch_file(repository, CONFIG, revision or "main", how)
        parts = parts_from_config(read_config(config), f"{repository}/{CONFIG}")
    elif revision is not None:
        raise ModelError("a revision needs a repository: hf://organisation/repository@revision.")
    wanted = {m for p in parts for m in p.modalities} if modalities is None else set(modalities)
    if unknown := sorted(wanted - {m for p in parts for m in p.modalities}):
        raise ModelError(f"modality {unknown[0]!r} is not in this model.")
    for part in parts:
        if wanted & set(part.modalities):
            _fetch_part(part, how)
    return Checkpoints.below(how.cache, parts, by_hand=False)


def fetch_files(
    repository: str,
    names: Iterable[str],
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Path:
    """The folder with some files of any repository; options are those of `fetch`.

    Raises ModelError, AbsentError for a file that is missing.
    """
    how = _Download(hub_cache(cache_dir), offline, progress)
    paths = [_fetch_file(repository, name, revision or "main", how, limit=MAX_WEIGHT_BYTES) for name in names]
    if len({p.parent for p in paths}) != 1:
        raise ModelError(f"{repository} changed while it was fetched; run the command again.")
    return paths[0].parent


def open_or_fetch(
    modalities: Iterable[str] | None = None,
    *,
    repository: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Checkpoints:
    """As `fetch`, but files in the cache are taken as they are, without asking the hub for newer ones."""
    wanted = None if modalities is None else tuple(modalities)

    def attempt(offline: bool) -> Checkpoints:
        return fetch(
            wanted, repository=repository, revision=revision, cache_dir=cache_dir, offline=offline, progress=progress
        )

    try:
        return attempt(offline=True)
    except AbsentError:
        if is_offline(offline):
            raise
        return attempt(offline=False)


def _fetch_part(part: Part, how: _Download) -> Path:
    """The weights of a part, its config beside them; safetensors where the repository has them."""
    with contextlib.nullcontext() if part.config_required else contextlib.suppress(AbsentError):
        _fetch_file(part.repository, part.config, part.revision, how)
    for name in part.weights:
        with contextlib.suppress(AbsentError):
            return _fetch_file(part.repository, name, part.revision, how, part.bytes, MAX_WEIGHT_BYTES)
    raise AbsentError(
        f"{part.weights[0]} ({megabytes(part.bytes)}) of {part.repository} is not "
        + (
            f"in {str(how.cache)!r}, and this is the offline mode; {_advice(part.repository)}."
            if how.offline
            else "there."
        )
    )


def _fetch_file(
    repository: str, name: str, revision: str, how: _Download, size: int | None = None, limit: int = MAX_CONFIG_BYTES
) -> Path:
    """One file of a repository, in the cache; fetched when it is not there or has changed.

    `size`: what it has as published, for messages; `limit`: bytes it may have. Raises ModelError, AbsentError when
    there is no such file.
    """
    check_repository(repository, "the repository")
    check_revision(revision)
    what = f"{name}{f' ({megabytes(size)})' if size else ''} of {repository}"
    store = Store(how.cache, repository)
    cached = store.find(name, revision)
    if is_offline(how.offline):
        if cached is None:
            raise AbsentError(
                f"{what} is not in {str(how.cache)!r}, and this is the offline mode; {_advice(repository)}."
            )
        return cached
    if len(revision) == 40 and cached is not None:
        return cached  # a commit does not change
    try:
        remote = _find_remote(repository, name, revision, what, patient=cached is None)
    except UnreachableError:
        if cached is not None:
            return cached
        raise
    try:
        return store.take(name, revision, remote, limit, how.progress)
    except CorruptError as error:
        raise ModelError(f"{what} could not be fetched: {error}; run the command again.") from error
    except ModelError as error:
        raise ModelError(
            f"{what} could not be fetched: {error}; run the command again to resume, or {_by_hand(repository)}."
        ) from error
    except OSError as error:
        raise ModelError(f"{what} cannot be stored in {str(how.cache)!r}: {error}.") from error


def is_offline(asked: bool = False) -> bool:
    """Whether not to use the network: as requested, or by the variable HF_HUB_OFFLINE."""
    return asked or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _by_hand(repository: str) -> str:
    return f"download it elsewhere from https://huggingface.co/{repository} and give its folder as --model"


def _advice(repository: str) -> str:
    return f"fetch it with `sdm models fetch` where there is a network, or {_by_hand(repository)}"


def _find_remote(repository: str, name: str, revision: str, what: str, patient: bool) -> _Remote:
    """A file on the hub; `patient`: ask several times. Raises ModelError, AbsentError, UnreachableError."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors  # submodules are not attributes until imported
    except ImportError as error:
        raise ModelError(
            f"fetching models needs the library {error.name}, which is not installed; install it with: "
            'pip install "taxabind-map[taxabind]"'
        ) from error
    # Given explicitly, since the library reads the variable only when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    url = hub.hf_hub_url(repository, name, revision=revision, endpoint=endpoint.rstrip("/"))

    def ask() -> Any:
        return hub.get_hf_file_metadata(url, endpoint=endpoint)

    try:
        answer = _ask_again(ask) if patient else ask()
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} requires an agreement: accept it on its page, then log in with `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no repository {repository}, or it is private: then log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repository} has no revision {revision!r}.") from error
    except errors.EntryNotFoundError as error:
        raise AbsentError(f"{repository} has no file {name} at the revision {revision!r}.") from error
    except Exception as error:  # networks fail in many ways
        raise UnreachableError(
            f"{what} could not be fetched: {endpoint} gives no answer "
            f"({str(error).strip()[:150] or type(error).__name__}); try again later, or {_by_hand(repository)}."
        ) from error
    if not answer.commit_hash or not answer.etag:
        raise UnreachableError(f"{what} could not be fetched: {endpoint} does not answer like a Hugging Face hub.")
    return _Remote(url, answer, ask)


def _ask_again(ask: Callable[[], Any]) -> Any:
    """The response of the hub, requested up to four times unless it reports that there is no such file."""
    from huggingface_hub import errors

    final = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
    for tries in range(3):
        try:
            return ask()
        except final:
            raise
        except Exception as error:
            if not transfer.give_way(error):
                transfer.wait(tries)
    return ask()


class _Remote:
    """A file on the hub."""

    def __init__(self, url: str, answer: Any, ask: Callable[[], Any]) -> None:
        self.commit, self.etag, self.size = answer.commit_hash, answer.etag, answer.size
        self._url, self._answer, self._ask = url, answer, ask
        for part in (self.commit, self.etag):
            if not part.replace("-", "").isalnum():  # they become names of files
                raise ModelError(f"the hub names a file {part[:80]!r}, which is not a hash")

    def locate(self) -> tuple[str, Mapping[str, str]]:
        """URL and headers; every call but the first asks the hub again, since signed links expire."""
        from huggingface_hub.utils import build_hf_headers

        answer, self._answer = self._answer or self._ask(), None
        # The token is for the hub alone: large files come from elsewhere, by signed links.
        own = urlsplit(answer.location).netloc == urlsplit(self._url).netloc
        return answer.location, build_hf_headers() if own else {}


class Store:
    """The folder of a repository in the Hugging Face cache: blobs by hash, snapshots by commit, refs by name."""

    def __init__(self, cache: Path, repository: str) -> None:
        folder = f"models--{repository.replace('/', '--')}"
        self.repository = repository
        self.root, self.locks = cache / folder, cache / ".locks" / folder

    def find(self, name: str, revision: str) -> Path | None:
        """A file at a revision, if the cache has it."""
        path = self.root / "snapshots" / (self._commit(revision) or revision) / name
        return path if path.is_file() else None

    def _commit(self, revision: str) -> str | None:
        """The commit of a branch or tag when the hub was last asked."""
        try:
            return (self.root / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None

    def take(self, name: str, revision: str, remote: _Remote, limit: int, progress: Progress) -> Path:
        """Fetch a file unless its content is in the cache, and link it into the snapshot of its commit."""
        from filelock import FileLock

        if remote.size is not None and remote.size > limit:
            raise CorruptError(f"the server announces {megabytes(remote.size)}, more than such a file can have")
        path = self.root / "snapshots" / remote.commit / name
        blob = self.root / "blobs" / remote.etag
        for folder in (path.parent, blob.parent, self.locks):
            folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            # The same lock that the hub's own library takes.
            with FileLock(self.locks / f"{remote.etag}.lock"):
                if not blob.is_file():
                    partial = blob.with_name(f"{remote.etag}.incomplete")
                    label = f"{self.repository}/{name}"
                    resume(remote.locate, partial, remote.size, remote.etag, lambda d, t: progress(label, d, t))
                    partial.replace(blob)
                if not path.is_file():  # another process may have had the lock before
                    _link(blob, path)
        if remote.commit != revision and self._commit(revision) != remote.commit:
            ref = self.root / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            replace_file(ref, remote.commit.encode("ascii"))
        return path


def _link(blob: Path, path: Path) -> None:
    """A relative link, as the hub's library makes it; a move where the file system has no links."""
    link = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        link.symlink_to(os.path.relpath(blob, path.parent))
        link.replace(path)
    except OSError:
        link.unlink(missing_ok=True)
        blob.replace(path)
