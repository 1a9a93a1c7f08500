"""A listener that must hear nothing, and a measure of what a hostile file costs."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

# A process of its own: GDAL holds Python's lock while it waits for an answer.
LISTENER = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    connection, _ = server.accept()
    connection.settimeout(1)
    try:
        request = connection.recv(500)
    except OSError:
        request = b""
    with open(sys.argv[1], "ab") as log:
        log.write(request.split(b"\\r")[0] + b"\\n")
    connection.sendall(b"HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
    connection.close()
"""

MEASURED = """
import pathlib, re, resource, sys, time
from sdm.errors import SdmError
start = time.monotonic()
try:
    exec(sys.argv[1])
    answer = "done"
except SdmError as error:
    answer = f"{type(error).__name__}: {error}"
status = pathlib.Path("/proc/self/status")
# On Linux ru_maxrss begins with the memory of the process that forked this one.
own = status.exists() and re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())
peak = (int(own[1]) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) // 1024
print(time.monotonic() - start, peak, answer)
"""


@dataclass
class Listener:
    port: int
    log: Path

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def heard(self):
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def listener(tmp_path_factory):
    """A local HTTP server that writes down what it is asked for."""
    log = tmp_path_factory.mktemp("listener") / "log"
    process = subprocess.Popen([sys.executable, "-c", LISTENER, str(log)], stdout=subprocess.PIPE, text=True)
    try:
        yield Listener(int(process.stdout.readline()), log)
    finally:
        process.kill()
        process.wait()


@dataclass
class Cost:
    seconds: float
    megabytes: int
    answer: str


@pytest.fixture
def measure():
    """Function: run Python code in a process of its own; its time, peak memory and error. It must end in 60 seconds."""

    def run(code):
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-c", MEASURED, code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-2000:]
        assert time.monotonic() - begin < 60
        seconds, megabytes, answer = done.stdout.strip().split(" ", 2)
        return Cost(float(seconds), int(megabytes), answer)

    return run
