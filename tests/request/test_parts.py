"""Values of options that are not usable are refused when a group is made."""

import pytest

from sdm.errors import BoxError, RequestError, SpeciesNameError
from sdm.request import Area, Delivery, Execution, IndexRequest, ListOptions, Query, Sampling, Storage


@pytest.mark.parametrize(
    ("group", "values", "error", "words"),
    [
        (Area, {"bbox": (0, 10, 1, 1)}, BoxError, "south 10 is greater than north 1"),
        (Area, {"bbox": (0, 1, 2)}, BoxError, "bbox has 3 numbers"),
        (Area, {"bbox": 7}, BoxError, "bbox 7 is not four numbers"),
        (Area, {"tile_size": 256.0}, RequestError, "tile_size 256.0 must be a whole number"),
        (Area, {"max_pixels": "9"}, RequestError, "max_pixels '9' must be a whole number"),
        (Area, {"max_pixels": 0}, RequestError, "max_pixels 0 must be at least 1"),
        (Sampling, {"step": 65}, RequestError, "step 65 is outside 1..64 pixels"),
        (Sampling, {"satellite_step": 0}, RequestError, "satellite_step 0 is outside 1..64"),
        (Sampling, {"step": 2, "satellite_step": 2}, RequestError, "give only one of them"),
        (Sampling, {"modalities": "sound"}, RequestError, "modality 'sound' is not known"),
        (Sampling, {"modalities": "location,location"}, RequestError, "modality 'location' is given twice"),
        (Sampling, {"month": 13}, RequestError, "month '13' is not known"),
        (Query, {"species": 3}, RequestError, "species 3 is not a list"),
        (Query, {"species": ["Ursus arctos", 3]}, SpeciesNameError, "must be names"),
        (Query, {"text": " "}, RequestError, "--text is empty"),
        (Query, {"mask": "water"}, RequestError, "mask 'water' is not known; choose one of land, sea, none, auto"),
        (Query, {"score": "best"}, RequestError, "score 'best' is not known"),
        (Execution, {"device": "tpu"}, RequestError, "device 'tpu' is not known"),
        (Execution, {"device": "cuda:x"}, RequestError, "device 'cuda:x' is not known"),
        (Execution, {"threads": 0}, RequestError, "threads 0 is outside 1..1024"),
        (Execution, {"workers": 1025}, RequestError, "workers 1025 is outside 1..1024"),
        (Execution, {"workers": 2, "scheduler_address": "tcp://a:1"}, RequestError, "omit workers and threads"),
        (
            Delivery,
            {"formats": "png"},
            RequestError,
            "format 'png' is not known; choose any of cog, zarr, zarr3, html, stac",
        ),
        (ListOptions, {"threshold": "high"}, RequestError, "threshold 'high' is not a number"),
        (ListOptions, {"threshold": 1}, RequestError, "threshold 1 must lie between 0 and 1"),
        (Storage, {"mask": "auto"}, RequestError, "mask 'auto' is not known; choose one of land, sea, none"),
        (Storage, {"encoding": "int4"}, RequestError, "encoding 'int4' is not known"),
    ],
)
def test_refused(group, values, error, words):
    with pytest.raises(error) as found:
        group(**values)
    assert words in str(found.value)


def test_one_value_stands_for_a_list_of_one():
    assert Query(species="Ursus arctos").species == ("Ursus arctos",)
    assert Query(photo="a.jpg").photo == ("a.jpg",)
    assert Sampling(environment="x.tif").environment == ("x.tif",)


def test_evidence_beside_names_is_named():
    query = Query(photo=["d/bear.jpg"], audio="call.wav", text=" alpine meadow ", embedding="e/v.npy")
    assert query.evidence == ("photo bear.jpg", "sound call.wav", "text 'alpine meadow'", "vector v.npy")
    assert Query(species="Ursus arctos").evidence == ()


def test_formats_not_asked_for_are_the_usual_ones():
    assert Delivery().formats_or() == ("cog", "zarr", "html")
    assert Delivery().formats_or(("zarr",)) == ("zarr",)
    assert Delivery(formats="html,cog").formats_or(("zarr",)) == ("cog", "html")


def test_an_index_may_be_larger_than_a_map():
    assert IndexRequest().area.max_pixels > Area().max_pixels
    assert IndexRequest.of(bbox=(0, 0, 1, 1), max_pixels=9).area.max_pixels == 9
