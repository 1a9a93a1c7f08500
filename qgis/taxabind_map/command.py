"""Runs the programs taxabind-map and sdm as processes of their own: their progress, messages, results and errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import QgsProcessingException

SETTING = "TAXABIND_MAP_PROGRAM"
PROGRAMS = {"taxabind-map", "sdm"}
WINDOWS = sys.platform == "win32"
STAGES = {"checking": (0, 2), "tiles": (2, 90), "pictures": (90, 95), "writing": (95, 100)}
"""Per cent of the progress bar at which each stage of a run begins and ends."""
PATIENCE = 15
"""Seconds that a cancelled run has to clean up after itself."""


def program(name):
    """The path of one of our programs: `sdm` lies beside `taxabind-map`. Raises QgsProcessingException."""
    given = (ProcessingConfig.getSetting(SETTING) or "").strip()
    found = shutil.which(str(Path(given or "taxabind-map").expanduser()))
    if found is None:
        what = f"the program {given!r} of the settings" if given else "the program taxabind-map"
        raise QgsProcessingException(
            f"{what} was not found. Install taxabind-map, and give the path of the program under Settings > Options > "
            "Processing > Providers > taxabind-map."
        )
    if name == "taxabind-map":
        return found
    path = Path(found)
    beside = path.with_name(name + path.suffix if path.suffix.lower() == ".exe" else name)
    if not beside.exists():
        raise QgsProcessingException(f"{str(beside)!r} was not found beside taxabind-map; install taxabind-map again.")
    return str(beside)


def environment():
    """The variables of this process without those that make another Python read the libraries of QGIS."""
    foreign = ("PYTHON", "GDAL_", "PROJ_", "QT_", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)}


def run(name, arguments, feedback, progress=False, report=True):
    """Run a program.

    Parameters
    ----------
    name : taxabind-map, or sdm and one of its commands, such as "sdm zones".
    arguments : its arguments, as text.
    feedback : a QgsProcessingFeedback, told of progress and messages, and asked whether to cancel.
    progress : whether the command takes `--progress lines`.
    report : whether it takes `--json`, and prints a report.

    Returns
    -------
    Its report, {} without one. None: it was cancelled.

    Raises
    ------
    QgsProcessingException : it failed; the text is its own sentence.
    """
    first, *sub = name.split()
    own = [*(["--json"] if report else []), *(["--progress", "lines"] if progress else [])]
    words = [program(first), *sub, *own, *arguments]
    feedback.pushCommandInfo(subprocess.list2cmdline(words))
    # A group of its own, so that a cancelled run can be told to stop without stopping QGIS.
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if WINDOWS else {"start_new_session": True}
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment(),
            **group,
        )
    except OSError as error:
        raise QgsProcessingException(f"{words[0]!r} could not be started: {error}.") from None
    printed, said = [], []
    readers = [
        threading.Thread(target=lambda: printed.extend(process.stdout), daemon=True),
        threading.Thread(target=lambda: [said.append(line) for line in process.stderr], daemon=True),
    ]
    for reader in readers:
        reader.start()
    told = 0
    while True:
        cancelled = feedback.isCanceled()
        if cancelled:
            stop(process)
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            told = _tell(said, told, feedback)
            continue
        break
    for reader in readers:
        reader.join()
    process.stdout.close()
    process.stderr.close()
    _tell(said, told, feedback)
    if cancelled:
        return None
    if process.returncode:
        raise QgsProcessingException(_error(said, name, process.returncode))
    return _parsed("".join(printed), name) if report else {}


def stop(process):
    """Interrupt a run, which then removes what it has begun; kill it if it takes too long."""
    process.send_signal(signal.CTRL_BREAK_EVENT if WINDOWS else signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def _tell(lines, told, feedback):
    """Pass on the lines of stderr that are new; returns how many have been."""
    for line in lines[told:]:
        told += 1
        words = line.split()
        if len(words) == 3 and words[0] == "progress" and "/" in words[2]:
            done, _, total = words[2].partition("/")
            first, last = STAGES.get(words[1], (0, 100))
            feedback.setProgress(first + (last - first) * int(done) / max(int(total), 1))
        elif line.strip() and not line.startswith("error: "):
            feedback.pushInfo(line.rstrip())
    return told


def _error(lines, name, code):
    """The sentence of a run that failed."""
    errors = [line[len("error: ") :].strip() for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"{name} ended with exit code {code}. {' '.join(' '.join(lines).split())[-300:]}"


def _parsed(text, name):
    try:
        return json.loads(text)
    except ValueError:
        raise QgsProcessingException(f"{name} printed no JSON; its version is not that of this plugin.") from None
