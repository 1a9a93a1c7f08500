"""Contrastive training: pairs that are drawn, towers that are bound, whole runs."""

import copy

import numpy as np
import pytest
import torch

from sdm.errors import RequestError
from sdm.training.data.drawing import random_places
from sdm.training.data.pairs import RangePairs
from sdm.training.loop.trainer import Trainer
from sdm.training.objectives.contrastive import ContrastiveObjective, Rates
from sdm.training.recipe.sections import BindingSettings, TrainerSettings
from sdm.training.spaces import BundledSpace, read_states

# Pairs ---------------------------------------------------------------------------------------------


SIZE, INPUTS, PLACES = 4, 5, 300


@pytest.fixture(scope="module")
def world():
    """Twelve species of four genera in a world where climate follows latitude, and each species a climate."""
    rng = np.random.default_rng(0)
    lonlat = random_places(PLACES, rng)
    climate = np.abs(lonlat[:, 1]) / 90
    noise = rng.normal(size=(PLACES, INPUTS)) * 0.1
    environment = (climate[:, None] * np.linspace(-2, 2, INPUTS) + noise).astype(np.float32)
    crops = np.repeat((255 * climate).astype(np.uint8), SIZE * SIZE * 3).reshape(PLACES, SIZE, SIZE, 3)
    centre = np.linspace(0, 0.9, 12)
    present = (np.abs(climate[:, None] - centre[None, :]) < 0.12).astype(np.uint8)
    rows = np.stack([np.zeros(12, int), 1 + np.arange(12) // 3, 5 + np.arange(12)], axis=1)
    values = {"location": lonlat, "satellite": crops, "environment": environment, "text": rows}
    return values, present


def pairs_of(world, where=None, **options):
    values, present = world
    globe = {m: values[m][:100] for m in ("location", "environment", "satellite")}
    where = np.arange(PLACES) if where is None else where
    return RangePairs(values, lambda rows: present[rows], where, globe=globe, **options)


@pytest.mark.parametrize("balance", ["place", "species"])
def test_draws_are_presences_evenly_over_places_or_species(world, balance):
    present = world[1]
    where = np.flatnonzero(np.arange(PLACES) % 3 > 0)
    place, species = pairs_of(world, where, balance=balance).draw(60_000, np.random.default_rng(1))
    assert present[place, species].all() and np.isin(place, where).all()
    pairs = present[where].astype(float)
    by = pairs / pairs.sum(0) if balance == "species" else pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    expected = (by / by.sum()).sum(0)
    assert np.allclose(np.bincount(species, minlength=12) / 60_000, expected, atol=0.006)


def test_what_cannot_be_drawn_is_refused(world):
    with pytest.raises(RequestError, match="no species is present"):
        RangePairs(world[0], lambda rows: np.zeros((len(rows), 12)), np.arange(PLACES))
    with pytest.raises(RequestError, match="balance 'genus' is not known"):
        pairs_of(world, balance="genus")


# Binding -------------------------------------------------------------------------------------------


def small_space(seed=0):
    config = {
        "dim": 16,
        "location": {"sigmas": [1.0], "features": 8, "width": 32, "depth": 1},
        "satellite": {"size": SIZE, "width": 16, "depth": 1},
        "environment": {"width": 32, "depth": 1, "inputs": [{}] * INPUTS},
    }
    torch.manual_seed(seed)
    return BundledSpace(config, [f"token {k}" for k in range(17)], "nowhere")


def fit(space, pairs, folder, steps=60, batch=64, **settings):
    objective = ContrastiveObjective(space, pairs, BindingSettings(**settings), Rates(learning_rate=1e-2))
    options = TrainerSettings(steps=steps, batch=batch, ema=0.0, precision="float32", checkpoint_every=1000)
    rows = Trainer(objective, options, folder, log=lambda line: None).fit()
    return objective, rows


def between(space, pairs, a, b, rows=slice(0, 200)):
    """Mean rank of the right place, 0 best and 0.5 chance, from one modality to another."""
    index = np.arange(PLACES)[rows]
    with torch.no_grad():
        x, y = (torch.nn.functional.normalize(space.embed(m, pairs.values(m, index)), dim=-1) for m in (a, b))
    cosine = x @ y.T
    return float((cosine > cosine.diagonal()[:, None]).float().mean())


@pytest.mark.parametrize(
    ("binding", "losses"),
    [
        ("text", {"location": "location", "satellite": "supcon", "environment": "location"}),
        ("text", {"location": "range", "satellite": "range", "environment": "range"}),
        ("environment", {"location": "infonce", "satellite": "sigmoid", "text": "supcon"}),
    ],
)
def test_modalities_never_paired_become_comparable(world, tmp_path, binding, losses):
    """The paper's point: satellite and location are only ever compared with the binding modality."""
    space, pairs = small_space(), pairs_of(world)
    assert 0.35 < between(space, pairs, "satellite", "location") < 0.65
    fit(space, pairs, tmp_path, steps=150, binding=binding, losses=losses, train=(binding, *losses))
    assert between(space, pairs, "satellite", "location") < 0.2


def test_locked_tuning_leaves_the_binding_tower_alone(world, tmp_path):
    space, pairs = small_space(), pairs_of(world)
    before = copy.deepcopy(space.states())
    objective, rows = fit(space, pairs, tmp_path, steps=30)
    after = space.states()
    assert all(torch.equal(before["text"][k], after["text"][k]) for k in before["text"])
    for m in ("location", "satellite", "environment"):
        assert any(not torch.equal(before[m][k], after[m][k]) for k in before[m])
    assert {f"loss {m}" for m in ("location", "satellite", "environment")} <= rows[-1].keys()
    objective.train()
    assert [m for m, t in space.towers.items() if t.training] == ["location", "satellite", "environment"]


def test_what_a_locked_tower_gives_is_kept_and_is_what_it_gives(world):
    space, pairs = small_space(), pairs_of(world)
    objective = ContrastiveObjective(space, pairs, BindingSettings(binding="environment", modalities=("location",)))
    seen = []
    space.towers["environment"].register_forward_hook(lambda module, args, out: seen.append(len(out)))
    batch = objective.draw(64, np.random.default_rng(0))
    objective(batch)
    once = sum(seen)
    objective(batch)
    assert sum(seen) == once
    with torch.no_grad():
        expected = space.embed("environment", pairs.values("environment", batch.place))
    assert torch.allclose(objective._locked_embeddings("environment", batch.place), expected, atol=1e-6)


def together(rank, address, results, data):
    """One of two processes that train together."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    try:
        fit(*trained_together(data), results / f"run{rank}", **TOGETHER)
    finally:
        dist.destroy_process_group()


TOGETHER = {
    "steps": 4,
    "train": ("text", "location", "satellite", "environment"),
    "sum_weight": 0.5,
    "modality_dropout": 0.3,
    "losses": {"location": "location", "satellite": "supcon", "environment": "range"},
    "distil": 0.2,
}


def trained_together(data):
    return small_space(), pairs_of(data)


@pytest.mark.slow
def test_two_processes_train_as_one(world, tmp_path):
    space, pairs = trained_together(world)
    fit(space, pairs, tmp_path / "alone", **TOGETHER)
    torch.multiprocessing.spawn(together, (str(tmp_path / "meet"), tmp_path, world), nprocs=2)
    states = read_states(tmp_path / "run0", space.modalities)
    moved = 0.0
    start = small_space().states()
    for m, state in space.states().items():
        for key, value in state.items():
            assert torch.allclose(states[m][key], value, rtol=1e-3, atol=2e-4), (m, key)
            moved = max(moved, float((value.float() - start[m][key].float()).abs().max()))
    assert moved > 0.01


def test_distillation_holds_the_towers_back(world, tmp_path):
    moved = {}
    for by, weight in (("cosine", 0.0), ("cosine", 30.0), ("l2", 30.0)):
        space, pairs = small_space(), pairs_of(world)
        before = space.embed("text", pairs.values("text", np.arange(12))).detach()
        fit(
            space,
            pairs,
            tmp_path / f"{by}{weight}",
            distil=weight,
            distil_by=by,
            train=("text", "location"),
            modalities=("location",),
        )
        after = space.embed("text", pairs.values("text", np.arange(12))).detach()
        moved[by, weight] = float(1 - torch.nn.functional.cosine_similarity(before, after).mean())
    assert moved["cosine", 30.0] < moved["cosine", 0.0] / 5
    assert moved["l2", 30.0] < moved["cosine", 0.0] / 5


def test_fixed_temperature_and_the_sum_with_modality_dropout(world, tmp_path):
    space, pairs = small_space(), pairs_of(world)
    objective, rows = fit(
        space, pairs, tmp_path, learn_temperature=False, temperature=0.2, sum_weight=1.0, modality_dropout=0.7
    )
    assert float(objective.temperatures["location"]()) == pytest.approx(5.0)
    assert "loss sum" in rows[-1] and "scale location" not in rows[-1]
    kept = objective.draw(5000, np.random.default_rng(0)).summed
    assert kept.sum(1).min() >= 1
    alone = (kept.sum(1) == 1).mean()  # two of three left out
    assert alone == pytest.approx(3 * 0.7**2 * 0.3, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"binding": "image"}, "binding modality 'image' is not there; choose any of location"),
        ({"modalities": ("audio",)}, "modality 'audio' is not there"),
        ({"modalities": ("text",)}, "cannot be bound to itself"),
        ({"modalities": ("location",), "train": ("satellite",)}, "to be trained but not bound"),
        ({"losses": {"location": "triplet"}}, "loss 'triplet' of location is not known"),
        ({"binding": "location", "losses": {"satellite": "range"}}, "loss 'range' of satellite needs text"),
        ({"distil_by": "l1"}, "distil_by 'l1' is not known"),
    ],
)
def test_settings_that_cannot_be_are_refused(world, settings, message):
    with pytest.raises(RequestError, match=message):
        ContrastiveObjective(small_space(), pairs_of(world), BindingSettings(**settings))
