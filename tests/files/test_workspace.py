"""Runs that can be interrupted at any moment: locks, what is continued, what is refused, publication."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sdm.errors import OutputError
from sdm.files import workspace
from sdm.files.locks import Lock, LockedError
from sdm.files.records import record_path, write_record
from sdm.files.workspace import REPORT, Kind, Workspace, differences

NAMES = ("map.tif", "maps", REPORT)
ASKED = {"model": "m 1", "resolution": 0.1, "month": None}


def fill(space, text="new", asked=ASKED, names=NAMES):
    """Write every output into the folder of what is unfinished."""
    for name in names:
        if name == REPORT:
            (space.new / name).write_text(json.dumps({"configuration": asked, "outputs": names}))
        elif "." in name:
            (space.new / name).write_text(text)
        else:
            (space.new / name).mkdir(exist_ok=True)
            (space.new / name / "a.png").write_text(text)


def finish(folder, text="new", asked=ASKED, names=NAMES, overwrite=False):
    with Workspace(folder, names, overwrite=overwrite) as space:
        notes = space.begin(asked, {"command": text})
        if notes is not None:
            fill(space, text, asked, names)
            space.publish()
        return notes


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# Locks -------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path):
    lock = Lock(tmp_path / "lock")
    assert lock.held
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "):
        Lock(tmp_path / "lock")
    lock.release()
    assert not lock.held and not list(tmp_path.iterdir())
    again = Lock(tmp_path / "lock")
    again.release()
    again.release()


HOLD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from sdm.files.locks import Lock
    lock = Lock(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
""")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_lock_dies_with_its_process(tmp_path):
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {process.pid} on "):
            Lock(path)
        with (
            pytest.raises(OutputError, match=rf"another run is writing to .*\(process {process.pid} on .*--out"),
            Workspace(tmp_path, NAMES, kind=Kind("x.partial", "lock", "run.json", workspace.read_report)),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        assert path.exists()
        lock = Lock(path)
        assert lock.held
        lock.release()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# What is continued, and what is refused ------------------------------------------------------------


def test_the_same_call_continues_and_keeps_its_first_notes(tmp_path):
    tiles = [(0, 0), (0, 1), (1, 0), (1, 1)]
    with Workspace(tmp_path, NAMES) as space:
        assert space.begin(ASKED, {"command": "first"}) == {"command": "first"}
        store = space.new / "store"
        store.mkdir()
        for k, tile in enumerate(tiles[:3]):
            (store / f"chunk{k}").write_bytes(b"12345")
            files = [(f"chunk{k}", 5, 0xCBF53A1C)]
            write_record(record_path(space.tiles, tile), space.tmp, files, {"pixels": np.array([k])})
        (space.tmp / "leftover").write_text("half")
    (store / "chunk0").write_bytes(b"12X45")
    (store / "chunk1").unlink()
    with Workspace(tmp_path, NAMES) as space:
        assert space.begin(ASKED, {"command": "second"}) == {"command": "first"}
        assert not list(space.tmp.iterdir())
        seen = []
        assert space.finished(tiles, store, seen.append) == {(1, 0)}
        assert seen == [1, 2, 3, 4]
        assert [path.name for path in space.tiles.iterdir()] == ["1.0.npz"]
        with pytest.raises(OutputError, match=r"Output map\.tif was not written; nothing is published"):
            space.publish()
        fill(space)
        space.publish()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_a_finished_run_is_left_alone_and_another_is_refused(tmp_path):
    assert finish(tmp_path) == {"command": "new"}
    before = content(tmp_path)
    assert finish(tmp_path, "again") is None
    with pytest.raises(OutputError, match=r"holds a finished run with resolution 0\.1, not 0\.2; .* to replace it"):
        finish(tmp_path, asked=ASKED | {"resolution": 0.2})
    assert content(tmp_path) == before
    assert finish(tmp_path, "newer", ASKED | {"resolution": 0.2}, overwrite=True) == {"command": "newer"}
    assert (tmp_path / "map.tif").read_text() == "newer"


def test_another_unfinished_run_is_refused_and_overwritten_on_request(tmp_path):
    with Workspace(tmp_path, NAMES) as space:
        space.begin(ASKED, {})
    other = {"model": "m 2", "resolution": 0.1}  # without a month, which is as None
    with pytest.raises(OutputError, match=r"partial holds an unfinished run with model m 1, not m 2; ask for the same"):
        finish(tmp_path, asked=other)
    finish(tmp_path, asked=other, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_a_finished_run_counts_although_another_was_begun_over_it(tmp_path):
    finish(tmp_path)
    with Workspace(tmp_path, NAMES, overwrite=True) as space:
        space.begin(ASKED, {})
    assert finish(tmp_path, "again") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_outputs_of_an_earlier_run_that_are_no_longer_wanted_go(tmp_path):
    finish(tmp_path, names=("map.tif", "maps", "page.html", REPORT))
    (tmp_path / "thesis.txt").write_text("mine")
    finish(tmp_path, "newer", ASKED | {"format": "tif"}, ("map.tif", REPORT), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.json", "map.tif", "thesis.txt"]


@pytest.mark.parametrize("request_text", ["", "{}", "[]", '{"configuration": 5, "notes": {}}'])
def test_a_damaged_request_is_one_sentence(tmp_path, request_text):
    (tmp_path / "batch.partial").mkdir()
    (tmp_path / "batch.partial" / "run.json").write_text(request_text)
    with pytest.raises(OutputError, match=r"run\.json cannot be read .*; remove .*batch\.partial\."):
        finish(tmp_path, overwrite=True)


def test_differences_name_both_values_of_three():
    before = {"a": 1, "b": "x", "c": [1, 2], "d": None, "e": 5}
    assert differences(before, dict(before)) == ""
    assert differences(before, {**before, "a": 2, "d": "y"}) == "a 1, not 2; d nothing, not y"
    assert differences(before, {}) == "a 1, not nothing; b x, not nothing; c [1, 2], not nothing; and 1 more"


def test_an_interrupted_run_says_what_it_keeps(tmp_path):
    def interrupted(tiles):
        with pytest.raises(KeyboardInterrupt) as stop, Workspace(tmp_path, NAMES) as space:
            space.begin(ASKED, {})
            for tile in tiles:
                write_record(record_path(space.tiles, tile), space.tmp, [], {})
            raise KeyboardInterrupt
        return getattr(stop.value, "__notes__", [])

    assert interrupted([]) == []
    assert interrupted([(0, 0)]) == [
        f"finished tiles are kept in {tmp_path / 'batch.partial'}; the same command resumes from them."
    ]
