"""Running tasks: on threads of this process, or on the workers of a Dask cluster."""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm._version import __version__
from sdm.engine.cluster import OURS, ClusterWarning, open_client, processors
from sdm.errors import ClusterError
from sdm.request import Execution

if TYPE_CHECKING:
    from distributed import Client, as_completed

IN_FLIGHT = 1000
"""Tasks given to a cluster ahead of time, at least: bounds the scheduler's memory, yet shows an adaptive
cluster that there is work."""
PER_THREAD = 4
"""Tasks given ahead per thread of the cluster, where that is more."""
WITHOUT_WORKERS_S = 60.0
"""Seconds without any worker after which a cluster of this machine is given up: it starts new ones at once."""
WARN_S = 10.0
"""Seconds without any worker after which the user of another cluster is told (`Execution.worker_wait`: given up)."""
LOOK_S = 1.0
"""Seconds between looks at the workers, while no result arrives."""
LEAVE_S = 120.0
"""Seconds to wait, after a failure, for tasks that are running on the workers."""
ANSWER_S = 10.0
"""Seconds within which a scheduler must answer."""


Function = Callable[..., Any]
Done = Callable[[Any], None]
"""Called with a result."""


def run_tasks(
    function: Function,
    items: Sequence[Any],
    shared: tuple[Any, ...] = (),
    *,
    execution: Execution | None = None,
    client: Client | None = None,
    folder: Path | None = None,
    done: Done = lambda result: None,
) -> None:
    """Call `function(item, *shared)` for every item, one Dask task each, side by side.

    Parameters
    ----------
    function : called in this process or on workers, so it must be a function of a module, or one that cloudpickle
        can send.
    items : one per task.
    shared : further arguments, the same for all tasks; they go to each worker process once.
    execution : where tasks run, and how many at once; by default on threads of this process, one per processor.
    client : run on the cluster of this client instead.
    folder : absolute path of where tasks write; a worker that does not see it ends the run.
    done : called in this process with each result as it arrives, in any order: keep results small.

    Raises
    ------
    Whatever a task raises. A lost worker's tasks run again on another; ClusterError when one task has lost several.
    When this returns or raises, no task of it is running any more.
    """
    execution = execution or Execution()
    with nullcontext(client) if client is not None else open_client(execution) as cluster:
        if cluster is None:
            _on_threads(function, items, shared, execution.threads or processors(), done)
        else:
            _on_cluster(cluster, function, items, shared, folder, done, execution.worker_wait)


def _on_threads(function: Function, items: Sequence[Any], shared: tuple[Any, ...], threads: int, done: Done) -> None:
    import dask
    from dask.callbacks import Callback
    from dask.threaded import get

    # One object that Dask does not look into: `shared` may hold thousands of arrays.
    call = dask.delayed(partial(_call, function, shared), pure=False, traverse=False)
    # Named in order: Dask runs ties by name, so the map fills from the north-west.
    tasks = [call(item, dask_key_name=f"task-{n:08d}") for n, item in enumerate(items)]

    def after(key: Any, result: Any, *state: Any) -> None:
        done(result)

    # Leaving the pool waits for running tasks: after a failure none may write into a folder that is being removed.
    with ThreadPoolExecutor(threads) as pool, Callback(posttask=after):
        # The scheduler itself: by its name Dask would first import `distributed`, to look for a client.
        dask.compute(*tasks, scheduler=get, pool=pool, optimize_graph=False)


def _call(function: Function, shared: tuple[Any, ...], item: Any) -> Any:
    return function(item, *shared)


def _on_cluster(
    client: Client,
    function: Function,
    items: Sequence[Any],
    shared: tuple[Any, ...],
    folder: Path | None,
    done: Done,
    worker_wait: float,
) -> None:
    import cloudpickle
    from distributed import as_completed

    run = uuid.uuid4().hex
    with _marker(folder, run) as marker:
        content = pickle.dumps((__version__, marker, cloudpickle.dumps((function, shared))))
        with warnings.catch_warnings():
            # Dask warns of a large graph above 10 MB: this goes to each worker once, not with each task.
            warnings.simplefilter("ignore", UserWarning)
            # A task, not scattered data: Dask makes it again when the worker that holds it is lost.
            common = client.submit(bytes, content, key=f"shared-{run}", pure=False)
        if client.nthreads():
            # On every worker from the start: Dask would send all tasks of a short list to the one that has it.
            with suppress(OSError, KeyError, ValueError):
                client.replicate([common])
        waiting = iter(enumerate(items))
        completed = as_completed(loop=client.loop)
        flying: dict[Any, Any] = {}
        ahead = 0
        try:
            while True:
                # Topped up when half of them are done, so that each message to the scheduler carries many.
                if len(flying) <= ahead // 2:
                    ahead = max(IN_FLIGHT, PER_THREAD * sum(client.nthreads().values()))
                    batch = list(islice(waiting, ahead - len(flying)))
                    keys = [(f"task-{run}", n) for n, _ in batch]
                    todo = [item for _, item in batch]
                    futures = client.map(_task, todo, key=keys, pure=False, run=run, common=common) if batch else []
                    flying.update(zip(futures, todo, strict=True))
                    completed.update(futures)
                if not flying:
                    break
                for result in _results(client, _next_batch(client, completed, worker_wait), flying, worker_wait):
                    done(result)
        except (KeyboardInterrupt, SystemExit):
            if client.cluster is not None and _is_ours(client):
                client.cluster.close()  # whoever interrupts does not want to wait for tasks that are running
            raise
        finally:
            _leave_all(client, run, [*flying, common])


def _next_batch(client: Client, completed: as_completed, worker_wait: float) -> list[Any]:
    """Futures that are done; waits for the first. Raises ClusterError where there is no worker for too long."""
    ours = _is_ours(client)
    limit = WITHOUT_WORKERS_S if ours else worker_wait
    looked = since = time.monotonic()
    told = False
    while not completed.has_ready():
        time.sleep(0.01)
        now = time.monotonic()
        if now - looked < LOOK_S or client.status != "running":
            continue
        looked = now
        if _has_workers(client):
            since, told = now, False
        elif now - since > limit:
            raise _without_workers(client, limit)
        elif now - since > WARN_S and not told and not ours:
            _warn_of_waiting(limit)
            told = True
    return completed.next_batch(block=False)


def _has_workers(client: Client) -> bool:
    # A scheduler that does not answer is another matter: its tasks will count as lost.
    try:
        return bool(client.nthreads())
    except (OSError, TimeoutError, CancelledError):
        return True


def _results(client: Client, futures: list[Any], flying: dict[Any, Any], worker_wait: float) -> list[Any]:
    """Results of finished futures, taken out of `flying`; raises what the first failed one raised."""
    from distributed import KilledWorker

    items = {f: flying.pop(f) for f in futures}
    for future, item in items.items():
        if future.status in ("cancelled", "lost"):
            raise _lost(client, _name(item))
        if future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                raise ClusterError(
                    f"{_name(item)}: {error.allowed_failures + 1} workers died, one after another, while they computed "
                    "it, most likely because memory ran out (see their logs); give each worker more memory, or use "
                    "smaller tiles (tile_size)."
                ) from error
            if _is_missing(error):
                raise ClusterError(
                    f"the cluster has no taxabind-map; install version {__version__} on the scheduler and every worker."
                ) from error
            raise error
    try:
        return _gathered(client, futures, worker_wait)
    except (OSError, CancelledError):  # of the connection: what tasks raised was raised above
        raise _lost(client, "some tasks") from None


def _gathered(client: Client, futures: list[Any], worker_wait: float) -> list[Any]:
    """Results of finished futures. Raises ClusterError where the workers that had them are gone for too long.

    `Client.gather` would wait for ever: the tasks count as waiting again, and nobody computes them.
    """
    ours = _is_ours(client)
    limit = WITHOUT_WORKERS_S if ours else worker_wait
    since, patience, told = time.monotonic(), min(WARN_S, limit), False
    while True:
        try:
            results: list[Any] = client.sync(client._gather, futures, callback_timeout=patience)
        except TimeoutError:
            if client.status != "running":
                raise
            waited = time.monotonic() - since
            if _has_workers(client):  # much to fetch
                since, patience = time.monotonic(), 2.0 * patience
            elif waited >= limit:
                raise _without_workers(client, limit) from None
            else:
                if not told and not ours:
                    _warn_of_waiting(limit)
                told, patience = True, max(limit - waited, 0.1)
        else:
            return results


def _warn_of_waiting(limit: float) -> None:
    text = f"the cluster has no worker; waiting {limit:.0f} s for one (--worker-wait)."
    warnings.warn(text, ClusterWarning, stacklevel=6)


def _is_ours(client: Client) -> bool:
    return client.cluster is not None and client.cluster.name == OURS


def _without_workers(client: Client, limit: float) -> ClusterError:
    if _is_ours(client):
        return ClusterError("all worker processes have ended and cannot be started again; give fewer workers.")
    return ClusterError(
        f"the cluster has had no worker for {limit:.0f} s; start workers and run the command again, or wait "
        "longer with --worker-wait SECONDS."
    )


def _is_missing(error: BaseException) -> bool:
    """Whether a worker, or the scheduler, could not read a task because it does not have this package."""
    on_worker = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "sdm"
    return on_worker or (isinstance(error, RuntimeError) and "deserialization of the task graph" in str(error))


def _lost(client: Client, what: str) -> ClusterError:
    if _answers(client):  # the scheduler is alive and has given up the task with its worker
        return ClusterError(
            f"{what}: lost with the worker that computed it, most likely because memory ran out; give each worker "
            "more memory, or use smaller tiles (tile_size)."
        )
    scheduler: Any = client.scheduler
    return ClusterError(
        f"the connection to the Dask scheduler at {scheduler.address} was lost before {what} finished; run "
        "the command again once it is reachable."
    )


def _answers(client: Client) -> bool:
    """Whether the scheduler answers now: the client's own state shows a lost one only after a while."""
    scheduler: Any = client.scheduler
    with suppress(OSError, TimeoutError, CancelledError):
        return client.status == "running" and bool(client.sync(scheduler.identity, callback_timeout=ANSWER_S))
    return False


def _name(item: Any) -> str:
    return f"tile {item.index}" if hasattr(item, "index") and not callable(item.index) else f"task {str(item)[:80]!r}"


@contextmanager
def _marker(folder: Path | None, run: str) -> Iterator[str | None]:
    """A file whose absolute path a worker checks to see whether it shares the folder; None: no folder."""
    if folder is None:
        yield None
        return
    path = Path(folder).absolute() / f".workers-{run}"
    path.touch()
    try:
        yield str(path)
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _leave_all(client: Client, run: str, futures: list[Any]) -> None:
    """Cancel what is left of a run, and wait until no worker computes a task of it any more."""
    # Cancelling alone does not stop a running task: it would continue to write into a folder that is being removed.
    if client.status == "running":
        with suppress(OSError, TimeoutError, ValueError):
            client.cancel(futures)
            client.run(_leave, run, on_error="ignore")


# On a worker -------------------------------------------------------------------------------------


class _Run:
    """State of one `run_tasks` in a worker process: the function, its arguments, how many tasks are running."""

    def __init__(self, common: bytes) -> None:
        version, marker, content = pickle.loads(common)
        if version != __version__:
            raise ClusterError(
                f"worker {socket.gethostname()} has taxabind-map {__version__} and the client {version}; install the "
                "same version everywhere."
            )
        if marker is not None and not Path(marker).is_file():
            raise ClusterError(
                f"worker {socket.gethostname()} does not see the output folder {Path(marker).parent}; workers write "
                "the tiles, so it must lie on a file system that all machines share under the same path."
            )
        self.function, self.shared = pickle.loads(content)
        self.running = 0


_runs: dict[str, _Run] = {}
_left: deque[str] = deque(maxlen=100)
_lock = threading.Lock()


def _task(item: Any, run: str, common: bytes) -> Any:
    with _lock:
        if run in _left:
            raise ClusterError("a task of a run that has ended.")
        if run not in _runs:
            _runs[run] = _Run(common)
        mine = _runs[run]
        mine.running += 1
    try:
        return mine.function(item, *mine.shared)
    finally:
        with _lock:
            mine.running -= 1


async def _leave(run: str) -> None:
    # On the worker's event loop, which must stay free to send heartbeats to the scheduler.
    with _lock:
        _left.append(run)
        mine = _runs.pop(run, None)
    end = time.monotonic() + LEAVE_S
    while mine is not None and mine.running and time.monotonic() < end:
        await asyncio.sleep(0.02)
