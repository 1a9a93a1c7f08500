"""The direction of imports: bottom to top, heavy libraries only where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdm

HEAVY = (
    "torch",
    "rasterio",
    "dask",
    "distributed",
    "geopandas",
    "xarray",
    "folium",
    "zarr",
    "pandas",
    "typer",
    "rich",
)
ROOT = Path(sdm.__file__).parent


def loaded(statement):
    """Top-level packages in sys.modules of a fresh interpreter after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def modules(package):
    """All modules of a package, by dotted name."""
    return [
        ".".join(("sdm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def test_importing_the_package_is_light():
    assert not loaded("import sdm") & {*HEAVY, "numpy"}


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import sdm.errors, sdm.names, sdm.files.paths, sdm.request.months, sdm.names.habitat", {*HEAVY, "numpy"}),
        ("import sdm.grid", {"torch", "rasterio", "xarray", "geopandas", "zarr", "folium", "typer"}),
        ("import sdm.model", {*HEAVY, "numpy"}),
        (
            f"import {', '.join(modules('encoders'))}, sdm.models.score",
            {"rasterio", "dask", "geopandas", "xarray", "odc"},
        ),
        (f"import {', '.join(modules('layers'))}", {"torch", "dask", "xarray", "zarr", "folium", "typer"}),
        (f"import {', '.join(modules('outputs'))}", {"torch", "typer"}),
        ("import sdm.engine", {"torch", "folium", "zarr", "typer", "rich"}),
        ("import sdm.api", {"torch", "folium", "zarr", "typer", "rich", "distributed"}),
        ("import sdm.index", {"torch", "rasterio", "folium", "typer", "rich", "distributed"}),
        ("import sdm.cli", {"torch", "rasterio", "dask", "geopandas", "xarray", "numpy", "pandas", "folium"}),
    ],
    ids=lambda v: v.split(",")[0] if isinstance(v, str) else "",
)
def test_what_a_part_never_loads(statement, never):
    assert not loaded(statement) & never


LAYERS = [
    {"__main__"},
    {"cli"},
    {"training", "serve"},
    {"evaluation"},
    {"batch"},
    {"api"},
    {"queries"},
    {"index"},
    {"request", "choice"},
    {"relative", "points"},
    {"outputs", "engine", "schedule"},
    {"inputs"},
    {"model", "habitat", "cluster"},
    {"published"},
    {"encoders", "score", "suitability"},
    {"grid"},
    {"layers"},
    {"media", "embeddings"},
    {"names", "season", "coverage"},
    {"errors", "resources"},
]
"""Top to bottom: a module imports only from its own package and from levels below its own."""


def imports(path):
    """(line, imported top-level part of sdm) of every import statement in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sdm":
            parts = [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            parts = [a.name.split(".")[1] for a in node.names if a.name.startswith("sdm.")]
        else:
            continue
        yield from ((node.lineno, part) for part in parts)


def test_every_module_has_its_level():
    found = {
        p.stem if p.is_file() else p.name for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert found - {"__init__"} == set().union(*LAYERS)


def test_imports_point_downwards():
    level = {name: k for k, names in enumerate(LAYERS) for name in names}
    upward, seen = [], 0
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own == "__init__":  # the facade, whose imports are for type checkers
            continue
        for line, part in imports(path):
            seen += 1
            if part in level and part != own and level[part] <= level[own]:
                upward.append(f"{path.relative_to(ROOT)}:{line} imports sdm.{part}")
    assert seen > 50
    assert upward == []


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("outputs", {"torch"}),
        ("encoders", {"rasterio", "dask"}),
        ("layers", {"torch", "dask"}),
        ("names", {*HEAVY, "numpy"}),
    ],
)
def test_not_even_inside_a_function(package, never):
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.partition(".")[0] for n in named} & never, f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", ["mammals-trees", "birds"])
def test_a_model_is_loaded_without_the_compiler_of_torch(name):
    """Torch imports it, a second and more, for arithmetic on the meta device, where a model awaits its weights."""
    code = (
        f"import sys, torch; from sdm.models.bundled import Model; Model.open({name!r}).load();"
        "print(*(m for m in ('torch._dynamo', 'sympy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
