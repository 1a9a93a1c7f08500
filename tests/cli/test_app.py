"""What all commands share: text safe for terminals, signals, exit codes, what `--help` loads."""

import os
import signal
import subprocess
import sys
import time

import pytest

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


def test_usage_errors_end_with_2(run):
    for arguments in (["--nosuch"], ["--bbox", "1", "2"], ["puma", "--threads", "0"], ["puma", "--step", "x"]):
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert "Traceback" not in err and "Error" in err
