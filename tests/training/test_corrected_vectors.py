"""Vectors of species with corrected ranges, fitted to the encoders of a model that exists."""

from dataclasses import replace

import numpy as np
from safetensors.numpy import load_file

from sdm.engine.encode import embed_positions
from sdm.models.bundled import BundledModel
from sdm.request import Sampling
from sdm.training.runs import known_ranges
from sdm.training.runs.range_run import run_recipe

EGYPT, NAMIBIA = (29.0, 26.0), (17.0, -22.0)
"""(lon, lat)."""
WHOLE = """
[[data.source]]
kind = "ranges"
name = "whole"
path = "{data}"
corrections = "{data}/corrections.csv"
origin = "all"
share = 0
"""


def cosine(folder, species, place, origin="native"):
    model = BundledModel.open(folder)
    embeddings, _ = embed_positions(model, Sampling(), *(np.array([x]) for x in place))
    return float(embeddings[0] @ model.species_embedding(replace(model.resolve(species), origin=origin)))


def test_only_corrected_ranges_change(tmp_path, tiny, monkeypatch):
    for name, value in (("COARSE", 3.0), ("FINE", 0.5), ("SEA", 20.0)):
        monkeypatch.setattr(known_ranges, name, value)
    recipe, out = tiny(30)
    run_recipe(recipe, out, tmp_path / "run", ("develop", "ship"))
    before, tokens = load_file(out / "model.safetensors"), (out / "vocabulary.txt").read_text().split()
    was = cosine(out, "Ursus arctos", EGYPT)
    (tmp_path / "corrections.csv").write_text(
        "species,origin,countries,boxes,source\nUrsus arctos,native,EGY SDN,,A\nVulpes vulpes,introduced,NAM ZAF,,A\n"
    )
    data = tmp_path.as_posix()
    swap = [(f'path = "{data}"\n', f'path = "{data}"\ncorrections = "{data}/corrections.csv"\n')]
    corrected, out = tiny(30, swap=swap)
    text = corrected.path.read_text() + WHOLE.format(data=data)
    corrected.path.write_text(text)
    metrics = run_recipe(type(corrected).read(corrected.path), out, tmp_path / "vectors", ("vectors",))
    assert metrics["corrected_vectors"]["species"] >= 1
    after = load_file(out / "model.safetensors")
    names = [t for t in (out / "vocabulary.txt").read_text().split("\n") if t]
    old = [t for t in names if not t.endswith(" [all]")]
    assert names == [*old, "species:Vulpes vulpes [all]"] and len(" ".join(old).split()) == len(tokens)
    for key in before.keys() - {"text.embedding.weight"}:
        assert np.array_equal(before[key], after[key])
    rows = before["text.embedding.weight"], after["text.embedding.weight"]
    moved = {names[k] for k in range(len(old)) if not np.array_equal(rows[0][k], rows[1][k])}
    assert moved == {"species:Ursus arctos"}
    assert cosine(out, "Ursus arctos", EGYPT) > was + 0.05
    assert cosine(out, "Vulpes vulpes", NAMIBIA, "all") > cosine(out, "Vulpes vulpes", NAMIBIA) + 0.05
