"""STAC items: the address of the true-colour raster of a satellite scene.

An item is a JSON file that describes one scene and lists its files as assets; a FeatureCollection
(the result of a STAC search) holds several items. https://github.com/radiantearth/stac-spec
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from sdm.errors import LayerError
from sdm.layers.fetch import Fetcher, Unusable, redacted, require_http

MAX_BYTES = 20_000_000
MAX_ITEMS = 500


@dataclass(frozen=True)
class Scene:
    """One raster of a STAC item."""

    href: str
    """An http(s) address or a path."""
    bbox: tuple[float, float, float, float] | None
    """(west, south, east, north) in degrees from the item; west > east across the antimeridian."""
    name: str
    credit: str
    """Providers and licence, "" when the item has none."""


def read_items(where: str, asset: str | None, fetcher: Fetcher) -> list[Scene]:
    """The scenes of an item or FeatureCollection at an address or path, in order.

    `asset`: key of the asset to use, by default "visual". Raises LayerError.
    """
    remote = "://" in where
    document = _fetch(where, fetcher) if remote else _parse_file(Path(where))
    if document is None:
        raise LayerError(f"STAC item {redacted(where)!r} does not exist; check the address.")
    is_collection = isinstance(document, dict) and document.get("type") == "FeatureCollection"
    features = document.get("features") if is_collection else [document]
    if not isinstance(features, list) or not features or len(features) > MAX_ITEMS:
        raise LayerError(f"STAC document {_label(where)!r} must hold 1 to {MAX_ITEMS} items.")
    return [_scene(feature, where, remote, asset) for feature in features]


def _fetch(url: str, fetcher: Fetcher) -> Any:
    return fetcher.get(url, _parse, max_bytes=MAX_BYTES, use_cache=False)


def _parse(body: bytes, kind: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Unusable("this is not JSON; give the address of a STAC item.") from None


def _parse_file(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LayerError(f"STAC item {str(path)!r} is larger than {MAX_BYTES:,} bytes; refused.")
        return _parse(path.read_bytes(), "")
    except OSError as error:
        raise LayerError(f"STAC item {str(path)!r} cannot be read: {error.strerror}.") from None
    except Unusable as error:
        raise LayerError(f"STAC item {str(path)!r}: {error}") from None


def _scene(item: Any, where: str, remote: bool, asset_name: str | None) -> Scene:
    label = _label(where)
    assets = item.get("assets") if isinstance(item, dict) and item.get("type") == "Feature" else None
    if not isinstance(assets, dict):
        raise LayerError(
            f"{label!r} is not a STAC item (type Feature with assets); of a collection or catalogue give one item."
        )
    asset = assets.get(asset_name or "visual")
    if not isinstance(asset, dict) or not isinstance(asset.get("href"), str):
        names = ", ".join(sorted(map(str, assets))[:12])[:200] or "none"
        raise LayerError(
            f"STAC item {label!r} has no asset {asset_name or 'visual'!r} with an href; "
            f"name one with #asset=NAME (it has: {names})."
        )
    properties = item.get("properties")
    return Scene(
        _resolve(asset["href"], where, remote),
        _bbox(item.get("bbox")),
        str(item.get("id", ""))[:100],
        _credit(properties if isinstance(properties, dict) else {}),
    )


def _resolve(href: str, where: str, remote: bool) -> str:
    """The full address or path of an href in an item. An item from the network must not point at local files."""
    scheme = urlsplit(href).scheme
    if remote or scheme in ("http", "https"):
        url = urljoin(where, href) if remote else href
        if urlsplit(url).scheme not in ("http", "https"):
            raise LayerError(
                f"STAC item {_label(where)!r} points at {href[:100]!r}, which is not http or https; "
                "give an item whose assets are (or download the file)."
            )
        require_http(url)
        if remote:
            from sdm.layers.redirects import refuse_detour

            refuse_detour(where, url, f"STAC item {_label(where)}")
        return url
    if scheme == "file":
        return unquote(urlsplit(href).path)
    if len(scheme) > 1:  # one letter is a Windows drive
        raise LayerError(
            f"STAC item {_label(where)!r} points at {href[:100]!r}; only http, https and files are read, download it."
        )
    return str(Path(where).parent / href)


def _bbox(values: object) -> tuple[float, float, float, float] | None:
    """A bbox of four or six numbers as (west, south, east, north) in degrees; None where it is missing or invalid."""
    if not isinstance(values, list) or len(values) not in (4, 6):
        return None
    try:
        west, south, east, north = (float(values[k]) for k in ((0, 1, 2, 3) if len(values) == 4 else (0, 1, 3, 4)))
    except (TypeError, ValueError):
        return None
    valid = -180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90
    return (west, south, east, north) if valid else None


def _credit(properties: dict[str, Any]) -> str:
    providers = properties.get("providers")
    names = [str(p.get("name", "")) for p in providers if isinstance(p, dict)] if isinstance(providers, list) else []
    words = [", ".join(n for n in names if n), str(properties.get("license", "") or "")]
    return "; ".join(w for w in words if w)[:200]


def _label(where: str) -> str:
    return redacted(where) if "://" in where else where
