"""A model of a third kind: whatever has the members of the protocol can be mapped, and its declared layers are read."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

import sdm
from sdm.engine.encode import embed_positions
from sdm.engine.inputs import content_fingerprint, layer_fingerprints, open_inputs
from sdm.errors import LayerError, ModelError
from sdm.models.bundled import BundledModel
from sdm.models.layerspec import ImageryCrops, MosaicCrops, Position, StandardisedVariables, Variable, WorldClimChannels
from sdm.models.protocol import Check, Encoders, Model
from sdm.models.registry import open_model
from sdm.models.score import normalise
from sdm.models.taxabind.model import LAYERS
from sdm.request import Sampling

LON, LAT = np.array([-106.0, 10.0, 25.0]), np.array([35.0, 47.0, 0.0])


class Stretch:
    """Encoders that stretch the values of a place to 4 numbers."""

    device = torch.device("cpu")

    def encode(self, modality, values):
        flat = torch.from_numpy(values).flatten(1).float()
        return normalise(torch.nn.functional.interpolate(flat[:, None], size=4)[:, 0] + 1e-3)


@dataclass(frozen=True)
class Toy:
    """Reads the position, and the mean temperature in two units."""

    name: str = "toy"
    title: str = ""
    version: str = ""
    licence: str = ""
    folder: Path = Path()
    digest: str = "0123456789abcdef"
    space: tuple[str, str] = ("toy", "0123456789abcdef")
    dim: int = 4
    calibrated: bool = False
    modalities: tuple[str, ...] = ("location", "environment")
    place_modalities: tuple[str, ...] = ("location", "environment")
    seasonal: bool = False
    ranges: str = ""
    introduced: frozenset = frozenset()
    coverage: None = None
    domain: tuple[float, float] = (-90.0, 90.0)
    taxa: tuple = ()
    layers: dict = field(
        default_factory=lambda: {
            "location": Position(),
            "environment": StandardisedVariables((Variable("bio1", std=20.0), Variable("bio1", mean=10.0, std=10.0))),
        }
    )

    def remarks(self, species):
        return ()

    def species_embeddings(self, taxa):
        return np.stack([self.species_embedding(taxon) for taxon in taxa])

    def known_range(self, taxon):
        return None

    def extent(self, group):
        return None

    def batch(self, modalities, device):
        return 2

    def pitch(self, modality):
        return 0.0

    def calibration(self, modalities):
        raise ModelError("none")

    def resolve(self, query):
        raise ModelError("none")

    def species_embedding(self, resolution):
        raise ModelError("none")

    def embed(self, modality, values):
        return self.load().encode(modality, values).numpy()

    def load(self, device="cpu") -> Encoders:
        return Stretch()

    def files(self):
        return []

    def verify(self):
        return []


def members(protocol):
    return {name for name in vars(protocol) if not name.startswith("_")}


@pytest.mark.parametrize("model", [BundledModel.open("mammals-trees"), Toy()], ids=lambda m: m.name)
def test_a_model_has_every_member_of_the_protocol(model):
    assert [name for name in sorted(members(Model)) if not hasattr(model, name)] == []
    assert [name for name in sorted(members(Encoders)) if not hasattr(model.load("cpu"), name)] == []


def test_the_layers_that_a_model_declares_are_read_for_it():
    values, known = open_inputs(Toy(), ("location", "environment")).read["environment"](LON, LAT)
    assert known.all() and values.shape == (3, 2)
    celsius = 20.0 * values[:, 0]
    assert (celsius > 0.0).all() and celsius.argmax() == 2  # the Equator is the warmest of the three
    np.testing.assert_allclose(values[:, 1], (celsius - 10.0) / 10.0, rtol=1e-4)


def test_any_model_of_the_protocol_embeds_places():
    together, known = embed_positions(Toy(), Sampling(), LON, LAT, "cpu")
    assert known.all() and together.shape == (3, 4)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)
    alone, _ = embed_positions(Toy(), Sampling(modalities=("location",)), LON, LAT, "cpu")
    expected = Toy().embed("location", np.stack([LON, LAT], axis=1))
    np.testing.assert_allclose(alone, expected, rtol=1e-5)


def test_fingerprints_name_the_layers_that_are_declared(tmp_path):
    model = sdm.Model.open("mammals-trees")
    prints = layer_fingerprints(model, ("location", "satellite", "environment"))
    assert list(prints) == ["landmask", "environment", "satellite"]
    assert all(value.startswith("bundled:") for value in prints.values())
    assert list(layer_fingerprints(model, ("location",))) == ["landmask"]
    raster = tmp_path / "own.tif"
    raster.write_bytes(b"anything: its content is hashed, not opened")
    own = layer_fingerprints(model, ("environment", "satellite"), [str(raster)], str(raster))
    assert own["environment"] == prints["environment"]
    assert own["environment_own"].startswith("own:") and own["satellite"].startswith("own:")
    assert content_fingerprint(model, ("environment",)) != content_fingerprint(model, ("environment",), [str(raster)])


def test_worldclim_channels_have_a_fingerprint_and_imagery_needs_a_source():
    model = Toy(digest="published", layers=dict(LAYERS), place_modalities=tuple(LAYERS))
    prints = layer_fingerprints(model, ("location", "environment"))
    assert list(prints) == ["landmask", "environment"] and len(prints["environment"]) == len("bundled:") + 16
    with pytest.raises(LayerError, match="needs imagery at 10 m"):
        open_inputs(model, ("satellite",))
    with pytest.raises(LayerError, match="--environment is given 2 times"):
        open_inputs(model, ("environment",), ["one", "other"])


def test_what_is_not_bundled_says_so():
    assert not ImageryCrops(256, 10.0).bundled
    assert all(kind.bundled for kind in (Position, StandardisedVariables, MosaicCrops, WorldClimChannels))


def test_an_opened_model_is_returned_as_it_is():
    model = Toy()
    assert open_model(model) is model


def test_a_bundled_model_is_verified_as_one():
    model = sdm.list_models()[0]
    assert model.verify() == [Check(model.modalities, model.folder, None, model.digest, "ok")]
