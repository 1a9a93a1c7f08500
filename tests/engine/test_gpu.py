"""On a GPU the map is the CPU's, within the precision of bfloat16."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_gpu_map_is_the_cpu_map():
    from sdm.maps.array import map_species

    box = {"bbox": (-130, 40, -110, 55), "resolution": 0.1}
    cpu = map_species("Ursus arctos", device="cpu", **box).values
    gpu = map_species("Ursus arctos", device="cuda", **box).values
    assert np.array_equal(np.isnan(cpu), np.isnan(gpu))
    assert np.nanmax(np.abs(cpu - gpu)) < 0.1
    assert np.nanmean(np.abs(cpu - gpu)) < 0.005


def test_gpu_tiles_do_not_show():
    from sdm.maps.array import map_species

    box = {"bbox": (-130, 40, -110, 55), "resolution": 0.1, "device": "cuda"}
    one = map_species("Ursus arctos", tile_size=512, **box).values
    many = map_species("Ursus arctos", tile_size=64, **box).values
    assert np.array_equal(one, many, equal_nan=True)
