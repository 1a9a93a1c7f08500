"""Whole programs at their limits: two at once in a folder, and files that must not grow."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.skipif(sys.platform == "win32", reason="limits of Unix"), pytest.mark.slow]

EAST, WEST = ["--bbox", "6", "44", "9", "47"], ["--bbox", "5", "44", "8", "47"]
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
from sdm.cli import main
sys.argv[0] = "taxabind-map"
sys.exit(main())
"""


def bear(out, box, program=("-m", "sdm")):
    options = ["--resolution", "0.25", "--modalities", "location", "--overwrite", "-q", "--out", str(out)]
    command = [sys.executable, *program, "Ursus arctos", *box, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def verified(out):
    code = "import sys; from sdm.cli import main_sdm; sys.exit(main_sdm())"
    program = [sys.executable, "-c", code, "verify", str(out)]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_two_runs_at_once_leave_the_files_of_one(tmp_path):
    out = tmp_path / "maps"
    runs = [bear(out, box) for box in (EAST, WEST)]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    result = verified(out)
    assert result.returncode == 0, result.stdout
    assert {path.name.partition(".")[0] for path in out.iterdir()} == {"ursus-arctos"}


def test_files_that_must_not_grow_leave_the_old_ones(tmp_path):
    out = tmp_path / "maps"
    run = bear(out, EAST)
    assert run.communicate(timeout=120) and run.returncode == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run = bear(out, WEST, ("-c", LIMITED))
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 6 and "ursus-arctos" in said, (run.returncode, said)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert verified(out).returncode == 0
