"""Patching: blends of states, searches against brute force, model folders and published checkpoints."""

import csv
from itertools import product

import numpy as np
import pytest
import torch

from sdm.errors import ModelError, OutputError, RequestError
from sdm.files.paths import folder
from sdm.training.checkpoint_patching.blending import average, blend
from sdm.training.checkpoint_patching.patch import BlendSettings, patch, validation_by_dataset, validation_by_recipe
from sdm.training.checkpoint_patching.report import write_report
from sdm.training.checkpoint_patching.search import AlphaSearch
from sdm.training.measures.scores import average_precision
from sdm.training.measures.validation import average_precisions
from sdm.training.spaces import BundledSpace, open_space, read_states
from tests.training.tiny import TAXA

GRID = np.linspace(0, 1, 11).round(2).tolist()


def state(seed, **more):
    g = torch.Generator().manual_seed(seed)
    return {"net.weight": torch.randn(4, 3, generator=g), "net.bias": torch.randn(4, generator=g), **more}


def test_blend_is_the_formula_and_exact_at_its_ends():
    a, b = state(0), state(1)
    for alpha in (0.3, 0.75):
        mixed = blend([a, b], [1 - alpha, alpha])
        for key in a:
            assert torch.allclose(mixed[key], (1 - alpha) * a[key] + alpha * b[key], atol=1e-7)
    b["net.bias"] += float("inf")  # an end takes nothing of the other: not even 0 * inf
    assert all(torch.equal(blend([a, b], [1.0, 0.0])[k], a[k]) for k in a)
    assert all(torch.equal(blend([a, b], [0.0, 1.0])[k], b[k]) for k in a)


def test_blend_keeps_types_counters_and_frozen_features():
    frozen = torch.randn(3, 5)
    a = {k: v.half() for k, v in state(0).items()} | {"frequencies": frozen, "steps": torch.tensor(3)}
    b = {k: v.half() for k, v in state(1).items()} | {"frequencies": frozen, "steps": torch.tensor(9)}
    mixed = blend([a, b], [0.4, 0.6])
    assert mixed["net.weight"].dtype == torch.float16 and torch.equal(mixed["frequencies"], frozen)
    assert int(mixed["steps"]) == 9 and int(blend([a, b], [0.6, 0.4])["steps"]) == 3
    with pytest.raises(ModelError, match="location encoder cannot be patched: frequencies differs"):
        blend([a, b | {"frequencies": frozen + 1e-3}], [0.5, 0.5], "the location encoder")


def test_what_does_not_fit_is_refused():
    a = state(0)
    with pytest.raises(ModelError, match=r"architectures differ, net.bias has the shape \(4,\) in one and \(5,\)"):
        blend([a, a | {"net.bias": torch.zeros(5)}], [0.5, 0.5])
    with pytest.raises(ModelError, match="architectures differ, only one has more"):
        blend([a, a | {"more": torch.zeros(5)}], [0.5, 0.5])
    with pytest.raises(RequestError, match="'audio' is not in both models; patch any of text"):
        AlphaSearch({"text": a, "audio": a}, [{"text": a}], Bowl({}), ["audio"])
    with pytest.raises(ModelError, match="only one has more"):  # before anything is evaluated
        AlphaSearch({"text": a}, [{"text": a | {"more": torch.zeros(5)}}], Bowl({}))


def test_average():
    states = [state(s) for s in range(3)]
    mean = average(states)
    assert torch.allclose(mean["net.weight"], sum(s["net.weight"] for s in states) / 3, atol=1e-6)


def test_average_precision_is_that_of_the_evaluation():
    rng = np.random.default_rng(0)
    score = rng.normal(size=(80, 12)).round(1)  # with ties
    present = rng.random((80, 12)) < 0.2
    expected = [average_precision(score[:, j], present[:, j]) for j in range(12)]
    found = average_precisions(torch.from_numpy(score), torch.from_numpy(present))
    assert found.numpy() == pytest.approx(expected, rel=1e-6)


class Bowl:
    """A metric with a known best point: encoders of one weight, which is the alpha itself."""

    metric = "height"

    def __init__(self, best, coupling=0.0):
        self.best, self.coupling, self.embedded = best, coupling, []

    def embed(self, modality, state):
        self.embedded.append((modality, *state["w"].tolist()))
        return state["w"]

    def score(self, embeddings):
        off = torch.cat([embeddings[m] - torch.tensor(b) for m, b in self.best.items()])
        return 1.0 - float((off**2).sum() + self.coupling * off.sum() ** 2)


def bowl(best, coupling=0.0, **tuned):
    locked = {m: {"w": torch.zeros(len(b))} for m, b in best.items()}
    ends = [{m: {"w": torch.eye(len(b))[k]} for m, b in best.items() if k < len(b)} for k in range(2)]
    ends = [e for e in ends if e]
    validation = Bowl(best, coupling)
    return AlphaSearch(locked, ends, validation, log=lambda line: None), validation


def test_searches_against_brute_force():
    search, validation = bowl({"text": [0.31], "satellite": [0.72]})
    assert search.sequential(GRID) == (0.3, 0.7)
    assert search.one(GRID) == (0.0, 0.7)
    assert search.together(GRID) == (0.5, 0.5)
    everything = {p: search.score(p) for p in product(GRID, GRID)}
    assert max(everything, key=everything.get) == (0.3, 0.7)
    # 11 states of each modality, embedded once each, whatever was asked.
    assert len(validation.embedded) == len(set(validation.embedded)) == 22


def test_joint_finds_what_a_sequence_cannot():
    """Modalities that pull each other: the best alpha of one depends on that of the other."""
    search, _ = bowl({"text": [0.33], "satellite": [0.78]}, coupling=6.0)
    in_turn = search.score(search.sequential(GRID))
    point = search.joint(GRID)
    assert search.score(point) > in_turn + 0.02
    assert point == pytest.approx((0.33, 0.78), abs=0.04)


def test_alphas_of_several_fine_tuned_states_stay_on_their_simplex():
    search, _ = bowl({"text": [0.8, 0.9], "satellite": [0.4]})  # the best is outside
    assert search.names == ["text 1", "text 2", "satellite"]
    point = search.joint(GRID)
    text = search.shares("text", point)
    assert sum(text.values()) == pytest.approx(1.0, abs=0.02)
    assert (text[0], text[1]) == pytest.approx((0.45, 0.55), abs=0.1)
    assert all(0 <= a <= 1 for t in search.trials for a in t.alphas if np.isfinite(t.score))


def test_report(tmp_path):
    pytest.importorskip("matplotlib")
    search, _ = bowl({"text": [0.31], "satellite": [0.72]})
    write_report(search, search.sequential(GRID), tmp_path)
    rows = list(csv.DictReader((tmp_path / "patching.csv").open()))
    assert list(rows[0]) == ["step", "alpha text", "alpha satellite", "height"]
    best = max(rows, key=lambda r: float(r["height"]))
    assert float(best["height"]) == pytest.approx(1 - 0.01**2 - 0.02**2, abs=1e-6)
    assert (tmp_path / "patching.png").read_bytes().startswith(b"\x89PNG")


# Models --------------------------------------------------------------------------------------------


BINDING = '[binding]\nlosses = { location = "range", satellite = "range", environment = "range" }\n'


@pytest.mark.slow
def test_bound_locked_fine_tuned_and_patched_by_commands(tmp_path, tiny, capsys):
    """Three recipes with [binding] and `sdm patch`, from ranges to a model that maps."""
    from sdm.cli import main_sdm
    from sdm.maps.array import map_species
    from sdm.models.bundled import BundledModel

    def sdm(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["sdm", *map(str, arguments)])
            main_sdm()

    def trained(name, steps, binding, objective=""):
        recipe, out = tiny(
            steps,
            BINDING.replace("[binding]", f"[binding]\n{binding}"),
            [("[objective]", "[objective]\n" + objective)] if objective else (),
        )
        with pytest.raises(SystemExit) as done:
            sdm("train", recipe.path, "--out", out, "--run", tmp_path / name, "--stage", "develop")
        assert not done.value.code
        return tmp_path / name

    everything = 'train = ["text", "location", "satellite", "environment"]'
    first = trained("first", 120, everything)
    tuned = trained("tuned", 60, everything, f'initial = "{first.as_posix()}"')
    assert (tuned / "develop" / "curves.csv").read_text().startswith("step,loss,gradient,loss location")
    recipe, _ = tiny(20)
    with pytest.raises(SystemExit) as done:
        sdm("patch", first, tuned, "--recipe", recipe.path, "--alphas", 3, "--out", tmp_path / "patched")
    assert not done.value.code
    said = capsys.readouterr().out
    assert "alpha text" in said and "test       mean AP" in said
    model = BundledModel.open(tmp_path / "patched")
    facts = model.config["patching"]
    assert set(facts["alpha"]) == {"location", "satellite", "environment", "text"}
    assert facts["validation"]["patched"] >= max(facts["validation"]["locked"], facts["validation"]["tuned 1"]) - 1e-6
    assert model.calibration(("location",)) != BundledModel.open(first / "develop" / "model").calibration(("location",))
    assert (tmp_path / "patched" / "patching.csv").is_file()
    expected = blend(
        [s["text"] for s in (read_states(first, ["text"]), read_states(tuned, ["text"]))],
        [1 - facts["alpha"]["text"], facts["alpha"]["text"]],
    )
    found = open_space(tmp_path / "patched").states()["text"]
    assert torch.allclose(found["embedding.weight"], expected["embedding.weight"], atol=2e-3)  # half precision
    west = map_species(
        "Ursus arctos", bbox=(-110, 40, -105, 45), model=tmp_path / "patched", mask="none", resolution=1.0
    ).values
    assert np.nanmean(west) > 0.5


def bundle(folder, seed=0, width=16):
    """A small model folder."""
    config = {
        "format": "taxabind-map/1",
        "name": folder.name,
        "dim": 8,
        "domain": [-60, 90],
        "calibration": {},
        "location": {"sigmas": [1.0], "features": 4, "width": width, "depth": 1, "pitch": 0.5},
        "satellite": {"size": 4, "width": 8, "depth": 1, "pitch": 0.5, "pixel": 0.1},
        "environment": {
            "width": 8,
            "depth": 1,
            "pitch": 0.1,
            "inputs": [{"layer": "bio1", "transform": "identity", "value": 0, "mean": 1.0, "std": 1.0}],
        },
    }
    torch.manual_seed(seed)
    source = folder.parent / "names"
    source.mkdir(exist_ok=True)
    (source / "taxa.csv").write_text(TAXA)
    BundledSpace(config, ["class:Mammalia", "genus:Ursus"], source).write(folder)
    return folder


def test_models_of_other_architectures_or_another_start_are_refused(tmp_path):
    a, b, c = bundle(tmp_path / "a"), bundle(tmp_path / "b", width=24), bundle(tmp_path / "c", seed=1)
    with pytest.raises(ModelError, match=r"location encoder cannot be patched: the architectures differ, net.0.weight"):
        patch(a, [b], tmp_path / "out", None, BlendSettings("average"))
    with pytest.raises(ModelError, match="frequencies differs"):
        patch(a, [c], tmp_path / "out", None, BlendSettings("average"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(RequestError, match="mode 'joint' chooses by validation: give a recipe or a dataset"):
        patch(a, [a], tmp_path / "out", None, BlendSettings("joint"))
    with pytest.raises(RequestError, match="mode 'best' is not known"):
        patch(a, [a], tmp_path / "out", None, BlendSettings("best"))
    for named, said in ((["audio"], "modality 'audio' is not in both models"), (["text", "text"], "name one twice")):
        with pytest.raises(RequestError, match=said):
            patch(a, [a], tmp_path / "out", None, BlendSettings("average", named))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_or_asked_is_told_before_the_search(tmp_path):
    a = bundle(tmp_path / "a")

    def judge(space):
        raise AssertionError("this would have taken hours")

    (tmp_path / "file").touch()
    for out, said in ((a, "exists already; give another --out"), (tmp_path / "file" / "x", "is a file, not a folder")):
        with pytest.raises(OutputError, match=said):
            patch(a, [a], out, judge)
    recipe = str(folder("recipes") / "study.toml")
    with pytest.raises(RequestError, match="modality 'sound' is not known; choose any of location"):
        validation_by_recipe(recipe, ["location", "sound"], print)
    with pytest.raises(RequestError, match="modality 'text' cannot be queried; choose any of location"):
        validation_by_dataset("taxabench", tmp_path, "test", ["location", "text"], 10)(open_space(a))


def test_average_of_models_without_validation(tmp_path):
    a = bundle(tmp_path / "a")
    space = open_space(a)
    with torch.no_grad():
        for value in space.towers["satellite"].parameters():
            value += 1.0
    space.write(tmp_path / "b", name="b")
    facts = patch(a, [tmp_path / "b"], tmp_path / "out", None, BlendSettings("average", ["satellite"]))
    assert facts["modalities"] == ["satellite"]
    before, after = read_states(a, ["satellite", "text"]), read_states(tmp_path / "out", ["satellite", "text"])
    key = "net.0.bias"
    assert torch.allclose(after["satellite"][key], before["satellite"][key] + 0.5, atol=2e-3)
    assert torch.equal(after["text"]["embedding.weight"], before["text"]["embedding.weight"])
    with pytest.raises(OutputError, match="exists already"):
        patch(a, [tmp_path / "b"], tmp_path / "out", None, BlendSettings("average"))


def test_damaged_checkpoints_are_refused(tmp_path):
    a = bundle(tmp_path / "a")
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match=r"bad.pt' cannot be read"):
        patch(a, [tmp_path / "bad.pt"], tmp_path / "out", None, BlendSettings("average"))
    for odd in ([1, 2], {"space.towers.text.x": "a"}, {1: torch.zeros(1)}, torch.zeros(3)):
        torch.save(odd, tmp_path / "odd.pt")
        with pytest.raises(ModelError, match=r"odd.pt' cannot be read"):
            patch(a, [tmp_path / "odd.pt"], tmp_path / "out", None, BlendSettings("average"))
    (tmp_path / "evil.pt").write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelError, match=r"holds more than weights and numbers\.$"):
        patch(a, [tmp_path / "evil.pt"], tmp_path / "out", None, BlendSettings("average"))
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(RequestError, match="holds no weights of location, satellite, environment, text"):
        patch(a, [tmp_path / "other.pt"], tmp_path / "out", None, BlendSettings("average"))
