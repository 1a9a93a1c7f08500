"""The Dask cluster tasks run on: one at an address, worker processes of this machine, or the caller's own Client.

Who opens closes: `open_client` closes the client or the workers it started, and never touches a cluster or a
client that was there before. No client is made Dask's default here, so only our tasks go to the cluster.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm._version import __version__
from sdm.errors import ClusterError, ClusterWarning, RequestError
from sdm.files.signals import held_back
from sdm.request import Execution

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

CONNECT_S = 10
"""Seconds a scheduler may take to answer."""
WORKER_MEMORY = 1 << 30
"""Bytes a worker needs at least: the libraries and the model take about 600 MB."""
WORKER_CONFIG = {
    "distributed.worker.http.routes": [],
    # Results are small, so there is nothing to spill, and a worker that pauses would pause forever. One that
    # grows too large is ended and its tile tried elsewhere.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
}
"""Dask's configuration of the workers that `local_cluster` starts."""
OURS = "taxabind-map"
"""Name of the clusters that `local_cluster` starts."""
SHARED_SOFTWARE = ("dask", "distributed", "cloudpickle", "msgpack", "numpy", "torch", "rasterio", "zarr", "numcodecs")
"""Packages whose versions should be the same everywhere: they decide whether tasks arrive, and their last bits."""


@contextmanager
def open_client(execution: Execution) -> Iterator[Client | None]:
    """The Dask client to run tasks with; None means threads of this process.

    With a scheduler address, that of a running cluster; with workers, that of new worker processes on this machine
    (see `local_cluster`). Threads alone mean this process. With nothing given, it is the caller's active Client, if
    there is one.

    Raises RequestError for a scheduler file that cannot be used, ClusterError when nothing answers.
    """
    if execution.scheduler_address is not None:
        with _connected(execution.scheduler_address) as client:
            yield client
    elif execution.workers is not None:
        with local_cluster(execution.workers, execution.threads) as client:
            yield client
    elif execution.threads is not None:
        yield None
    else:
        active = active_client()
        if active is not None:
            _check_software(active)
        yield active


def on_cluster(execution: Execution) -> bool:
    """Whether other processes than this one compute the tasks."""
    return execution.workers is not None or execution.scheduler_address is not None or active_client() is not None


def active_client() -> Client | None:
    """The `dask.distributed.Client` the caller has made, or None. Raises RequestError for an asynchronous one."""
    if "distributed" not in sys.modules:  # nobody can have made one
        return None
    from distributed import Client, get_worker

    try:
        # A task that waits for tasks on its own cluster can wait forever: it works with its own threads.
        get_worker()
        return None
    except ValueError:
        pass
    try:
        client = Client.current()
    except ValueError:
        return None
    if client.asynchronous:
        raise RequestError("the active Dask Client is asynchronous; make one with asynchronous=False.")
    return client


@contextmanager
def local_cluster(
    workers: int | None = None, threads: int | None = None, gpus: Sequence[str] | None = None
) -> Iterator[Client]:
    """A client of worker processes on this machine; they end with the block, whatever ends it.

    `gpus`: identifiers as in CUDA_VISIBLE_DEVICES; by default those this process may use. With GPUs, worker k
    sees only the k-th of them (counted round) and offers the Dask resource "GPU": 1. `workers`: by default one
    per GPU, else one per processor. `threads`: tiles at once in each; by default 1, and 2 with a GPU, so that
    one reads its layers while the other is on the device.

    Each worker computes on one thread per tile, may use its share of the memory, and is replaced when it
    dies. All listen on the loopback device only, with certificates made for this cluster: other users of the
    machine cannot reach it. There is no dashboard. In a script, call it below `if __name__ == "__main__":`,
    as always when Python starts processes.
    """
    from distributed import Client

    gpus = visible_gpus() if gpus is None else tuple(gpus)
    workers = workers or len(gpus) or processors()
    memory = _memory_of_each(workers)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="taxabind-map-", ignore_cleanup_errors=True))
        try:
            with _signals_wait(), _environment_kept():
                cluster = _started(workers, threads or (2 if gpus else 1), memory, gpus, scratch)
                stack.enter_context(cluster)  # before a signal that waited can strike
        except (RuntimeError, OSError, TimeoutError) as error:
            raise ClusterError(
                f"the worker processes could not be started ({_short(error)}); in a Python script, call from below "
                '`if __name__ == "__main__":`.'
            ) from error
        yield stack.enter_context(Client(cluster, set_as_default=False))


def _memory_of_each(workers: int) -> int:
    """Bytes of memory for each worker. Raises RequestError where that is too little."""
    from distributed.system import MEMORY_LIMIT

    memory = MEMORY_LIMIT // workers
    if memory < WORKER_MEMORY:
        raise RequestError(
            f"workers {workers} would have {memory / 1e9:.1f} GB of memory each and need about "
            f"{WORKER_MEMORY / 1e9:.1f}; give at most {max(1, MEMORY_LIMIT // WORKER_MEMORY)}."
        )
    return memory


def _started(workers: int, threads: int, memory: int, gpus: Sequence[str], scratch: str) -> SpecCluster:
    """Start worker processes and their scheduler; arguments as of `local_cluster`, `memory` in bytes for each."""
    import dask
    from distributed import Nanny, Scheduler, Security, SpecCluster

    security = Security.temporary()
    common = {
        "host": "127.0.0.1",
        "protocol": "tls://",
        "security": security,
        "local_directory": scratch,
        # The pages of Dask's web servers stay off, and no port but a free one of the loopback device is taken.
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
    }
    options = {
        **common,
        "nthreads": threads,
        "memory_limit": memory,
        "config": WORKER_CONFIG,
        "silence_logs": logging.CRITICAL,
    }
    nannies: dict[int, dict[str, Any]] = {k: {"cls": Nanny, "options": dict(options)} for k in range(workers)}
    if gpus:
        for k, nanny in nannies.items():
            nanny["options"] |= {"env": {"CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]}, "resources": {"GPU": 1}}
    with dask.config.set({"distributed.scheduler.http.routes": []}):
        scheduler = {"cls": Scheduler, "options": {**common, "port": 0}}
        return SpecCluster(
            workers=nannies, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL, name=OURS
        )


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what Dask does to this process: it sets the threads of numerical libraries for its workers here."""
    import dask

    before = {name: os.environ.get(name) for name in dask.config.get("distributed.nanny.pre-spawn-environ", {})}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back; threads and processes started meanwhile never see SIGINT.

    A cluster interrupted halfway up cannot be closed. And Ctrl-C in a terminal reaches every process of the
    group: what it means is for the parent to say; a worker that ended by itself would be started again.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it unblocks SIGINT in the thread that starts it
    with held_back():  # for signals that other threads take
        # Threads, and the processes they start, inherit the mask.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def visible_gpus() -> tuple[str, ...]:
    """Identifiers of the CUDA devices this process may use, as for CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [n.strip() for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    return tuple(named[:count] or map(str, range(count)))


def processors() -> int:
    """Processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


@contextmanager
def _connected(address: str | Path) -> Iterator[Client]:
    from distributed import Client

    target = _target(address)
    with _quiet():
        try:
            # Before the client, which waits forever for a server that accepts the connection without answering. In a
            # thread, since the caller may be inside an event loop.
            with ThreadPoolExecutor(1) as pool:
                kind = pool.submit(asyncio.run, _node_kind(target)).result()
            if kind != "Scheduler":
                raise ClusterError(f"{target} is a Dask {kind}; give the address of the scheduler.")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                client = Client(target, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {target} within {CONNECT_S} seconds; check the address, that the "
                "scheduler is running, and the firewall."
            ) from error
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            hint = " and set the certificates in Dask's configuration (distributed.comm.tls)" * target.startswith("tls")
            raise ClusterError(
                f"cannot connect to a Dask scheduler at {target}: {_short(error)}; check the address{hint}."
            ) from error
        with client:
            _check_software(client)
            yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's log is off: lost connections and other versions, which it prints at length, are one sentence here."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    loggers = [logging.getLogger(name) for name in ("distributed", *names)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


async def _node_kind(target: str) -> str:
    """ "Scheduler", "Worker" or "Nanny": the kind of Dask node at an address."""
    from distributed import Security
    from distributed.core import rpc

    async def ask() -> str:
        arguments = Security().get_connection_args("client")
        async with rpc(target, timeout=CONNECT_S, connection_args=arguments) as there:
            return str((await there.identity()).get("type"))[:20]

    return await asyncio.wait_for(ask(), CONNECT_S + 1)


def _target(address: str | Path) -> str:
    """The address a scheduler listens on, from itself or from a scheduler file. Raises RequestError."""
    text = str(address).strip()
    if re.fullmatch(r"(tcp|tls|ucx|ws|wss)://[\w.\-\[\]:]+", text) or re.fullmatch(r"[\w.\-]+:\d{1,5}", text):
        return text if "://" in text else f"tcp://{text}"
    if "://" in text or not text.endswith(".json"):
        raise RequestError(
            f"scheduler address {text[:120]!r} is not known; give tcp://HOST:PORT, tls://HOST:PORT or the path of a "
            "scheduler file ending in .json."
        )
    path = Path(text)
    try:
        if path.stat().st_size > 1 << 20:
            raise ValueError("too large")
        listed = json.loads(path.read_text(encoding="utf-8"))["address"]
        if not isinstance(listed, str) or "://" not in listed:
            raise ValueError("its address is not a URL")
    except FileNotFoundError:
        raise RequestError(
            f"scheduler file {text!r} does not exist; start the scheduler with `dask scheduler --scheduler-file`."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"scheduler file {text!r} cannot be used: {_short(error)}.") from None
    return _target(listed)


def _check_software(client: Client) -> None:
    """Refuse workers without this package; warn of other versions that differ, in one sentence each.

    Raises ClusterError. (A worker that received a task it cannot read would end without a message.)
    """
    for address, there in client.run(_version, on_error="return").items():
        if there != __version__:
            has = f"version {there}" if isinstance(there, str) else "none"
            raise ClusterError(
                f"worker {address} has {has} of taxabind-map; install version {__version__} on every worker and the "
                "scheduler."
            )
    versions: Any = client.get_versions(packages=list(SHARED_SOFTWARE))
    own = _versions(versions["client"])
    different: dict[str, str] = {}
    for address, there in versions["workers"].items():
        for package, version in _versions(there).items():
            if version != own[package]:
                different[package] = f"{package} {own[package]} here, {version or 'none'} on {address}"
    scheduler = _versions(versions["scheduler"])
    for package in ("python", "dask", "distributed", "cloudpickle", "msgpack"):
        if scheduler[package] != own[package]:
            different[package] = f"{package} {own[package]} here, {scheduler[package] or 'none'} on the scheduler"
    if different:
        warnings.warn(
            f"versions differ: {'; '.join(different.values())}. Tasks may fail or differ in their last bits: install "
            "the same versions everywhere.",
            ClusterWarning,
            stacklevel=4,
        )


def _version() -> str:
    return __version__


def _versions(entry: dict) -> dict[str, str | None]:
    packages = (entry or {}).get("packages", {})
    versions = {name: packages.get(name) for name in SHARED_SOFTWARE}
    # 3.11.7.final.0: micro versions are compatible.
    return versions | {"python": ".".join(str(packages.get("python") or "").split(".")[:2])}


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
