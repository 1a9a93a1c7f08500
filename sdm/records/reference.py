"""Countries for checking coordinates: codes and names, outlines, centroids, capitals."""

from __future__ import annotations

import csv
import re
import unicodedata
from functools import cache

import numpy as np
import shapely

from sdm.files.release import data_file
from sdm.records.sphere import EARTH_KM, distance_km

# Territories that have an outline of their own beside the state in whose name records of them are often given.
_INCLUDES = {
    "AU": ("NF", "HM", "CC", "CX"),
    "CN": ("TW", "HK", "MO"),
    "CY": ("",),
    "DK": ("GL", "FO"),
    "FI": ("AX",),
    "FR": ("NC", "PF", "WF", "PM", "BL", "MF", "TF"),
    "GB": ("IM", "JE", "GG", "AI", "BM", "FK", "IO", "KY", "MS", "PN", "SH", "GS", "TC", "VG"),
    "IL": ("PS",),
    "IN": ("",),
    "MA": ("EH",),
    "NL": ("AW", "CW", "SX"),
    "NZ": ("CK", "NU"),
    "PK": ("IN", ""),
    "PS": ("IL",),
    "RS": ("",),
    "SO": ("",),
    "US": ("PR", "GU", "VI", "MP", "AS"),
    "XK": ("RS", ""),
}
"""By code; "": areas that ISO 3166-1 gives no code."""

_ALSO = {"UA": shapely.box(32.4, 44.3, 36.7, 46.3)}
"""Crimea, which the outlines do not have in Ukraine."""

_NAMES = {
    "usa": "US",
    "unitedstatesofamerica": "US",
    "uk": "GB",
    "greatbritain": "GB",
    "england": "GB",
    "scotland": "GB",
    "wales": "GB",
    "northernireland": "GB",
    "russianfederation": "RU",
    "ivorycoast": "CI",
    "czechrepublic": "CZ",
    "burma": "MM",
    "swaziland": "SZ",
    "macedonia": "MK",
    "korearepublicof": "KR",
    "republicofkorea": "KR",
    "vietnam": "VN",
    "iranislamicrepublicof": "IR",
    "boliviaplurinationalstateof": "BO",
    "venezuelabolivarianrepublicof": "VE",
    "tanzaniaunitedrepublicof": "TZ",
    "unitedrepublicoftanzania": "TZ",
    "capeverde": "CV",
    "caboverde": "CV",
    "easttimor": "TL",
    "turkiye": "TR",
    "holland": "NL",
    "brasil": "BR",
    "deutschland": "DE",
    "espana": "ES",
    "mexico": "MX",
    "congodemocraticrepublicofthe": "CD",
    "syrianarabrepublic": "SY",
    "laopeoplesdemocraticrepublic": "LA",
    "moldovarepublicof": "MD",
    "taiwanprovinceofchina": "TW",
    "bahamas": "BS",
}
"""Names of countries that neither GeoNames nor Natural Earth has, as `plain` writes them."""


def plain(name: str) -> str:
    """A name without case, accents, spaces and punctuation."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^a-z]+", "", letters.lower())


@cache
def _nations() -> list[dict[str, str]]:
    with data_file("nations.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def _outlines() -> tuple[list[str], list[str], list[shapely.Geometry]]:
    """(ISO 3166-1 two-letter codes, "" for none; names; outlines) of the bundled file."""
    import pyogrio

    numeric = {row["iso_n3"]: row["iso_a2"] for row in _nations() if row["iso_n3"]}
    _, _, shapes, (codes, names) = pyogrio.raw.read(data_file("countries.fgb"), columns=["iso_n3", "name"])
    alpha = [numeric.get(code, "") if isinstance(code, str) else "" for code in codes]
    return alpha, list(names), list(shapely.from_wkb(shapes))


@cache
def _codes() -> dict[str, str]:
    codes = {plain(row[column]): row["iso_a2"] for row in _nations() for column in ("name", "iso_a3")}
    alpha, names, _ = _outlines()
    codes |= {plain(name): code for code, name in zip(alpha, names, strict=True) if code}
    return codes | _NAMES


def country_code(text: str) -> str:
    """ISO 3166-1 two-letter code for a code or an English name of a country; "" where it is not known."""
    text = text.strip()
    if len(text) == 2 and text.isascii():
        code = {"UK": "GB", "EL": "GR"}.get(text.upper(), text.upper())
        return code if any(row["iso_a2"] == code for row in _nations()) else ""
    return _codes().get(plain(text), "")


@cache
def country_area(code: str) -> shapely.Geometry | None:
    """Outline (lon, lat) within which records of a country may lie; None where there is none."""
    alpha, _, shapes = _outlines()
    if code != "XK" and code not in alpha:
        return None
    wanted = {code, *_INCLUDES.get(code, ())}
    parts = [shape for other, shape in zip(alpha, shapes, strict=True) if other in wanted]
    if code in _ALSO:
        parts.append(_ALSO[code])
    return shapely.union_all(parts) if len(parts) > 1 else parts[0]


@cache
def land() -> shapely.STRtree:
    """Outlines of all countries."""
    return shapely.STRtree(_outlines()[2])


@cache
def capitals() -> np.ndarray:
    """(N, 2) lon, lat of the centres of capitals."""
    return np.array([(float(row["longitude"]), float(row["latitude"])) for row in _nations() if row["longitude"]])


@cache
def centroids() -> np.ndarray:
    """(N, 2) lon, lat of the centroids of countries, and of the largest part of each."""
    _, _, shapes = _outlines()
    largest = [max(shapely.get_parts(shape), key=shapely.area) for shape in shapes]
    points = shapely.centroid([*shapes, *largest])
    return np.unique(np.round(shapely.get_coordinates(points), 5), axis=0)


def near(lon: np.ndarray, lat: np.ndarray, places: np.ndarray, km: float) -> np.ndarray:
    """(N,) bool: points, in degrees, at most `km` from any of the (M, 2) places (lon, lat)."""
    order = np.argsort(lat)
    x, y = lon[order], lat[order]
    band = np.degrees(km / EARTH_KM)
    first, last = np.searchsorted(y, places[:, 1] - band), np.searchsorted(y, places[:, 1] + band, side="right")
    close = np.zeros(len(lon), bool)
    for (px, py), i, j in zip(places, first, last, strict=True):
        close[i:j] |= distance_km(x[i:j], y[i:j], px, py) <= km
    result = np.zeros(len(lon), bool)
    result[order] = close
    return result
