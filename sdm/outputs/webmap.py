"""The map as one HTML file that opens without a network: Folium with everything inlined.

The page's content security policy allows only our own scripts, and requests only to the tiles of
OpenStreetMap, which are fetched only when the reader turns on that layer.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import folium
from branca.element import Element, MacroElement
from folium.map import Layer
from jinja2 import Template
from odc.geo.geobox import GeoBox

from sdm.files.atomic import disk_errors
from sdm.outputs import cube
from sdm.outputs.basemap import land_and_borders
from sdm.outputs.basemap import outline as range_outline
from sdm.outputs.escape import html_text, relative_link, script_value
from sdm.outputs.metadata import Band, MapMetadata, one_line
from sdm.outputs.overlay import LEVELS, MAX_LATITUDE, Flags, Overlay, palette, warp, warp_flags
from sdm.outputs.style import RAMP
from sdm.outputs.zarr_store import open_map

if TYPE_CHECKING:
    import shapely
    import xarray as xr
    from geopandas import GeoDataFrame

    from sdm.outputs.blocks import Source

_OSM_URL = "https://tile.openstreetmap.org/{z}/{x}/{y}.png"
_OSM_HOST = "https://tile.openstreetmap.org"
_OSM_CREDIT = '&copy; <a href="https://www.openstreetmap.org/copyright">OpenStreetMap</a> contributors'
_TICKS = 5


def write_html(
    path: Path,
    source: "xr.DataArray | cube.Layer | Path",
    metadata: MapMetadata,
    countries: "GeoDataFrame | None" = None,
    links: Mapping[str, str] | None = None,
    *,
    geobox: GeoBox | None = None,
    bands: "Sequence[Source]" = (),
    outline: "tuple[str, shapely.Geometry] | None" = None,
) -> None:
    """Write a self-contained interactive map.

    A click shows longitude, latitude and the value, rounded to the 250 steps of the image. Where a further band is
    above its limit the map is hatched, in a layer that can be switched off.

    Parameters
    ----------
    path
        File to write.
    source
        A map from `open_map`, the path of its Zarr store, or a map of a cube.
    metadata
        Its names, unit and provenance.
    countries
        Polygons in any CRS, drawn as land and borders.
    links
        Label to name of a file beside the page.
    geobox
        The grid of a source without georeference.
    bands
        The layers of `metadata.bands`, in order.
    outline
        A name and polygons in degrees, (lon, lat), whose outline is a layer that can be switched off.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    if isinstance(source, Path):
        source = open_map(source)
    if geobox is None:
        import odc.geo.xr  # noqa: F401  the .odc accessor

        if isinstance(source, cube.Layer):
            raise ValueError("a map without georeference needs a geobox")
        geobox = source.odc.geobox
    overlay = warp(source, geobox, metadata.valid_range)
    limited = [(layer, band) for layer, band in zip(bands, metadata.bands, strict=True) if band.limit is not None]
    hatch = None
    if limited:
        flags = warp_flags([layer for layer, _ in limited], [band.limit or 0.0 for _, band in limited], geobox)
        hatch = None if flags is None else _Hatch(flags, [band for _, band in limited])
    page = _page(overlay, metadata, countries, links or {}, hatch, outline)
    with disk_errors(path):
        path.write_text(page, encoding="utf-8")


def _page(
    overlay: Overlay | None,
    metadata: MapMetadata,
    countries: "GeoDataFrame | None",
    links: Mapping[str, str],
    hatch: "_Hatch | None",
    outline: "tuple[str, shapely.Geometry] | None",
) -> str:
    bounds = (-180.0, -60.0, 180.0, 75.0)
    if overlay is not None:
        bounds = (overlay.west, overlay.south, overlay.east, overlay.north)
    window, extent = viewport(bounds)
    shapes = land_and_borders(countries, window, extent) if countries is not None else None

    figure_map = _base_map(bounds, metadata.title)
    land = shapes[0] if shapes else '{"type":"GeometryCollection","geometries":[]}'
    _named(_Shapes("Land", "Plain, no network needed", land), "land").add_to(figure_map)
    osm = folium.TileLayer(
        tiles=_OSM_URL,
        attr=_OSM_CREDIT,
        name="OpenStreetMap, needs a network",
        overlay=False,
        show=False,
        max_zoom=19,
    )
    _named(osm, "osm").add_to(figure_map)
    picture = None
    if overlay is not None:
        picture = _named(_image_layer(overlay, metadata), "map").add_to(figure_map)
    if hatch is not None:
        figure: Any = figure_map.get_root()
        figure.header.add_child(_Inline("style", _asset("hatch.css")), name="hatch_style")
        figure.header.add_child(_Inline("script", _asset("hatch.js")), name="hatch_library")
        _named(hatch.over(bounds), "hatch").add_to(figure_map)
    if outline is not None:
        name, polygons = outline
        _named(_Shapes("Outline", html_text(name), range_outline(polygons, window, extent)), "outline").add_to(
            figure_map
        )
    if shapes:
        _named(_Shapes("Borders", "Coasts and borders", shapes[1]), "borders").add_to(figure_map)
    _named(folium.LayerControl(position="topright"), "layers").add_to(figure_map)
    config = _config(bounds, window, metadata, links)
    _named(_Controls(config, picture.get_name() if picture else "null"), "controls").add_to(figure_map)
    if hatch is not None:
        _named(_HatchLegend(hatch), "hatch_legend").add_to(figure_map)
    return _with_policy(figure_map.get_root().render())


def _base_map(bounds: tuple[float, float, float, float], title: str) -> folium.Map:
    """An empty map around (west, south, east, north), with styles and scripts inlined."""
    west, south, east, north = bounds
    figure_map = _OfflineMap(
        location=[(south + north) / 2, (west + east) / 2],
        zoom_start=3,
        tiles=None,
        control_scale=True,
        zoom_snap=0.25,
        max_bounds_viscosity=1.0,
        world_copy_jump=False,
    )
    figure = _named(figure_map, "sdm").get_root()
    figure.title = html_text(title)
    figure.header.add_child(_Inline("style", _leaflet_css() + _asset("webmap.css")), name="style")
    figure.header.add_child(_Inline("script", _leaflet_js() + _asset("webmap.js")), name="library")
    return figure_map


def _image_layer(overlay: Overlay, metadata: MapMetadata) -> folium.raster_layers.ImageOverlay:
    return folium.raster_layers.ImageOverlay(
        image=overlay.png_url(),
        bounds=[[overlay.south, overlay.west], [overlay.north, overlay.east]],
        name=html_text(metadata.title),
        pixelated=False,
        opacity=0.85,
        zindex=1,
        # Becomes the text of an <img>, but passes through a string in a script.
        alt=html_text(metadata.quantity),
        attribution="<br>".join(html_text(line) for line in metadata.attribution),
    )


def viewport(bounds: tuple[float, float, float, float]) -> tuple[tuple[float, float, float, float], float]:
    """The area that can be viewed, the map and a margin, and the larger side of the map, in degrees.

    Boxes are (west, south, east, north).
    """
    west, south, east, north = bounds
    extent = max(east - west, north - south)
    margin = max(1.0, 0.6 * extent)
    if east - west + 2 * margin >= 360:
        middle = (west + east) / 2
        left, right = middle - 180, middle + 180
    else:
        left, right = west - margin, east + margin
    return (left, max(south - margin, -MAX_LATITUDE), right, min(north + margin, MAX_LATITUDE)), extent


def _config(
    bounds: tuple[float, float, float, float],
    window: tuple[float, float, float, float],
    metadata: MapMetadata,
    links: Mapping[str, str],
) -> dict[str, Any]:
    """The values for the page's own script, which inserts texts as text, never as HTML."""
    low, high = metadata.valid_range
    unit = "" if metadata.unit in ("", "1") else one_line(metadata.unit)
    return {
        "title": one_line(metadata.title),
        "quantity": one_line(metadata.quantity),
        "name": one_line(metadata.variable.replace("_", " ")),
        "unit": unit,
        "low": low,
        "high": high,
        "steps": LEVELS,
        "ticks": [f"{low + (high - low) * step / (_TICKS - 1):.3g}" for step in range(_TICKS)],
        "ramp": list(RAMP),
        "palette": [red << 16 | green << 8 | blue for red, green, blue in palette()[: LEVELS + 1].tolist()],
        "bounds": [[bounds[1], bounds[0]], [bounds[3], bounds[2]]],
        "window": [[window[1], window[0]], [window[3], window[2]]],
        "links": [[one_line(label), relative_link(name)] for label, name in links.items()],
    }


class _OfflineMap(folium.Map):
    """Folium's map without the four content delivery networks it links to by default."""

    default_js: list[tuple[str, str]] = []  # noqa: RUF012  Folium's own interface
    default_css: list[tuple[str, str]] = []  # noqa: RUF012


class _Inline(Element):
    """A style or script of our own; as a value, since the braces of CSS and JavaScript would break a template."""

    _template = Template("<{{ this.tag }}>{{ this.code }}</{{ this.tag }}>")

    def __init__(self, tag: str, code: str) -> None:
        super().__init__()
        self.tag, self.code = tag, code


class _Shapes(Layer):
    """Areas under the map, or lines over it, drawn by a function of `webmap.js`."""

    _template = Template(
        "{% macro script(this, kwargs) %}"
        "var {{ this.get_name() }} = sdm{{ this._name }}({{ this._parent.get_name() }}, {{ this.shapes }});"
        "{% endmacro %}"
    )

    def __init__(self, kind: Literal["Land", "Borders", "Outline"], name: str, shapes: str) -> None:
        super().__init__(name=name, overlay=kind != "Land", show=True)
        self._name = kind
        self.shapes = shapes  # GeoJSON from shapely, which contains no foreign text


class _Hatch(Layer):
    """Hatching where the map is little to be trusted, over the map and under the lines."""

    _template = Template(
        "{% macro script(this, kwargs) %}"
        "var {{ this.get_name() }} = sdmHatch({{ this._parent.get_name() }}, {{ this.config }});"
        "{% endmacro %}"
    )

    def __init__(self, flags: Flags, bands: "Sequence[Band]") -> None:
        super().__init__(name="Low trust (hatched)", overlay=True, show=True)
        self._name = "Hatch"
        self.flags, self.bands = flags, bands
        self.config = ""

    def over(self, bounds: tuple[float, float, float, float]) -> "_Hatch":
        """The layer over a map with these bounds, (west, south, east, north)."""
        west, south, east, north = bounds
        self.config = script_value(
            {
                "mask": self.flags.png_url(),
                "bounds": [[south, west], [north, east]],
                "reasons": [_reason(band) for band in self.bands],
            }
        )
        return self


def _reason(band: Band) -> str:
    """'novelty above 95 %: the environment is unlike that of the records'."""
    unit = {"": "", "1": "", "percent": " %"}.get(band.unit, f" {band.unit}")
    caution = f": {band.caution}" if band.caution else ""
    return one_line(f"{band.name.replace('_', ' ')} above {band.limit:g}{unit}{caution}")


class _HatchLegend(MacroElement):
    """What the hatching means, in the legend and in the popup of a click."""

    _template = Template(
        "{% macro script(this, kwargs) %}sdmHatchLegend({{ this._parent.get_name() }}, {{ this.hatch }});{% endmacro %}"
    )

    def __init__(self, hatch: _Hatch) -> None:
        super().__init__()
        self._name = "HatchLegend"
        self.hatch = hatch.get_name()


class _Controls(MacroElement):
    """Legend, opacity, links and the popup of a click."""

    _template = Template(
        "{% macro script(this, kwargs) %}"
        "sdmControls({{ this._parent.get_name() }}, {{ this.picture }}, {{ this.config }});"
        "{% endmacro %}"
    )

    def __init__(self, config: dict[str, Any], picture: str) -> None:
        super().__init__()
        self._name = "Controls"
        self.config, self.picture = script_value(config), picture


def _named(element: Any, name: str) -> Any:
    """The element with a fixed name instead of Folium's random one, so that equal maps have equal bytes."""
    element._id = name
    return element


def _asset(name: str) -> str:
    return (files("sdm.outputs") / "assets" / name).read_text(encoding="utf-8")


def _leaflet_js() -> str:
    # Without its last comment, for which developer tools would request a source map.
    return re.sub(r"//# sourceMappingURL=.*", "", _asset("leaflet.js"))


def _leaflet_css() -> str:
    def inlined(match: re.Match[str]) -> str:
        name = match[1]
        if not name.startswith("layers"):
            return "none"  # the marker icon: this page has no markers
        picture = (files("sdm.outputs") / "assets" / name).read_bytes()
        return f"url(data:image/png;base64,{base64.b64encode(picture).decode('ascii')})"

    return re.sub(r"url\(images/([\w.-]+)\)", inlined, _asset("leaflet.css"))


def _with_policy(page: str) -> str:
    """The page with a content security policy that allows exactly the scripts it has now, by their hashes."""
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii") for code in scripts)
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        f"img-src data: {_OSM_HOST}; base-uri 'none'; form-action 'none'"
    )
    head = (
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    )
    return page.replace("<html>\n<head>", head, 1)
