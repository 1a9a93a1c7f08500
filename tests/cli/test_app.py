"""What all commands share: text safe for terminals, signals, exit codes, what `--help` loads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BEAR = ("Ursus arctos", "--bbox", "-150", "60", "-149", "61")


def test_hostile_name_does_not_reach_the_terminal(run):
    code, out, err = run("Ursus\x1b[31m arctos", *BEAR[1:])
    assert code == 3
    assert "\x1b" not in out + err


def test_python_m_sdm_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "sdm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("taxabind-map ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_with_its_code_and_leaves_no_output(tmp_path, name, code):
    command = [sys.executable, "-m", "sdm", "Puma concolor", "--bbox", "-130", "-56", "-34", "60"]
    process = subprocess.Popen(
        [*command, "--resolution", "0.02", "--out", str(tmp_path / "o")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("o/.sdm-staging-*/new/*.zarr/*/*.*")) and time.monotonic() < deadline:
        time.sleep(0.05)  # until the first tiles are on disk
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "interrupted" in err and "Traceback" not in err
    assert list((tmp_path / "o").iterdir()) == []


STRUCK = """
import builtins, os, signal, sys, time
number = getattr(signal, sys.argv.pop(1))
case = sys.argv.pop(1)
strike = lambda: os.kill(os.getpid(), number)
if case == "import":  # code that swallows whatever is raised while it is imported
    class Finder:
        def find_spec(self, name, path, target=None):
            if name == "numpy":
                sys.meta_path.remove(self)
                try:
                    strike()
                    time.sleep(0.01)
                except BaseException:
                    pass
    sys.meta_path.insert(0, Finder())
elif case == "destructor":
    import sdm.maps.plan
    class Swallows:
        def __del__(self):
            strike()
            time.sleep(0.01)
    real = sdm.maps.plan.open_grid
    def patched(*args):
        Swallows()
        return real(*args)
    sdm.maps.plan.open_grid = patched
from sdm.cli import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
@pytest.mark.parametrize("case", ["import", "destructor"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_is_never_swallowed(tmp_path, case, name, code):
    command = ["Ursus arctos", "--bbox", "-120", "40", "-118", "42", "--resolution", "1", "--out", str(tmp_path / "o")]
    done = subprocess.run(
        [sys.executable, "-c", STRUCK, name, case, *command], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (code, "error: interrupted; no output was written.\n")
    assert not (tmp_path / "o").exists()


LATE = """
import os, signal, sys, time
number = getattr(signal, sys.argv.pop(1))
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "sdm.cli.map":
            os.kill(os.getpid(), number)
            time.sleep(0.01)
sys.meta_path.insert(0, Finder())
import sdm.cli.interruption
sdm.cli.interruption.AGAIN_S = 1000.0
from sdm.cli import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_still_waits_at_the_end_is_not_lost(name, code):
    done = subprocess.run([sys.executable, "-c", LATE, name, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, "error: interrupted; no output was written.\n")


def test_a_program_minds_signals_before_it_imports_anything_large():
    code = "import sys; before = set(sys.modules); import sdm.cli; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "typing" not in done.stdout.split() and "threading" not in done.stdout.split()


ENTRIES = {"taxabind-map": "main", "sdm": "main_sdm"}


def program(name, *arguments, **variables):
    """Run a program by its entry point in a fresh interpreter."""
    code = f"import sys; sys.argv[0] = {name!r}; from sdm.cli import {ENTRIES[name]} as entry; entry()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


@pytest.mark.parametrize("name", ENTRIES)
def test_help_loads_nothing_but_what_prints_it(name):
    code = (
        f"import sys; sys.argv = [{name!r}, '--help']; from sdm.cli import {ENTRIES[name]} as entry\n"
        "try: entry()\nexcept SystemExit: print('LOADED', *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(out.partition("LOADED ")[2].split())
    # Typer prints help by rich, which brings the others.
    printing = {"typer", "rich", "pygments", "markdown_it", "mdurl", "attr", "annotated_doc", "shellingham", "click"}
    usual = {m.partition(".")[0] for m in site_modules()}
    assert loaded - set(sys.stdlib_module_names) - usual == (printing & loaded) | {"sdm"}


def site_modules():
    """What any interpreter of this environment loads when it starts."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("name", ENTRIES)
def test_the_shell_completes_options(name):
    words, variable = f"{name} models --" if name == "sdm" else f"{name} --sat", f"_{name.upper().replace('-', '_')}"
    done = program(
        name, **{f"{variable}_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    )
    assert done.returncode == 0, done.stderr
    expected = {"--help"} if name == "sdm" else {"--satellite", "--satellite-step"}
    assert expected <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nosuch"], ["there is no option --nosuch", "--help"]),
        (["--resoluton", "1"], ["did you mean --resolution?"]),
        (["-o", "x"], ["the output is --out"]),
        (["--bbox", "1", "2"], ["--bbox needs WEST SOUTH EAST NORTH"]),
        (["--bbox", "1,2,3"], ["'1,2,3' has 3 values", "give 4"]),
        (["--bbox", "5E", "44", "12", "48"], ["'5E' is not a number", "WEST SOUTH EAST NORTH"]),
        (["--resolution", "2km"], ["--resolution '2km' is not a number"]),
        (["--threads", "0"], ["--threads '0' is less than 1"]),
        (["--threads", "2000"], ["is more than 1024"]),
        (["--step", "x"], ["--step 'x' is not a whole number"]),
        (["--mask", "land", "--mask", "sea"], ["--mask is given 2 times"]),
        (["--out", "puma.tif", "--bbox", "1,2,3,4"], ["'puma.tif' is the name of a file", "'puma'"]),
    ],
)
def test_a_usage_error_is_one_sentence(run, arguments, words):
    code, out, err = run("puma", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Usage" not in err
    assert all(word in err for word in words), err


def test_usage_errors_of_groups_of_commands_are_sentences_too(run):
    from sdm import cli

    for arguments, words in ((["mapp"], "did you mean"), (["models", "show"], "MODEL is missing")):
        code, _, err = run(*arguments, entry=cli.main_sdm)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and words.lower() in err.lower(), err


@pytest.mark.parametrize(
    "box", [["--bbox=-125,31,-102,49"], ["--bbox", "-125,31,-102,49"], ["--bbox", "-125 31 -102 49"]]
)
def test_a_box_may_have_commas(run, box):
    code, out, _ = run("puma", *box, "--resolution", "1", "--dry-run", "--json")
    assert code == 0 and (json.loads(out)["columns"], json.loads(out)["rows"]) == (23, 18)


def test_names_without_quotes_are_told(run):
    code, _, err = run("Puma", "concolor", *BEAR[1:], "--dry-run")
    assert code == 2 and 'in quotes: "Puma concolor"' in err
    code, _, err = run("Puma", "concolr", *BEAR[1:], "--dry-run")
    assert code == 3 and 'needs quotes: "Puma concolr"' in err
    assert run("Puma", "coyote", *BEAR[1:], "--dry-run")[0] == 0


def test_libraries_are_silent():
    code = (
        "import logging, warnings\n"
        "from sdm.cli.app import program, run\n"
        "app = program()\n"
        "@app.command()\n"
        "def speak():\n"
        "    warnings.warn('numpy would say this')\n"
        "    logging.getLogger('rasterio').warning('and rasterio this')\n"
        "    raise ValueError('ours')\n"
        "run(app, 'x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: unexpected failure: ValueError: ours")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("taxabind-map",), ("sdm", "list"), ("sdm", "index", "build")])
def test_help_loses_no_word_on_a_narrow_terminal_without_colours(command):
    program = Path(sys.executable).with_name(command[0])
    narrow, wide = (
        subprocess.run(
            [program, *command[1:], "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": columns, "NO_COLOR": "1"},
        ).stdout
        for columns in ("40", "400")
    )
    assert "…" not in narrow and "\x1b" not in narrow
    assert max(map(len, narrow.splitlines())) <= 60
    said = " ".join(narrow.split())
    for sentence in ("longitude first", "crosses the antimeridian", "masked"):
        assert (sentence in said) == (sentence in " ".join(wide.split()))
    assert "antimeridian" in said
