"""The explorer's map for a new species: time from asking to the last byte, over real HTTP, with clients side by side.

Each client asks as the page does: what the name stands for and the picture, at once, for a species nobody
has asked for before. Beside it: a click, a suggestion, and a species asked for again.

    python benchmarks/serve.py [--index INDEX] [--clients 8] [--species 160]

Without an index, one of 1 megapixel is built first, which takes a minute.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

TARGET = 0.5
BBOX = ("-125", "31", "-100", "51")  # western North America
RESOLUTION = "0.0223"  # 1122 x 897 pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--species", type=int, default=160)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = options.index or build(Path(folder))
        began = time.perf_counter()
        program = [sys.executable, "-c", "from sdm.cli import main_sdm; main_sdm()"]
        server = subprocess.Popen(
            [*program, "serve", index, "--port", "0", "--no-open"], stdout=subprocess.PIPE, text=True
        )
        try:
            port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
            print(f"server ready after {time.perf_counter() - began:.1f} s")
            measure(port, server.pid, options.clients, options.species)
            print(f"memory of the server: {peak_memory(server.pid):.0f} MB at most")
        finally:
            server.terminate()
            server.wait()


def build(folder: Path) -> str:
    """A 1-megapixel index in a folder."""
    path = str(folder / "west.zarr")
    began = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-c",
            "from sdm.cli import main_sdm; main_sdm()",
            "index",
            "build",
            "--bbox",
            *BBOX,
            "--resolution",
            RESOLUTION,
            "--out",
            path,
        ],
        check=True,
    )
    print(f"index built in {time.perf_counter() - began:.0f} s")
    return path


def measure(port: int, pid: int, clients: int, count: int) -> None:
    info = json.loads(fetch(port, "index"))
    rows, columns = info["picture"]
    grid = info["grid"]
    print(f"index {grid['columns']} x {grid['rows']} pixels, picture {columns} x {rows}, {clients} clients")
    names = species(info, count)
    draw(port, names.pop())  # threads and buffers exist from now on
    before = processor_time(pid)
    report("map of a new species", timed(clients, lambda name: draw(port, name), names), TARGET)
    print(f"{'processor time of the server':34} {(processor_time(pid) - before) / count * 1000:5.0f} ms per map")
    report("map of a species seen before", timed(clients, lambda name: draw(port, name), names[-20:] * 4))
    west, south, east, north = info["bounds"]
    places = np.random.default_rng(0).uniform((west, south), (east, north), (count, 2)).tolist()
    report("click", timed(clients, lambda p: fetch(port, "place", lon=p[0], lat=p[1], name=names[-1]), places))
    report("suggestions", timed(clients, lambda name: fetch(port, "suggest", q=name[:5]), names))
    fresh = species(info, 30, seed=1)
    report("map of a new species, one client", timed(1, lambda name: draw(port, name), fresh))


def species(info: dict, count: int, seed: int = 0) -> list[str]:
    """Distinct species of the model, at random, that the index can show."""
    from sdm.models.registry import open_model
    from sdm.names.habitat import mask_for

    taxa = [t for t in open_model(info["model"]["name"]).taxa if info["mask"] == "none" or mask_for(t) != "sea"]
    return [taxa[k].name for k in np.random.default_rng(seed).permutation(len(taxa))[: count + 1]]


def draw(port: int, name: str) -> None:
    """What the page asks for, side by side as it does."""
    other = threading.Thread(target=fetch, args=(port, "species"), kwargs={"name": name})
    other.start()
    fetch(port, "picture", name=name)
    other.join()


_connections = threading.local()


def fetch(port: int, path: str, **parameters: object) -> bytes:
    """One request on this thread's connection; anything but 200 ends the benchmark."""
    connection = getattr(_connections, "open", None)
    if connection is None:
        connection = _connections.open = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", f"/api/{path}?{urlencode(parameters)}", headers={"Accept-Encoding": "gzip"})
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise SystemExit(f"{path} {parameters}: {response.status} {body[:200]!r}")
    if response.headers["Content-Encoding"] == "gzip":
        import gzip

        body = gzip.decompress(body)
    return body


def timed(clients: int, function, items: list) -> np.ndarray:
    def one(item) -> float:
        began = time.perf_counter()
        function(item)
        return time.perf_counter() - began

    with ThreadPoolExecutor(clients) as pool:
        return np.array(list(pool.map(one, items)))


def report(what: str, seconds: np.ndarray, target: float | None = None) -> None:
    median, high = np.percentile(seconds, (50, 95))
    verdict = "" if target is None else f"; target {target * 1000:.0f}: {'met' if high < target else 'NOT met'}"
    print(f"{what:34} median {median * 1000:5.0f} ms, 95th percentile {high * 1000:5.0f} ms{verdict}")


def processor_time(pid: int) -> float:
    """Seconds of all threads of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> float:
    """Largest resident size of a process so far in MB (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
