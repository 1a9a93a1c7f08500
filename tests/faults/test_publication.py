"""Publication under faults at every call that changes a name: the outputs are all old or all new, and never lost."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sdm.files.atomic import Staging
from sdm.files.workspace import REPORT, Workspace
from tests.faults.injection import Faults, count_calls, in_child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


@pytest.fixture(autouse=True, scope="module")
def no_waiting():
    """Waiting for the disk matters to power cuts alone, and takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


MAPS = ("a.tif", "a.qml", "a.zarr", "a.json")
OUTPUTS = ("maps", "a.tif", REPORT)
ASKED = {"resolution": 0.1}


def write(path, text):
    if path.name == REPORT:
        path.write_text(json.dumps({"configuration": ASKED | {"text": text}, "outputs": OUTPUTS}))
    elif "." in path.name and path.suffix != ".zarr":
        path.write_text(text)
    else:
        path.mkdir(exist_ok=True)
        (path / ".zgroup").write_text(text)


def read(path):
    return (path / ".zgroup" if path.is_dir() else path).read_text()


def publish_maps(folder, text, names=MAPS, overwrite=True):
    with Staging(folder, names, overwrite=overwrite) as staging:
        for name in names:
            write(staging.path(name), text)
        staging.publish()


def publish_batch(folder, text):
    with Workspace(folder, OUTPUTS, overwrite=True) as space:
        space.begin(ASKED | {"text": text}, {})
        for name in OUTPUTS:
            write(space.new / name, text)
        space.publish()


def content(folder):
    """{path: text} of all files."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def whole(folder, publish, text):
    """What `publish` leaves of a text in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    publish(folder, text)
    return content(folder)


KINDS = ["kill-before", "kill-after", "error", "full", "interrupt", "storm"]


@pytest.mark.parametrize("kind", ["kill-after", "error", "full", "storm"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "overwrite"])
@pytest.mark.parametrize("publish", [publish_maps, publish_batch])
def test_every_call(tmp_path, publish, first, kind):
    folder, pristine = tmp_path / "out", tmp_path / "before"
    old = {} if first else whole(pristine, publish, "old")
    pristine.mkdir(exist_ok=True)
    new = whole(folder, publish, "new")
    shutil.rmtree(folder)
    shutil.copytree(pristine, folder)
    calls = count_calls(lambda: publish(folder, "new"))
    assert content(folder) == new
    ends = set()
    for n in range(calls):
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)
        code, says_published = in_child(lambda: publish(folder, "new"), Faults(kind, n))
        at_once = {k: v for k, v in content(folder).items() if not k.startswith((".", "batch.partial"))}
        if kind in ("error", "storm"):  # nothing is left to the next run
            assert at_once in (old, new), (n, code)
            assert says_published == (at_once == new), (n, code)
        if code == 0:
            assert at_once == new, n
        publish_maps(folder, "x", ["other.json"])
        if publish is publish_batch:
            with Workspace(folder, OUTPUTS, overwrite=True) as space:
                space.begin(ASKED | {"text": "new"}, {})
        left = content(folder)
        assert left.pop("other.json") == "x"
        left = {k: v for k, v in left.items() if not k.startswith("batch.partial")}
        assert left in (old, new), (n, code)
        assert not list(folder.glob(".*")), (n, code)
        ends.add(left == new)
    assert ends == {True, False} or (publish is publish_batch and ends == {True})


class Publications(RuleBasedStateMachine):
    """Runs of any outputs, disturbed anywhere, one after another in one folder."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.expected = [{}]
        """The states in which the folder may be, as {output: text}."""
        self.pending = False

    @initialize()
    def begin(self):
        self.number = 0

    def _work(self, names, overwrite):
        self.number += 1
        text = str(self.number)
        return text, lambda: publish_maps(self.folder, text, names, overwrite)

    @rule(
        names=st.lists(st.sampled_from(MAPS), min_size=1, unique=True),
        kind=st.sampled_from(KINDS),
        n=st.integers(0, 60),
        overwrite=st.booleans(),
    )
    def disturbed(self, names, kind, n, overwrite):
        text, work = self._work(names, overwrite)
        code, says_published = in_child(work, Faults(kind, n))
        after = [state | dict.fromkeys(names, text) for state in self.expected]
        killed = kind in ("kill-before", "kill-after", "full")
        if says_published and code != -9:
            self.expected = after
        elif killed:  # before it did anything, after the earlier run's files are in order, or after its own are
            self.expected = self.expected + after
        self.pending = killed

    @rule(names=st.lists(st.sampled_from(MAPS), min_size=1, unique=True))
    def undisturbed(self, names):
        text, work = self._work(names, True)
        work()
        self.expected = [state | dict.fromkeys(names, text) for state in self.expected]
        self.pending = False

    @rule()
    def cleared(self):
        publish_maps(self.folder, "", ["other.json"])
        self.pending = False

    @invariant()
    def whole(self):
        if self.pending:
            return
        found = {path.name: read(path) for path in map(self.folder.joinpath, MAPS) if path.exists()}
        assert found in self.expected
        assert not list(self.folder.glob(".*"))
        self.expected = [found]

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)


TestPublications = Publications.TestCase
TestPublications.settings = settings(
    max_examples=15, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)
