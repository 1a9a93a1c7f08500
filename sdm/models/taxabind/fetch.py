"""Fetching from the Hugging Face hub into its cache: resumed, checked, or offline from what is there."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
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


def fetch(
    modalities: Iterable[str] | None = None,
    *,
    repository: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> Checkpoints:
    """The published model, or the one that a configuration repository names, fetched where it is not there yet.

    `modalities`: only the parts these need. `repository`, `revision`: a TaxaBind configuration, as in
    `hf://org/repo@revision`; the revision holds for that repository. Files go to the Hugging Face cache, or
    to `cache_dir` in the same layout, so other programs find them; HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
    are respected. Raises ModelError.
    """
    cache = hub_cache(cache_dir)
    parts = PARTS
    if repository is not None:
        config = download(repository, CONFIG, revision or "main", cache, offline, progress=progress)
        parts = parts_from_config(read_config(config), f"{repository}/{CONFIG}")
    elif revision is not None:
        raise ModelError("a revision needs a repository: hf://organisation/repository@revision.")
    wanted = {m for p in parts for m in p.modalities} if modalities is None else set(modalities)
    if unknown := sorted(wanted - {m for p in parts for m in p.modalities}):
        raise ModelError(f"modality {unknown[0]!r} is not in this model.")
    for part in parts:
        if wanted & set(part.modalities):
            fetch_part(part, cache, offline, progress)
    return Checkpoints.below(cache, parts, by_hand=False)


def fetch_files(
    repository: str,
    names: Iterable[str],
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> Path:
    """Files of any repository -> the folder they lie in together. Raises ModelError, AbsentError for a missing one."""
    paths = [
        download(repository, name, revision or "main", hub_cache(cache_dir), offline, None, progress, MAX_WEIGHT_BYTES)
        for name in names
    ]
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
    progress: Progress = lambda name, done, total: None,
) -> Checkpoints:
    """As `fetch`, but what is in the cache is taken as it is, without asking the hub for something newer."""
    where = {"repository": repository, "revision": revision, "cache_dir": cache_dir, "progress": progress}
    modalities = None if modalities is None else tuple(modalities)
    try:
        return fetch(modalities, offline=True, **where)
    except AbsentError:
        if is_offline(offline):
            raise
        return fetch(modalities, **where)


def fetch_part(
    part: Part, cache: Path, offline: bool = False, progress: Progress = lambda name, done, total: None
) -> Path:
    """The weights of a part, its config beside them; safetensors where the repository has them."""
    with contextlib.nullcontext() if part.config_required else contextlib.suppress(AbsentError):
        download(part.repository, part.config, part.revision, cache, offline, part, progress)
    for name in part.weights:
        with contextlib.suppress(AbsentError):
            return download(part.repository, name, part.revision, cache, offline, part, progress)
    raise AbsentError(
        f"{part.weights[0]} ({megabytes(part.bytes)}) of {part.repository} is not "
        + (f"in {str(cache)!r}, and this is the offline mode; {_advice(part.repository)}." if offline else "there.")
    )


class AbsentError(ModelError):
    """The repository has no such file, or, offline, the cache has not."""


def download(
    repository: str,
    name: str,
    revision: str,
    cache: Path,
    offline: bool = False,
    part: Part | None = None,
    progress: Progress = lambda name, done, total: None,
    limit: int | None = None,
) -> Path:
    """One file of a repository, in the cache; fetched when it is not there or has changed.

    `limit`: bytes it may have. Raises ModelError, AbsentError when there is no such file.
    """
    check_repository(repository, "the repository")
    check_revision(revision)
    weights = part is not None and name in part.weights
    what = f"{name}{f' ({megabytes(part.bytes)})' if weights else ''} of {repository}"
    store = Store(cache, repository)
    if is_offline(offline):
        if (path := store.find(name, revision)) is not None:
            return path
        raise AbsentError(f"{what} is not in {str(cache)!r}, and this is the offline mode; {_advice(repository)}.")
    if len(revision) == 40 and (path := store.find(name, revision)) is not None:
        return path  # a commit does not change
    try:
        seen = _metadata(repository, name, revision, what, patient=store.find(name, revision) is None)
    except UnreachableError:
        if (path := store.find(name, revision)) is not None:
            return path
        raise
    try:
        limit = limit or (MAX_WEIGHT_BYTES if weights else MAX_CONFIG_BYTES)
        return store.take(name, revision, seen, limit, progress)
    except CorruptError as error:
        raise ModelError(f"{what} could not be fetched: {error}; run the command again.") from error
    except ModelError as error:
        raise ModelError(
            f"{what} could not be fetched: {error}; run the command again to go on where it stopped, "
            f"or {_by_hand(repository)}."
        ) from error
    except OSError as error:
        raise ModelError(f"{what} cannot be stored in {str(cache)!r}: {error}.") from error


def is_offline(asked: bool = False) -> bool:
    """Whether to stay off the network: as asked, or by the variable HF_HUB_OFFLINE."""
    return asked or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _by_hand(repository: str) -> str:
    return f"download it elsewhere from https://huggingface.co/{repository} and give its folder as --model"


def _advice(repository: str) -> str:
    return f"fetch it with `sdm models fetch` where there is a network, or {_by_hand(repository)}"


class UnreachableError(ModelError):
    """The hub gave no answer."""


def _metadata(repository: str, name: str, revision: str, what: str, patient: bool) -> _Remote:
    """What the hub says about a file; `patient`: ask several times. Raises ModelError and its kinds above."""
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

    final = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)

    def ask_again() -> Any:
        for tries in range(3):
            try:
                return ask()
            except final:
                raise
            except Exception:
                transfer.wait(tries)
        return ask()

    try:
        seen = ask_again() if patient else ask()
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} asks for an agreement on its page first; then log in with `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no repository {repository} that may be read with your rights; `hf auth login` helps if it is "
            "private."
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
    if not seen.commit_hash or not seen.etag:
        raise UnreachableError(f"{what} could not be fetched: {endpoint} does not answer as a Hugging Face hub does.")
    return _Remote(url, seen, ask)


class _Remote:
    """A file on the hub."""

    def __init__(self, url: str, seen: Any, ask: Callable[[], Any]) -> None:
        self.commit, self.etag, self.size = seen.commit_hash, seen.etag, seen.size
        self._url, self._seen, self._ask = url, seen, ask
        for part in (self.commit, self.etag):
            if not part.replace("-", "").isalnum():  # they become names of files
                raise ModelError(f"the hub names a file {part[:80]!r}, which is not a hash")

    def locate(self) -> tuple[str, Mapping[str, str]]:
        """URL and headers; from the second time on asked for anew."""
        from huggingface_hub.utils import build_hf_headers

        seen, self._seen = self._seen or self._ask(), None
        # The token is for the hub alone: large files come from elsewhere, by signed links.
        own = urlsplit(seen.location).netloc == urlsplit(self._url).netloc
        return seen.location, build_hf_headers() if own else {}


class Store:
    """The folder of a repository in the Hugging Face cache: blobs by hash, snapshots by commit, refs by name."""

    def __init__(self, cache: Path, repository: str) -> None:
        folder = f"models--{repository.replace('/', '--')}"
        self.repository = repository
        self.root, self.locks = cache / folder, cache / ".locks" / folder

    def find(self, name: str, revision: str) -> Path | None:
        """A file at a revision, if it is there."""
        path = self.root / "snapshots" / (self._commit(revision) or revision) / name
        return path if path.is_file() else None

    def _commit(self, revision: str) -> str | None:
        """What a branch or tag was when last asked for."""
        try:
            return (self.root / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None

    def take(self, name: str, revision: str, remote: _Remote, limit: int, progress: Progress) -> Path:
        """Fetch a file unless its content is here, and link it into the snapshot of its commit."""
        from filelock import FileLock

        if remote.size is not None and remote.size > limit:
            raise CorruptError(f"the server announces {megabytes(remote.size)}, more than such a file can have")
        path = self.root / "snapshots" / remote.commit / name
        blob = self.root / "blobs" / remote.etag
        for folder in (path.parent, blob.parent, self.locks):
            folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            # The hub's own library takes the same lock.
            with FileLock(self.locks / f"{remote.etag}.lock"):
                if not blob.is_file():
                    partial = blob.with_name(f"{remote.etag}.incomplete")
                    label = f"{self.repository}/{name}"
                    resume(remote.locate, partial, remote.size, remote.etag, lambda d, t: progress(label, d, t))
                    partial.replace(blob)
                if not path.is_file():  # another process may have waited for the lock longer
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
