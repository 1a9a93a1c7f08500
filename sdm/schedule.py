"""Where tasks run: on threads of this process, or on the workers of a Dask cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run_tasks(
    function: Callable[..., Any],
    items: Sequence[Any],
    shared: tuple[Any, ...] = (),
    *,
    workers: int | None = None,
    done: Callable[[Any], None] = lambda result: None,
) -> None:
    """Call `function(item, *shared)` for every item, one Dask task each, side by side.

    `workers`: threads of this process, by default one per processor; an active
    `dask.distributed.Client` is used instead when there is one. `done(result)` is called in this
    process as results arrive, in any order. After a failure no task is left running here.
    """
    import dask
    from dask.callbacks import Callback

    task = dask.delayed(function, pure=False)
    # Named in order: Dask runs ties by name, so the map fills from the north-west.
    tasks = [task(item, *shared, dask_key_name=f"task-{n:08d}") for n, item in enumerate(items)]
    client = active_client()
    if client is not None:
        from distributed import as_completed

        futures = client.compute(tasks)
        try:
            for _, result in as_completed(futures, raise_errors=True, with_results=True):
                done(result)
        finally:
            client.cancel(futures)
        return

    def after(key, result, dsk, state, worker_id) -> None:
        done(result)

    # Leaving the pool waits for tasks under way: after a failure none may write into a folder being removed.
    with ThreadPoolExecutor(workers or processors()) as pool, Callback(posttask=after):
        dask.compute(*tasks, scheduler="threads", pool=pool, optimize_graph=False)


def active_client():
    """The `dask.distributed.Client` the caller has made, or None."""
    if "distributed" not in sys.modules:  # nobody can have made one
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None


def processors() -> int:
    """Processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
