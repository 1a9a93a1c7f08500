"""Where tasks run: threads, worker processes, clusters that answer, do not answer, and lose their workers."""

import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_info

import sdm
from sdm.engine import cluster, places
from sdm.engine import tasks as schedule
from sdm.engine.cluster import ClusterWarning, active_client, local_cluster, open_client
from sdm.engine.encode import one_thread
from sdm.engine.places import Target
from sdm.engine.suitability import Probability
from sdm.engine.tasks import run_tasks
from sdm.errors import ClusterError, RequestError
from sdm.maps import write
from sdm.models.bundled import BundledModel
from sdm.models.device import local_device
from sdm.request import Execution
from sdm.request.choices import parse_device

# Workers need not be able to import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
BOX = (-112, 38, -108, 41)


def job(**options):
    return sdm.plan("Puma concolor", **{"bbox": BOX, "resolution": 0.1, "tile_size": 16, **options})


def chunks(store):
    """Relative path -> bytes of every file of a Zarr store."""
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The store of `job()` computed on threads of this process."""
    folder = tmp_path_factory.mktemp("expected")
    sdm.write_maps(job(), folder, formats="zarr", threads=2)
    return chunks(folder / "puma-concolor.zarr")


def written(folder):
    found = chunks(folder / "puma-concolor.zarr")
    # The attributes hold the command and nothing else that may differ.
    assert {p.name for p in folder.iterdir()} == {"puma-concolor.zarr", "puma-concolor.json"}
    return found


# Threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3, None])
def test_threads_do_every_item_once_and_no_more_at_once_than_asked(threads):
    lock, now, most, results = threading.Lock(), itertools.count(), [], []
    running = set()

    def task(item, offset):
        with lock:
            me = next(now)
            running.add(me)
            most.append(len(running))
        time.sleep(0.002)
        with lock:
            running.discard(me)
        return item + offset

    run_tasks(task, range(50), (100,), execution=Execution(threads=threads), done=results.append)
    assert sorted(results) == list(range(100, 150))
    assert max(most) <= (threads or cluster.processors())


def test_shared_arguments_are_not_looked_into_by_dask():
    class Untouchable:
        def __dask_graph__(self):
            raise AssertionError("Dask took an argument for a collection")

    seen = []
    one = Execution(threads=1)
    run_tasks(lambda item, shared: seen.append(type(shared).__name__), [1, 2], (Untouchable(),), execution=one)
    assert seen == ["Untouchable"] * 2


# What is asked for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 0}, ["threads 0", "1..1024"]),
        ({"workers": 5000}, ["workers 5000", "1..1024"]),
        ({"workers": 1.5}, ["workers 1.5", "whole number"]),
        ({"threads": True}, ["threads True", "whole number"]),
        ({"workers": 1024}, ["workers 1024", "GB of memory each", "at most"]),
        ({"workers": 2, "scheduler_address": "tcp://127.0.0.1:1"}, ["omit workers"]),
        ({"threads": 2, "scheduler_address": "tcp://127.0.0.1:1"}, ["omit workers and threads"]),
        ({"scheduler_address": "http://127.0.0.1:8787"}, ["'http://127.0.0.1:8787'", "tcp://HOST:PORT"]),
        ({"scheduler_address": "somewhere"}, ["'somewhere'", "scheduler file"]),
        ({"scheduler_address": "none.json"}, ["none.json", "does not exist", "--scheduler-file"]),
    ],
)
def test_nonsense_is_refused_before_anything_starts(options, words, tmp_path, monkeypatch):
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 24 << 30)
    with pytest.raises(RequestError) as error:
        sdm.write_maps(job(resolution=0.5), tmp_path / "maps", **options)
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"address": 5}', '{"address": "file:///etc/passwd"}', "[" * 9999])
def test_a_scheduler_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "scheduler.json"
    path.write_text(content)
    with pytest.raises(RequestError), open_client(Execution(scheduler_address=path)):
        pass


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_nothing_answers_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, answers, capfd):
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:
            listener.listen()  # accepts, and never says a word
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(ClusterError) as error:
            sdm.write_maps(job(resolution=0.5), tmp_path / "maps", scheduler_address=address)
    assert time.monotonic() - start < 15
    assert address in str(error.value) and "no Dask scheduler answers" in str(error.value)
    assert error.value.exit_code == 8
    assert not (tmp_path / "maps").exists()
    assert active_client() is None
    assert "Traceback" not in capfd.readouterr().err


def test_tls_without_certificates_is_one_sentence():
    with (
        pytest.raises(ClusterError, match=r"tls://127.0.0.1:1.*certificates"),
        open_client(Execution(scheduler_address="tls://127.0.0.1:1")),
    ):
        pass


def test_versions_that_differ_are_told_in_one_warning():
    own = {"python": "3.11.7.final.0", **dict.fromkeys(cluster.SHARED_SOFTWARE, "1.0")}

    class Fake:
        def __init__(self, package=sdm.__version__, **changed):
            self.worker, self.package = {**own, **changed}, package

        def run(self, function, on_error):
            return {"tcp://w:1": function(), "tcp://w:2": self.package}

        def get_versions(self, packages):
            assert set(packages) == set(cluster.SHARED_SOFTWARE)
            nodes = {"tcp://w:1": {"packages": own}, "tcp://w:2": {"packages": self.worker}}
            return {"client": {"packages": own}, "scheduler": {"packages": own}, "workers": nodes}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cluster._check_software(Fake())
        cluster._check_software(Fake(python="3.11.9.final.0"))  # the same language
    with pytest.warns(ClusterWarning) as told:
        cluster._check_software(Fake(torch="2.0", zarr=None, python="3.12.1.final.0"))
    (warning,) = told
    text = str(warning.message)
    assert "torch 1.0 here, 2.0 on tcp://w:2" in text and "zarr 1.0 here, none on" in text and "3.12" in text
    assert "numpy" not in text
    for package, words in ((ModuleNotFoundError("sdm"), "has none of"), ("0.0.9", "has version 0.0.9 of")):
        with pytest.raises(ClusterError, match=f"worker tcp://w:2 {words} taxabind-map; install version"):
            cluster._check_software(Fake(package))


# The device is the worker's matter ----------------------------------------------------------------


def test_a_device_is_resolved_where_the_task_runs(monkeypatch):
    assert [parse_device(d) for d in ("auto", "cpu", "cuda", "cuda:3")] == ["auto", "cpu", "cuda", "cuda:3"]
    planned = job(device="auto").plan
    assert planned.device == "auto"
    assert planned.here == local_device("auto")
    assert pickle.loads(pickle.dumps(planned)).device == "auto"
    monkeypatch.setattr(places, "local_device", lambda device: f"{device} of the worker")
    assert planned.here == "auto of the worker"


def test_a_device_no_worker_has_is_refused_where_it_is_missing(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    planned = job(device="cuda")  # a cluster may have one
    assert planned.estimate()["device"] == "cuda"
    with pytest.raises(RequestError, match="has no CUDA"):
        sdm.write_maps(planned, tmp_path / "maps")
    with pytest.raises(RequestError, match="has no CUDA"):
        sdm.map_species("Puma concolor", bbox=BOX, resolution=0.5, device="cuda")
    assert not (tmp_path / "maps").exists()


def test_visible_gpus_are_those_of_this_process(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cluster.visible_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8f2a")
    assert cluster.visible_gpus() == ("5", "GPU-8f2a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cluster.visible_gpus() == ()


def test_a_worker_finds_the_bundled_model_in_its_own_folder(tmp_path):
    bundled = sdm.list_models()[0]
    elsewhere = replace(bundled, folder=tmp_path / bundled.folder.name)
    assert elsewhere.load().text is not None
    with pytest.raises(sdm.errors.ModelError, match=r"hash 0{16}"):
        replace(elsewhere, digest="0" * 16).load()


def test_paths_of_layers_do_not_depend_on_the_working_folder(write_raster, monkeypatch, tmp_path):
    path = write_raster(np.zeros((3, 90, 180), np.uint8), "rgb.tif", cell=2.0)
    monkeypatch.chdir(tmp_path)
    planned = job(satellite="rgb.tif")
    assert planned.plan.sampling.satellite == str(path)
    assert planned.request["satellite"] == "rgb.tif"


# A cluster of the user's --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running():
    """A cluster that is there before us: two worker processes and a scheduler in this process."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=None, worker_dashboard_address=None, silence_logs=50
    ) as found:
        yield found


@pytest.fixture
def scheduler(running):
    """Its scheduler; checks that nothing of ours stays: no client, no task."""
    before = set(running.scheduler.clients)
    yield running.scheduler
    deadline = time.monotonic() + 10
    while (set(running.scheduler.clients) != before or running.scheduler.tasks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(running.scheduler.clients) == before
    assert not running.scheduler.tasks
    assert running.status.name == "running"
    assert len(running.scheduler.workers) == 2


def count_loads(path):
    """Run on a worker: note in a file each time this process reads the weights of a model."""
    import sdm.models.encoders.bundled

    read = sdm.models.encoders.bundled.load_weights

    def counted(*given):
        with Path(path).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return read(*given)

    sdm.models.encoders.bundled.load_weights = counted
    return os.getpid()


@pytest.mark.slow
def test_a_cluster_by_address_gives_the_same_bytes_with_one_model_a_process(tmp_path, scheduler, expected, monkeypatch):
    from distributed import Client

    with Client(scheduler.address, set_as_default=False) as client:
        pids = set(client.run(count_loads, str(tmp_path / "loads")).values())

    def never(*args):
        raise AssertionError("computed, or decided about the device, in this process")

    planned = job(device="auto")
    monkeypatch.setattr(write, "map_tile", never)
    monkeypatch.setattr(write, "local_device", never)
    monkeypatch.chdir(tmp_path)  # the workers have another working folder
    steps = []
    (result,) = sdm.write_maps(
        planned, "maps", formats="zarr", scheduler_address=scheduler.address, progress=lambda *s: steps.append(s)
    )
    assert written(tmp_path / "maps") == expected
    assert [s for s in steps if s[0] == "tiles"] == [("tiles", n, 6) for n in range(7)]
    assert result.report["device"] == "cpu"
    loads = [int(line) for line in (tmp_path / "loads").read_text().split()]
    assert set(loads) <= pids and len(loads) == len(set(loads)), "weights read twice in one process"
    assert active_client() is None

    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"type": "Scheduler", "address": scheduler.address}))
    with open_client(Execution(scheduler_address=file)) as found:
        assert found.scheduler.address == scheduler.address


class Noted:
    """Notes in a file each time it is unpickled, and counts here how often it is pickled."""

    pickled = 0

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        type(self).pickled += 1
        return _note, (self.path,)


def _note(path):
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return path


def _sleep_a_little(item, *shared):
    time.sleep(0.01)
    return item


@pytest.mark.slow
def test_what_tasks_share_travels_once_and_a_task_is_small(tmp_path, scheduler, monkeypatch):
    model = (
        BundledModel.open("mammals-trees") if "mammals-trees" in map(str, sdm.list_models()) else sdm.list_models()[0]
    )
    vectors = np.random.default_rng(1).normal(size=(1000, model.dim)).astype(np.float32)
    planned = job(model=model.name).plan
    planned = replace(planned, targets=tuple(Target(v, Probability(9.0, -3.0)) for v in vectors))
    assert len(pickle.dumps(planned)) > vectors.nbytes
    monkeypatch.setattr(schedule, "IN_FLIGHT", 40)
    sizes, most, results = {}, [], []

    def done(result):
        results.append(result)
        tasks = {k: t for k, t in list(scheduler.tasks.items()) if isinstance(k, tuple)}
        most.append(len(scheduler.tasks))
        sizes.update({k: len(pickle.dumps(t.run_spec)) for k, t in tasks.items() if t.run_spec and k not in sizes})

    Noted.pickled = 0
    run_tasks(
        _sleep_a_little,
        range(300),
        (planned, Noted(str(tmp_path / "notes"))),
        execution=Execution(scheduler_address=scheduler.address),
        done=done,
    )
    assert sorted(results) == list(range(300))
    assert Noted.pickled == 1
    unpickled = (tmp_path / "notes").read_text().split()
    assert 1 <= len(unpickled) == len(set(unpickled)) <= 2
    assert len(sizes) > 100 and max(sizes.values()) < 1000  # bytes
    assert max(most) <= 2 * 40  # those in flight, and a few that are done and about to be forgotten


def _fails(item, path):
    time.sleep(0.05)
    if item == 7:
        raise sdm.errors.LayerError("no such place")
    time.sleep(0.3)
    with Path(path).open("a") as file:
        file.write("x")


@pytest.mark.slow
def test_after_a_failure_no_task_runs_on_the_cluster(tmp_path, scheduler):
    path = tmp_path / "done"
    with pytest.raises(sdm.errors.LayerError, match="no such place"):
        run_tasks(_fails, range(500), (str(path),), execution=Execution(scheduler_address=scheduler.address))
    count = path.stat().st_size
    time.sleep(1.0)
    assert path.stat().st_size == count < 100


@pytest.mark.slow
def test_a_worker_that_cannot_do_the_work_says_why(tmp_path, scheduler, monkeypatch):
    monkeypatch.setattr(schedule, "__version__", "0.0.9")  # as a worker finds that joins later
    with pytest.raises(ClusterError, match=r"taxabind-map .* and the client 0\.0\.9; install"):
        run_tasks(_sleep_a_little, range(5), execution=Execution(scheduler_address=scheduler.address))
    monkeypatch.undo()

    # A folder of this machine alone: to a worker elsewhere, a path that does not exist.
    seen = schedule._marker

    def unshared(folder, run):
        with seen(folder, run) as path:
            Path(path).unlink()
        return seen(None, run) if folder is None else _Given(path)

    monkeypatch.setattr(schedule, "_marker", unshared)
    with pytest.raises(ClusterError, match=r"does not see the output folder .*file system that all machines share"):
        sdm.write_maps(job(), tmp_path / "maps", scheduler_address=scheduler.address)
    assert list((tmp_path / "maps").iterdir()) == []
    monkeypatch.undo()

    if not local_device("auto").startswith("cuda"):
        with pytest.raises(RequestError, match=f"{socket.gethostname()} or its torch build has no CUDA"):
            sdm.write_maps(job(device="cuda"), tmp_path / "maps", scheduler_address=scheduler.address)
        assert list((tmp_path / "maps").iterdir()) == []


class _Given:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *exc):
        pass


@pytest.mark.slow
def test_an_active_client_is_used_unless_threads_are_asked_for(running, scheduler):
    from distributed import Client

    with Client(running) as client:
        assert active_client() is client
        pids = set(client.run(os.getpid).values())
        found = []
        run_tasks(_pid, range(8), done=found.append)
        assert set(found) <= pids
        found.clear()
        run_tasks(_pid, range(8), execution=Execution(threads=2), done=found.append)
        assert set(found) == {os.getpid()}
        # A task on the cluster does not wait for other tasks of it: it would wait for its own thread.
        assert client.submit(lambda: active_client() is None).result(timeout=20)
        lazy = sdm.map_species("Puma concolor", bbox=BOX, resolution=0.1, tile_size=16)
        assert np.nanmax(lazy.values) > 0.5
        assert client.status == "running"


def _pid(item):
    return os.getpid()


@pytest.mark.slow
def test_a_lost_scheduler_is_one_sentence(tmp_path, capfd):
    code = (
        "from distributed import LocalCluster; import sys, time\n"
        "if __name__ == '__main__':\n"
        "    c = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None,\n"
        "                     worker_dashboard_address=None, protocol='tcp://', silence_logs=50)\n"
        "    print(c.scheduler_address, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip()
        with pytest.raises(ClusterError, match=r"connection to the Dask scheduler .* was lost"):
            where = Execution(scheduler_address=address)
            run_tasks(_sleep_a_little, range(3000), execution=where, done=lambda result: process.kill())
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_cluster_that_lost_its_workers_is_given_up(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(schedule, "WARN_S", 0.5)
    quiet = {"protocol": "tcp://", "silence_logs": 50, "dashboard_address": None, "worker_dashboard_address": None}
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **quiet) as cluster:
        where = Execution(scheduler_address=cluster.scheduler_address, worker_wait=3.0)
        with (
            pytest.warns(ClusterWarning, match="no worker; waiting 3 s"),
            pytest.raises(ClusterError, match=r"has had no worker for 3 s; .*--worker-wait"),
        ):
            run_tasks(_sleep_a_little, range(3000), execution=where, done=lambda result: cluster.scale(0))


# Worker processes of this machine -----------------------------------------------------------------


def descendants():
    return {p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())}


def numerical():
    """What the environment says to numerical libraries."""
    return {k: v for k, v in os.environ.items() if "THREADS" in k or "MALLOC" in k}


def listening():
    """Addresses that this process and the workers below it listen on."""
    processes = {psutil.Process(), *descendants()}
    return {c.laddr for p in processes for c in p.net_connections() if c.status == "LISTEN"}


def _meet(item):
    """Two tasks of one process must be here at the same time."""
    import threading

    import sdm

    barrier = sdm.__dict__.setdefault("_test_barrier", threading.Barrier(2))
    barrier.wait(20)
    return os.getpid()


def _inside(dask_worker):
    import torch

    return {
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "resources": dask_worker.state.total_resources,
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "torch": torch.get_num_threads(),
        "memory": dask_worker.memory_manager.memory_limit,
        "ignores": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "threads": dask_worker.state.nthreads,
        "folder": dask_worker.local_directory,
    }


@pytest.mark.slow
def test_local_workers_are_pinned_overlap_and_are_closed_to_others():
    from distributed import Client
    from distributed.system import MEMORY_LIMIT

    before, doors, environment = descendants(), listening(), numerical()
    with local_cluster(gpus=("3", "GPU-8f2a")) as client:
        assert numerical() == environment
        inside = list(client.run(_inside).values())
        assert {w["gpu"] for w in inside} == {"3", "GPU-8f2a"}
        assert all(w["resources"] == {"GPU": 1} and w["threads"] == 2 for w in inside)
        assert all(w["omp"] == "1" and w["torch"] == 1 and w["ignores"] for w in inside)
        assert all(w["memory"] == MEMORY_LIMIT // 2 for w in inside)
        # One tile reads while another computes.
        found = []
        run_tasks(_meet, range(4), client=client, done=found.append)
        assert len(found) == 4 and len(set(found)) == 2
        # No door is open: loopback only, no page, and no way in without the certificate.
        open_ = listening() - doors
        assert open_ and {address.ip for address in open_} == {"127.0.0.1"}
        port = client.scheduler.address.rpartition(":")[2]
        with pytest.raises(OSError):
            Client(f"tcp://127.0.0.1:{port}", timeout=2, set_as_default=False)
        assert active_client() is None
    assert descendants() == before
    assert not any(Path(w["folder"]).exists() for w in inside)
    assert numerical() == environment


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_no_byte(tmp_path, expected):
    killed = []
    with local_cluster(2) as client:
        pids = set(client.run(os.getpid).values())

        def progress(stage, done, total):
            if stage == "tiles" and done == 1:
                killed.append(pids.pop())
                os.kill(killed[0], signal.SIGKILL)

        with client.as_current():
            sdm.write_maps(job(), tmp_path, formats="zarr", progress=progress)
    assert killed
    assert written(tmp_path) == expected


def _kills(tile):
    if tile.index == (1, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return tile.index


@pytest.mark.slow
def test_a_tile_that_always_kills_its_worker_is_named(tmp_path):
    import dask

    tiles = list(job().grid.tiles())
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        # On a slow machine the scheduler may give up another tile of the same worker first.
        pytest.raises(ClusterError, match=r"tile \(\d, \d\): (2 workers died|lost with the worker).*more memory"),
    ):
        run_tasks(_kills, tiles, execution=Execution(workers=1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_no_process_outlives_a_signal(tmp_path, name, code):
    """As a terminal does, Ctrl-C goes to the whole group; SIGTERM and SIGKILL to the program alone."""
    command = [sys.executable, "-m", "sdm", "Puma concolor", "--bbox", "-130", "-56", "-34", "60", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--resolution", "0.02", "--out", str(tmp_path / "o")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("o/.sdm-staging-*/new/*.zarr/*/[0-9]*.[0-9]*")) and time.monotonic() < deadline:
            time.sleep(0.05)  # until the first tiles are on disk
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        if name == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code
    if name != "SIGKILL":
        assert "error: interrupted; no output was written." in err.splitlines()
        assert "Traceback" not in err
        assert list((tmp_path / "o").iterdir()) == []
        assert not list(tmp_path.glob("taxabind-map-*"))


def test_linear_algebra_keeps_to_one_thread_on_every_thread():
    """threadpoolctl lets only one thread at a time change the number of threads, and ignores the others."""

    def counts() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if "numpy" in one["filepath"]]

    def inside() -> list[int]:
        with one_thread():
            return counts()

    np.eye(2) @ np.eye(2)
    before = counts()
    alone = [1] * len(before)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        assert inside() == alone
        assert first.submit(inside).result() == alone
        assert second.submit(inside).result() == alone
    assert counts() == before
