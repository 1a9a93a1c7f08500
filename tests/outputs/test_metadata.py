import json
import math
import pickle
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from sdm.outputs.metadata import Band, MapMetadata, one_line
from sdm.outputs.sidecar import write_json


def test_metadata_is_checked_frozen_and_picklable(metadata):
    with pytest.raises(ValueError, match="variable"):
        MapMetadata("t", "q", variable="a b")
    with pytest.raises(ValueError, match="valid_range"):
        MapMetadata("t", "q", valid_range=(1, 1))
    with pytest.raises(TypeError):
        metadata.tags["species"] = "Canis lupus"
    assert pickle.loads(pickle.dumps(metadata)) == metadata


def test_metadata_does_not_follow_the_callers_dictionary():
    tags = {"a": "1"}
    metadata = MapMetadata("t", "q", tags=tags)
    tags["a"] = "2"
    assert metadata.tags["a"] == "1"


def test_one_line():
    assert one_line("a\r\n\tb\x00\x1f\x7f  c\ud800") == "a b c?"
    assert one_line("Ürsus – 熊") == "Ürsus – 熊"


def test_json_has_nulls_for_nan_and_plain_numbers(tmp_path, metadata):
    path = tmp_path / "map.json"
    write_json(
        path,
        {
            "z": np.float32(0.5),
            "a": float("nan"),
            "inf": np.inf,
            "int": np.int64(3),
            "flag": np.bool_(True),
            "array": np.array([[1.0, np.nan]]),
            "path": Path("a/b"),
            "date": date(2024, 1, 2),
            "set": {"b", "a"},
            "metadata": metadata,
            "text": "Ürsus\n\ud800",
            "none": None,
            "tuple": (1, 2.5),
        },
    )
    raw = path.read_bytes()
    assert raw.endswith(b"}\n") and "Ürsus".encode() in raw and b"NaN" not in raw and b"Infinity" not in raw
    content = json.loads(raw)
    assert list(content)[:3] == ["z", "a", "inf"]
    assert content["z"] == 0.5 and content["a"] is None and content["inf"] is None and content["int"] == 3
    assert content["flag"] is True and content["array"] == [[1.0, None]] and content["path"] == "a/b"
    assert content["date"] == "2024-01-02" and content["set"] == ["a", "b"]
    assert content["metadata"]["tags"]["species"] == "Ursus arctos"
    assert content["text"] == "Ürsus\n?" and content["tuple"] == [1, 2.5] and not math.isnan(content["int"])


def test_json_refuses_unknown_types_before_writing(tmp_path):
    with pytest.raises(TypeError, match="object"):
        write_json(tmp_path / "map.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [("a", "a"), ("probability",), ("x",), ("spatial_ref",)])
def test_bands_have_names_of_their_own(names):
    with pytest.raises(ValueError, match="need names"):
        MapMetadata("t", "q", bands=tuple(Band(name, "q") for name in names))
    with pytest.raises(ValueError, match="must be a letter"):
        Band("1st", "q")
    with pytest.raises(ValueError, match="must increase"):
        Band("a", "q", valid_range=(1, 1))
