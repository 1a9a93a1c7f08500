"""Makes the zip that QGIS installs: `python qgis/package.py [FOLDER]` writes taxabind_map-VERSION.zip there."""

import re
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLUGIN = HERE / "taxabind_map"
SUFFIXES = {".py", ".svg", ".txt"}


def version():
    """The version of taxabind-map, which is that of the plugin."""
    text = (HERE.parent / "sdm" / "_version.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "([^"]+)"', text).group(1)


def package(folder):
    """Write the zip into a folder; the same files give the same bytes. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"taxabind_map-{version()}.zip"
    files = {path.name: path.read_bytes() for path in PLUGIN.iterdir() if path.suffix in SUFFIXES}
    files["metadata.txt"] = re.sub(rb"(?m)^version=.*$", f"version={version()}".encode(), files["metadata.txt"])
    files["LICENSE"] = (HERE.parent / "LICENSE").read_bytes()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(
                zipfile.ZipInfo(f"taxabind_map/{name}", (1980, 1, 1, 0, 0, 0)), files[name], zipfile.ZIP_DEFLATED
            )
    return target


if __name__ == "__main__":
    print(package(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
