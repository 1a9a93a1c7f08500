"""Vectors of species whose ranges were corrected, fitted to a model that was trained before its encoders saw them.

The encoders of places stay as they are (locked tuning), so the maps of all other species keep every bit. Only the rows
of the species that the recipe's `corrections` change are fitted, those of their whole ranges (`origin = "all"`)
included: by the loss of the calibrated probability over places of the world, each weighed by the area it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdm.files.paths import replace_file
from sdm.models.bundled import BundledModel
from sdm.models.encoders.text import TaxonTower, tokens
from sdm.models.folder import read_folder
from sdm.names.origin import ALL, lineage_of
from sdm.training.data.labels import PackedLabels
from sdm.training.data.sources import Ranges, open_sources
from sdm.training.data.splits import in_blocks
from sdm.training.measures.scores import average_precision
from sdm.training.recipe.range_recipe import Recipe
from sdm.training.recipe.sources import RangesSettings
from sdm.training.runs.folder import Log
from sdm.training.runs.known_ranges import World, make_world

STEPS, RATE = 400, 0.02
"""Of Adam, over all places at once."""
STAY = 1e-3
"""Weight of the squared distance to the vector that the model had, or has for the native range."""
PRESENT = 0.25
"""Share of the loss that the places of a range have at least: narrow ranges would vanish among the rest."""


@dataclass(frozen=True)
class Fitted:
    """Species and their vectors, not normalised."""

    names: list[str]
    vectors: np.ndarray
    """(S, dim) float32."""


def fit_corrected_vectors(recipe: Recipe, folder: Path, log: Log) -> dict[str, Any]:
    """Fit the vectors of species with corrected ranges into the model in a folder; returns what held-out blocks say.

    {"species", "ap", "ap_before"}: mean average precision at places of the blocks that [evaluation] holds out, of
    vectors fitted without them, and of those that the model had; {} for a recipe without corrections.
    """
    model = BundledModel(folder.resolve(), *read_folder(folder.resolve(), made_here=True))
    sources = open_sources(recipe.data.source, model.taxa, recipe.optimiser.seed)
    corrected = [s for s in sources if isinstance(s, Ranges) and s.settings.corrections]
    if not corrected:
        return {}
    world = make_world(model, {})
    labels = {name: column for source in corrected for name, column in _changed(source, model, world).items()}
    log(f"corrected vectors: {len(labels)} ranges, {world.lon.size} places of the world")
    start = _start(model, list(labels))
    e = recipe.evaluation
    held = in_blocks(np.stack([world.lon, world.lat], axis=1), e.block_degrees, e.held_out, e.seed)
    calibration = model.calibration(model.modalities)
    tried = _fit(world, labels, start, ~held, calibration)
    found = {"species": 0, "ap": 0.0, "ap_before": 0.0} | _held_out(world, labels, start, tried, held)
    log(f"corrected vectors, held-out blocks: {found}")
    _write(folder, model, _fit(world, labels, start, np.ones(world.lon.size, dtype=bool), calibration))
    return found


def _changed(source: Ranges, model: BundledModel, world: World) -> dict[str, np.ndarray]:
    """{name: (N,) 1, 0, or -1 where nothing is known} of the ranges of a source that its corrections changed."""
    assert isinstance(source.settings, RangesSettings)
    plain = Ranges(replace(source.settings, corrections="", origin="native"), model.taxa)
    before, block = plain.block(world.places, -2), source.block(world.places, -2)
    assert isinstance(before.table, PackedLabels) and isinstance(block.table, PackedLabels)
    known = np.flatnonzero(block.rows >= 0)
    index = {name: k for k, name in enumerate(plain.species)}
    result = {}
    for k, name in enumerate(source.species):
        column = np.full(world.lon.size, -1, dtype=np.int8)
        column[known] = block.table.column(block.rows[known], k)
        was = before.table.column(before.rows[known], index[name.removesuffix(ALL)])
        if (name.endswith(ALL) or (column[known] != was).any()) and (column > 0).any():
            result[name] = column
    return result


def _start(model: BundledModel, names: list[str]) -> Fitted:
    """The vectors that the model has for species, not normalised; for a whole range, that of the native one."""
    tower: Any = model.load("cpu").text
    assert isinstance(tower, TaxonTower)
    lineages = [model.taxa.by_name[name.removesuffix(ALL).lower()].lineage for name in names]
    return Fitted(names, torch.stack([tower.embed(lineage) for lineage in lineages]).float().numpy())


def _fit(
    world: World,
    labels: Mapping[str, np.ndarray],
    start: Fitted,
    used: np.ndarray,
    calibration: tuple[float, float],
) -> Fitted:
    """Vectors fitted at the places `used` (N,)."""
    scale, bias = calibration
    columns = np.stack([labels[name][used] for name in start.names], axis=1)
    present, absent = (torch.from_numpy(np.ascontiguousarray(columns == value)) for value in (1, 0))
    area = torch.from_numpy(world.area[used].astype(np.float32))[:, None]
    places = torch.from_numpy(world.embeddings[used].astype(np.float32))
    inside, outside = (area * present).sum(0), (area * absent).sum(0)
    share = torch.clamp(inside / (inside + outside), min=PRESENT)
    weights = area * present * (share / inside.clamp(min=1e-6)) + area * absent * ((1 - share) / outside)
    # The prior odds that the weights add are taken out again, so that probabilities keep their meaning.
    prior = torch.logit(share) - torch.logit((inside / (inside + outside)).clamp(1e-7, 1 - 1e-7))
    first = torch.from_numpy(start.vectors)
    vectors = first.clone().requires_grad_()
    optimiser = torch.optim.Adam([vectors], lr=RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        some = torch.randint(0, len(places), (8192,), generator=generator)
        logit = scale * places[some] @ torch.nn.functional.normalize(vectors, dim=1).T + bias + prior
        loss = _cross_entropy(logit, present[some], weights[some]) * (len(places) / len(some))
        loss = loss + STAY * ((vectors - first) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Fitted(start.names, vectors.detach().numpy())


def _cross_entropy(logit: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(logit, present.float(), weights, reduction="sum")


def _held_out(
    world: World, labels: Mapping[str, np.ndarray], start: Fitted, tried: Fitted, held: np.ndarray
) -> dict[str, float]:
    """Mean average precision at held-out places, of the species with a presence there."""
    places = world.embeddings[held].astype(np.float32)
    pairs = []
    for k, name in enumerate(tried.names):
        label = labels[name][held]
        if not (label > 0).any() or not (label == 0).any():
            continue
        known = label >= 0
        now, was = (places[known] @ (v[k] / np.linalg.norm(v[k])) for v in (tried.vectors, start.vectors))
        pairs.append([average_precision(values, label[known] > 0) for values in (now, was)])
    if not pairs:
        return {}
    ap, before = np.mean(pairs, axis=0).tolist()
    return {"species": len(pairs), "ap": round(ap, 4), "ap_before": round(before, 4)}


def _write(folder: Path, model: BundledModel, fitted: Fitted) -> None:
    """Put vectors into the weights of a model, as rows of their species, new ones at the end of the vocabulary."""
    from safetensors.torch import load_file, save

    weights = load_file(folder / "model.safetensors")
    vocabulary = [t for t in (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n") if t]
    lineages = {taxon.name: taxon.lineage for taxon in model.taxa.by_name.values()}
    table = weights["text.embedding.weight"].float()
    index = {token: k for k, token in enumerate(vocabulary)}
    for name, vector in zip(fitted.names, fitted.vectors, strict=True):
        *above, own = tokens(lineage_of(name, lineages))
        rest = sum((table[index[token]] for token in above if token in index), torch.zeros(table.shape[1]))
        row = (torch.from_numpy(vector) - rest)[None]
        if own in index:
            table[index[own]] = row[0]
        else:
            index[own] = len(vocabulary)
            vocabulary.append(own)
            table = torch.cat([table, row])
    weights["text.embedding.weight"] = table.to(weights["text.embedding.weight"].dtype)
    replace_file(folder / "model.safetensors", save(weights))
    replace_file(folder / "vocabulary.txt", ("\n".join(vocabulary) + "\n").encode())
