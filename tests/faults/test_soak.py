"""Maps and queries in one process for a long time: memory and handles stay what they were.

`TAXABIND_MAP_SOAK_S=3600 pytest -m soak -s` takes an hour and prints its figures; without the variable it is 5 seconds.
"""

import gc
import os
import time

import numpy as np
import psutil
import pytest

import sdm
from sdm.index import Index

BOX, OPTIONS = (-120, 40, -116, 44), {"resolution": 0.25, "modalities": "location"}
SPECIES = ["Ursus arctos", "Puma concolor", "Lynx rufus", "Odocoileus hemionus"]


@pytest.mark.soak
@pytest.mark.slow
def test_maps_and_queries_for_an_hour(tmp_path):
    seconds = float(os.environ.get("TAXABIND_MAP_SOAK_S", "5"))
    process = psutil.Process()
    index = sdm.build_index(sdm.plan_index(BOX, tile_size=16, **OPTIONS), tmp_path / "a.zarr", threads=1)

    def one_round(k):
        name = SPECIES[k % len(SPECIES)]
        sdm.write_maps(sdm.plan(name, BOX, **OPTIONS), tmp_path / "maps", overwrite=True, threads=1)
        opened = Index.open(tmp_path / "a.zarr")
        assert np.array_equal(opened.query(name).values, index.query(name).values, equal_nan=True)

    def state():
        gc.collect()
        return process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()

    for k in range(8):  # caches fill, libraries start their threads
        one_round(k)
    memory, files, threads = state()
    end, rounds = time.monotonic() + seconds, 8
    while time.monotonic() < end:
        one_round(rounds)
        rounds += 1
    after = state()
    print(
        f"{rounds} rounds in {seconds:.0f} s: memory {memory:.0f} MB before, {after[0]:.0f} MB after; "
        f"open files {files} and {after[1]}; threads {threads} and {after[2]}"
    )
    assert after[0] < memory * 1.15 + 50.0, (memory, after, rounds)
    assert after[1] <= files + 4 and after[2] <= threads + 4, ((files, threads), after, rounds)
