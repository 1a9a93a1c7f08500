"""The floor plan: which parts of the package may import which, and what each must not load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sdm

ROOT = Path(sdm.__file__).parent
REPOSITORY = ROOT.parent

LEVELS = [
    {"_version", "errors"},
    {"request", "files", "names"},
    {"grid", "layers", "outputs", "models"},
    {"engine"},
    {"index", "records", "evaluation"},
    {"maps", "training", "analysis"},
    {"serve", "__init__"},
    {"cli"},
    {"__main__"},
]
"""Bottom to top: a part imports only from itself and from lower levels. docs/architecture.md has the picture."""

HEAVY = ("torch", "rasterio", "dask", "distributed", "geopandas", "xarray", "folium", "zarr", "pandas", "typer", "rich")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def part(module: str) -> str:
    """The part of the package a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module of sdm) of every import statement in a file: those inside functions and for types only, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sdm":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "sdm")


def test_there_are_few_parts_and_each_has_its_level():
    parts = {part(module) for module in MODULES}
    assert parts == set().union(*LEVELS)
    assert len(parts) <= 20 and len(LEVELS) <= 9


def test_imports_point_downwards():
    level = {name: k for k, names in enumerate(LEVELS) for name in names}
    upward, seen = [], 0
    for module, path in MODULES.items():
        for line, target in imports(path):
            seen += 1
            own, other = part(module), part(target)
            if own != other and level[other] >= level[own]:
                upward.append(f"{path.relative_to(REPOSITORY)}:{line} imports {target}")
    assert seen > 500
    assert upward == []


def test_no_circle_of_files():
    graph = {module: {target for _, target in imports(path)} - {module} for module, path in MODULES.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' -> '.join(error.args[1])}")
    assert len(order) >= len(MODULES)


def test_a_circle_would_be_seen():
    """The graph is real: the known chain from the command line to the version lies in it."""
    reached, todo = set(), ["sdm.cli.map"]
    while todo:
        module = todo.pop()
        if module in reached or module not in MODULES:
            continue
        reached.add(module)
        todo += [target for _, target in imports(MODULES[module])]
    assert {"sdm.engine.tile", "sdm.maps.plan", "sdm._version"} <= reached


def test_functions_fit_on_a_screen():
    longest = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > 60
    ]
    assert longest == []


def test_hand_made_layout_is_rare():
    files = [f for folder in ("sdm", "tests", "recipes", "benchmarks") for f in (REPOSITORY / folder).rglob("*.py")]
    marks = [f for f in files for line in f.read_text(encoding="utf-8").splitlines() if line.endswith("fmt: " + "skip")]
    assert len(marks) <= 15


def test_an_option_is_declared_once():
    """What `satellite_step` took 144 lines for once: its field, its check, and where it is used."""
    lines = {
        path: sum("satellite_step" in line for line in path.read_text(encoding="utf-8").splitlines())
        for path in MODULES.values()
    }
    assert 1 <= sum(map(bool, lines.values())) <= 4
    assert sum(lines.values()) <= 8


def loaded(statement: str) -> set[str]:
    """Top-level packages in sys.modules of a fresh interpreter after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def all_of(name: str) -> str:
    """A statement that imports every module of a part."""
    return f"import {', '.join(m for m in MODULES if m == f'sdm.{name}' or m.startswith(f'sdm.{name}.'))}"


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import sdm", {*HEAVY, "numpy"}),
        ("import sdm.errors, sdm.names, sdm.names.habitat, sdm.files.paths, sdm.request", {*HEAVY, "numpy"}),
        ("import sdm.models.bundled, sdm.models.registry", {*HEAVY, "numpy"}),
        ("import sdm.grid", {"torch", "rasterio", "xarray", "geopandas", "zarr", "folium", "typer"}),
        (all_of("models.encoders") + ", sdm.models.score", {"rasterio", "dask", "geopandas", "xarray", "odc"}),
        (all_of("layers"), {"torch", "dask", "xarray", "zarr", "folium", "typer"}),
        (all_of("outputs"), {"torch", "typer"}),
        ("import sdm.engine.tile", {"torch", "folium", "zarr", "typer", "rich"}),
        ("import sdm.maps.plan, sdm.maps.write", {"torch", "folium", "zarr", "typer", "rich", "distributed"}),
        ("import sdm.index", {"torch", "rasterio", "folium", "typer", "rich", "distributed"}),
        ("import sdm.cli", {"torch", "rasterio", "dask", "geopandas", "xarray", "numpy", "pandas", "folium"}),
    ],
    ids=lambda v: v.split(",")[0] if isinstance(v, str) else "",
)
def test_what_a_part_never_loads(statement, never):
    assert not loaded(statement) & never


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("outputs", {"torch"}),
        ("models/encoders", {"rasterio", "dask"}),
        ("layers", {"torch", "dask"}),
        ("names", {*HEAVY, "numpy"}),
        ("request", {*HEAVY, "numpy"}),
    ],
)
def test_not_even_inside_a_function(package, never):
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.partition(".")[0] for n in named} & never, f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", ["mammals-trees", "birds"])
def test_a_model_is_loaded_without_the_compiler_of_torch(name):
    """Torch imports it, a second and more, for arithmetic on the meta device, where a model awaits its weights."""
    code = (
        f"import sys, sdm; sdm.Model.open({name!r}).load();"
        "print(*(m for m in ('torch._dynamo', 'sympy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
