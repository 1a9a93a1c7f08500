import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sdm.errors import OutputError
from sdm.files.atomic import PREFIX, Staging, check_targets, disk_errors
from sdm.files.locks import Lock

NAMES = ("map.tif", "map.zarr", "map.json")


def fill(staging, text="new"):
    staging.path("map.tif").write_text(text)
    (staging.path("map.zarr") / "probability").mkdir(parents=True)
    (staging.path("map.zarr") / ".zgroup").write_text("{}")
    (staging.path("map.zarr") / "probability" / "0.0").write_text(text)
    staging.path("map.json").write_text(text)


def make(folder, text="new", overwrite=False):
    with Staging(folder, NAMES, overwrite=overwrite) as staging:
        fill(staging, text)
        return staging.publish()


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_publishes_everything_and_leaves_nothing_else(tmp_path):
    folder = tmp_path / "deep" / "folder"
    paths = make(folder)
    assert paths == [folder / name for name in NAMES]
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)


def test_nothing_appears_before_publish_nor_without_it(tmp_path):
    with Staging(tmp_path, NAMES) as staging:
        fill(staging)
        assert [path.name.startswith(PREFIX) for path in tmp_path.iterdir()] == [True]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_cleans_up_and_keeps_old(tmp_path, error):
    make(tmp_path, "old")
    before = content(tmp_path)
    with pytest.raises(error), Staging(tmp_path, NAMES, overwrite=True) as staging:
        fill(staging)
        raise error
    assert content(tmp_path) == before


def test_missing_output_publishes_nothing(tmp_path):
    make(tmp_path, "old")
    before = content(tmp_path)
    with pytest.raises(OutputError, match=r"map\.json"), Staging(tmp_path, NAMES, overwrite=True) as staging:
        fill(staging)
        staging.path("map.json").unlink()
        staging.publish()
    assert content(tmp_path) == before


def test_existing_output_is_refused_and_named(tmp_path):
    make(tmp_path)
    with pytest.raises(OutputError, match=r"map\.tif.*--overwrite"):
        check_targets(tmp_path, NAMES)
    with pytest.raises(OutputError, match="--overwrite"), Staging(tmp_path, NAMES):
        pass
    make(tmp_path, "newer", overwrite=True)
    assert set(content(tmp_path).values()) == {"newer", "{}"}


def test_target_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(OutputError, match="exists already"), Staging(tmp_path, NAMES) as staging:
        fill(staging)
        (tmp_path / "map.json").write_text("someone else's")
        staging.publish()
    assert content(tmp_path) == {"map.json": "someone else's"}


@pytest.mark.parametrize("fails_at", range(6))
def test_failed_rename_rolls_back(tmp_path, monkeypatch, fails_at):
    make(tmp_path, "old")
    before = content(tmp_path)
    rename, calls = Path.rename, []

    def flaky(path, target):
        calls.append(path)
        if len(calls) == fails_at + 1:
            raise OSError(errno.EIO, "broken")
        return rename(path, target)

    with pytest.raises(OutputError, match="broken"), Staging(tmp_path, NAMES, overwrite=True) as staging:
        fill(staging)
        monkeypatch.setattr(Path, "rename", flaky)
        staging.publish()
    assert content(tmp_path) == before


def test_stale_companions_of_a_replaced_tif_go(tmp_path):
    make(tmp_path, "old")
    (tmp_path / "map.tif.aux.xml").write_text("statistics of the old map")
    make(tmp_path, overwrite=True)
    assert not (tmp_path / "map.tif.aux.xml").exists()


def test_odd_targets_are_refused_even_with_overwrite(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        check_targets(tmp_path / "file" / "deeper", NAMES, overwrite=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="leads nowhere"):
        check_targets(tmp_path / "dangling", NAMES, overwrite=True)
    cases = {
        "link.tif": lambda path: path.symlink_to(tmp_path / "file"),
        "folder.tif": lambda path: path.mkdir(),
        "file.zarr": lambda path: path.write_text(""),
        "photos.zarr": lambda path: (path.mkdir(), (path / "photo.jpg").write_text("")),
    }
    for name, prepare in cases.items():
        prepare(tmp_path / name)
        with pytest.raises(OutputError, match=name):
            check_targets(tmp_path, [name], overwrite=True)
    for name in ("", "..", "a/b.tif", "a\0b", "x" * 300):
        with pytest.raises(OutputError):
            check_targets(tmp_path, [name], overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission"):
        check_targets(tmp_path / "new", NAMES)


SCRIPT = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from sdm.outputs import zarr_store
    from sdm.files.atomic import Staging
    from sdm.outputs.metadata import MapMetadata
    grid = GeoBox((64, 64), Affine(1, 0, 0, 0, -1, 64), "EPSG:4326")
    with Staging(Path(sys.argv[1]), ["map.tif", "map.zarr", "map.json"], overwrite=True) as staging:
        staging.path("map.tif").write_text("half")
        zarr_store.create(staging.path("map.zarr"), grid, (32, 32), MapMetadata("t", "q"))
        print("ready", flush=True)
        time.sleep(60)
""")


def start(folder):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_terminated_run_leaves_nothing(tmp_path, number):
    make(tmp_path, "old")
    before = content(tmp_path)
    process = start(tmp_path)
    process.send_signal(number)
    code = process.wait(20)
    process.stdout.close()
    assert code == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert content(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_killed_run_leaves_no_output_and_the_next_cleans_up(tmp_path):
    process = start(tmp_path)
    process.kill()
    process.wait(20)
    process.stdout.close()
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.startswith(PREFIX)
    make(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_running_neighbour_is_left_alone(tmp_path):
    process = start(tmp_path)
    with Staging(tmp_path, ["other.json"]) as staging:
        staging.path("other.json").write_text("{}")
        staging.publish()
    left = sorted(path.name for path in tmp_path.iterdir())
    process.kill()
    process.wait(20)
    process.stdout.close()
    assert len(left) == 2 and left[0].startswith(PREFIX)


def test_someone_elses_sigterm_handler_stays(tmp_path):
    def theirs(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with Staging(tmp_path, NAMES):
            assert signal.getsignal(signal.SIGTERM) is theirs
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


def test_staging_that_nobody_holds_goes_at_once(tmp_path):
    (tmp_path / f"{PREFIX}begun").mkdir()
    (tmp_path / f"{PREFIX}half-removed" / "new").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    check_targets(tmp_path, ["a.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{PREFIX}link", "elsewhere"]


def test_staging_without_locks_goes_when_old(tmp_path, monkeypatch):
    monkeypatch.setattr(Lock, "held", False)
    root = tmp_path / f"{PREFIX}begun"
    root.mkdir()
    check_targets(tmp_path, ["a.json"])
    assert root.exists()
    os.utime(root, (time.time() - 1e5,) * 2)
    check_targets(tmp_path, ["a.json"])
    assert not root.exists()


@pytest.mark.parametrize("names", [["../../precious"], ["/precious"], [".."], [5], "precious", None])
def test_a_journal_of_paths_is_refused(tmp_path, names):
    (tmp_path / "precious").write_text("mine")
    folder = tmp_path / "out"
    root = folder / f"{PREFIX}dead"
    (root / "old").mkdir(parents=True)
    (root / "publish.json").write_text(json.dumps({"names": [], "stale": names}))
    with pytest.raises(OutputError, match=r"publish\.json cannot be read .*; remove .* yourself\."):
        check_targets(folder, ["a.json"])
    assert (tmp_path / "precious").read_text() == "mine" and root.exists()


def test_disk_errors_are_plain_sentences(tmp_path):
    with pytest.raises(OutputError, match="No space left"), disk_errors(tmp_path / "a.tif"):
        raise OSError(errno.ENOSPC, "no")
    with (
        pytest.raises(OutputError, match=r"a\.tif could not be written: .*denied"),
        disk_errors(tmp_path / "a.tif"),
    ):
        raise PermissionError(errno.EACCES, "denied")
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path / "a.tif"):
        raise ZeroDivisionError


def tiny_disk(folder):
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    return made.returncode == 0


FULL = textwrap.dedent("""
    import sys, resource, signal
    from pathlib import Path
    import numpy as np
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from sdm.errors import OutputError
    from sdm.outputs import cog, sidecar, zarr_store
    from sdm.files.atomic import Staging
    from sdm.outputs.metadata import MapMetadata
    folder, what, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if limit:  # a limit on file size stands in for a disk where none can be mounted
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    grid = GeoBox((1024, 1024), Affine(0.01, 0, 0, 0, -0.01, 64), "EPSG:4326")
    values = np.random.default_rng(0).random(grid.shape, dtype="f4")
    try:
        with Staging(folder, ["map"]) as staging:
            path = staging.path("map")
            if what == "cog":
                cog.write_cog(path, values, grid, MapMetadata("t", "q"))
            elif what == "zarr":
                zarr_store.create(path, grid, (1024, 1024), MapMetadata("t", "q"))
                zarr_store.write_tile(path, slice(0, 1024), slice(0, 1024), values)
            else:
                sidecar.write_json(path, {"text": "x" * 5_000_000})
            staging.publish()
    except OutputError as error:
        print(error)
        sys.exit(6)
""")


@pytest.mark.parametrize("what", ["cog", "zarr", "json"])
@pytest.mark.parametrize("how", ["tmpfs", "rlimit"])
def test_full_disk(tmp_path, what, how):
    if how == "tmpfs" and not tiny_disk(tmp_path):
        pytest.skip("cannot mount a tmpfs here")
    try:
        limit = "0" if how == "tmpfs" else "2000000"
        run = subprocess.run(
            [sys.executable, "-c", FULL, str(tmp_path), what, limit],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 6, run.stdout + run.stderr
        assert "No space left" in run.stdout or (how == "rlimit" and "could not be written" in run.stdout)
        assert list(tmp_path.iterdir()) == []
    finally:
        if how == "tmpfs":
            subprocess.run(["umount", str(tmp_path)], capture_output=True)
