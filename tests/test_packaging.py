"""What a release is made of says the same everywhere: version, dependencies, notebooks, navigation."""

import json
import re
import tomllib
import zlib
from pathlib import Path

import pytest

from sdm import __version__

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def requirement(line):
    """("dask", ">=2024.12") of "dask[array]>=2024.12"."""
    name, bounds = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*(.*)", line).groups()
    return name, bounds


def test_the_version_is_the_same_everywhere():
    assert re.search(r"(?m)^version: (.+)$", (ROOT / "CITATION.cff").read_text())[1] == __version__
    assert f'version: "{__version__}"' in (ROOT / "packaging" / "recipe.yaml").read_text()
    released = re.findall(r"(?m)^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text())
    assert released[0] == __version__


def test_conda_installs_what_pip_does():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = dict(map(requirement, declared))
    wanted["distributed"] = wanted["dask"]  # an extra of dask for pip, a package of its own for conda
    run = (ROOT / "packaging" / "recipe.yaml").read_text().split("  run:\n")[1].split("\n\n")[0]
    found = dict(requirement(line.strip("- ")) for line in run.splitlines())
    assert found.pop("python") == ">=3.11,<3.14"
    assert found == {CONDA_NAMES.get(name, name): bounds for name, bounds in wanted.items()}


def test_zenodo_reads_its_metadata():
    metadata = json.loads((ROOT / ".zenodo.json").read_text())
    assert metadata["upload_type"] == "software" and metadata["license"] == "Apache-2.0" and metadata["creators"]


def test_every_page_of_the_documentation_is_in_its_navigation():
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/-]+\.md", text))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == listed


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_is_a_notebook_too(page):
    names = {}
    exec((ROOT / "docs" / "_hooks" / "notebooks.py").read_text(), names)
    made = names["notebook"](page.read_text())
    code = "\n".join(cell["source"] for cell in made["cells"] if cell["cell_type"] == "code")
    assert made["nbformat"] == 4
    assert "taxabind-map" in code or "sdm." in code
    shown = "".join(cell["source"] for cell in made["cells"])
    for line in page.read_text().splitlines():
        assert line.strip() in shown or line.startswith("```")


def test_the_wheel_is_small_enough_for_the_index():
    """PyPI takes files up to 100 MB. Deflated least, so the wheel itself is a little smaller."""
    kept = [ROOT / kind for kind in ("sdm", "models", "data", "recipes")]
    files = [p for folder in kept for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(len(zlib.compress(path.read_bytes(), 1)) for path in files) < 95e6
