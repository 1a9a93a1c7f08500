"""Cleaning of records: the checks of CoordinateCleaner, with one reason for each dropped row."""

from __future__ import annotations

import numpy as np
import shapely

from sdm.layers.landmask import LAND, SEA, LandMask
from sdm.records.audit import REASONS, REPAIRS, Audit, Citations
from sdm.records.raw import RawRecords
from sdm.records.reference import capitals, centroids, country_area, country_code, land, near
from sdm.records.sphere import EARTH_KM, distance_km
from sdm.request.records import CleanOptions

ZERO_DEGREES = 0.5
"""Radius around (0, 0) within which coordinates are taken for missing ones."""
BORDER_KM = 20.0
"""So far outside the generalised outline of its country a record still counts as in it."""
WATERS_KM = 400.0
"""So far from its country a record at sea counts as in its waters (200 nautical miles, and the border), unless the
habitat is land."""
_PIXEL_KM = 2.0
"""Size of a pixel of the land mask."""
_AT_ONCE = 10_000
DECIMALS = 5
"""Places are the same where coordinates agree to so many decimals."""


def clean_rows(raw: RawRecords, options: CleanOptions | None = None) -> tuple[Audit, np.ndarray]:
    """Check the rows of one species, in the order of `REASONS`.

    Parameters
    ----------
    raw
        The rows of one species.
    options
        Which checks are made; by default those of `CleanOptions()`.

    Returns
    -------
    (Audit, (N,) bool)
        What became of each row, and the rows that are kept.
    """
    options = CleanOptions() if options is None else options
    checks = _Checks(raw, options)
    checks.run()
    kept = checks.reason == 0
    unknown = int(np.isnan(raw.rows["uncertainty_m"][kept]).sum())
    audit = Audit(
        source=raw.source,
        species=raw.species,
        row=raw.rows["row"],
        given=raw.given.select(["species", "lon", "lat"]),
        present=raw.rows["present"],
        reason=checks.reason,
        repair=checks.repair,
        lon=np.where(kept, checks.lon, np.nan),
        lat=np.where(kept, checks.lat, np.nan),
        unknown_uncertainty=unknown,
        other_species=raw.others,
        columns=raw.columns,
        notes=raw.notes,
        citations=_citations(raw, kept),
    )
    return audit, kept


class _Checks:
    """The checks of some rows, one after the other; each sees only the rows that are still there."""

    def __init__(self, raw: RawRecords, options: CleanOptions) -> None:
        self.raw, self.options = raw, options
        self.lon, self.lat = raw.rows["lon"].copy(), raw.rows["lat"].copy()
        self.reason = np.zeros(len(raw), np.int8)
        self.repair = np.zeros(len(raw), np.int8)

    def run(self) -> None:
        """Make all checks that are not switched off."""
        rows, options = self.raw.rows, self.options
        self._drop("unreadable row", rows["unreadable"])
        self._drop("presence not stated", ~rows["stated"])
        missing = np.isnan(self.lon) | np.isnan(self.lat)
        self._drop("no coordinates", missing & ~rows["not_number"])
        self._drop("not a number", rows["not_number"])
        if options.drop_zero:
            self._drop("zero coordinates", np.hypot(self.lon, self.lat) <= ZERO_DEGREES)
            self._drop("equal longitude and latitude", np.abs(self.lon) == np.abs(self.lat))
        elsewhere = self._compare_countries() if options.check_country else np.zeros(len(self.raw), bool)
        self._drop("out of range", ~((np.abs(self.lon) <= 180) & (np.abs(self.lat) <= 90)))
        self._drop("not in its country", elsewhere)
        self._check_facts()
        self._check_places()
        self._check_habitat()
        if options.drop_duplicates:
            self._drop_duplicates()

    def _drop(self, reason: str, rows: np.ndarray) -> None:
        self.reason[rows & (self.reason == 0)] = REASONS.index(reason)

    def _check_facts(self) -> None:
        rows, options = self.raw.rows, self.options
        if options.drop_fossils:
            self._drop("fossil", rows["fossil"])
        if options.drop_captive:
            self._drop("captive or cultivated", rows["captive"])
        if options.first_year is not None:
            self._drop("before the first year", (rows["year"] > 0) & (rows["year"] < options.first_year))
        if options.max_uncertainty_m:
            # Where it is unknown the comparison is false.
            self._drop("uncertain location", rows["uncertainty_m"] > options.max_uncertainty_m)

    def _check_places(self) -> None:
        options = self.options
        if options.centroid_km:
            self._drop_near("country centroid", centroids(), options.centroid_km)
        if options.capital_km:
            self._drop_near("capital", capitals(), options.capital_km)

    def _drop_near(self, reason: str, places: np.ndarray, km: float) -> None:
        index = np.flatnonzero(self.reason == 0)
        # Absences are places that were visited: nobody puts one into a country as a whole.
        index = index[self.raw.rows["present"][index]]
        self.reason[index[near(self.lon[index], self.lat[index], places, km)]] = REASONS.index(reason)

    def _check_habitat(self) -> None:
        habitat = self.options.habitat
        if habitat in ("none", "auto"):
            return
        index = np.flatnonzero(self.reason == 0)
        mask = LandMask()
        wrong = index[_wrong_side(mask, habitat, self.lon[index], self.lat[index])]
        for part in np.array_split(wrong, max(1, len(wrong) // _AT_ONCE)):
            lon, lat = _around(self.lon[part], self.lat[part], self.options.shore_km)
            far = _wrong_side(mask, habitat, lon, lat).all(axis=1)
            self.reason[part[far]] = REASONS.index("at sea" if habitat == "land" else "on land")

    def _drop_duplicates(self) -> None:
        index = np.flatnonzero(self.reason == 0)
        x, y = (np.round(values[index] * 10**DECIMALS).astype(np.int64) for values in (self.lon, self.lat))
        place = ((y + 90 * 10**DECIMALS) * (361 * 10**DECIMALS) + x + 180 * 10**DECIMALS) * 2
        _, first = np.unique(place + self.raw.rows["present"][index], return_index=True)
        again = np.ones(len(index), bool)
        again[first] = False
        self.reason[index[again]] = REASONS.index("duplicate")

    def _compare_countries(self) -> np.ndarray:
        """(N,) bool: not in its country, not even after a repair; `lon`, `lat` and `repair` are changed by repairs."""
        elsewhere = np.zeros(len(self.raw), bool)
        column = self.raw.given.column("country").combine_chunks()
        indices = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        codes = [country_code(text or "") for text in column.dictionary.to_pylist()]
        for code in sorted({code for code in codes if code}):
            area = country_area(code)
            if area is None:
                continue
            named = [i for i, other in enumerate(codes) if other == code]
            index = np.flatnonzero(np.isin(indices, named) & (self.reason == 0))
            elsewhere[self._elsewhere(index, area)] = True
        return elsewhere

    def _elsewhere(self, index: np.ndarray, area: shapely.Geometry) -> np.ndarray:
        """Those rows of `index` that are outside `area` (lon, lat), their country, and stay there."""
        shapely.prepare(area)
        outside = index[~_inside(area, self.lon[index], self.lat[index])]
        outside = outside[~_close(area, self.lon[outside], self.lat[outside], BORDER_KM)]
        if self.options.habitat != "land":
            # Its waters may be meant, which reach far out.
            at_sea = _on_open_sea(self.lon[outside], self.lat[outside])
            at_sea[at_sea] = _close(area, self.lon[outside[at_sea]], self.lat[outside[at_sea]], WATERS_KM)
            outside = outside[~at_sea]
        lon, lat = self.lon[outside], self.lat[outside]
        trials = ((lat, lon), (-lon, lat), (lon, -lat), (lon - 360.0, lat))
        fits = np.array([_inside(area, x, y) for x, y in trials])
        # Where two exchanges would do, nobody knows which is right.
        one = fits.sum(axis=0) == 1
        for number, (x, y) in enumerate(trials, 1):
            mended = one & fits[number - 1]
            self.lon[outside[mended]], self.lat[outside[mended]] = x[mended], y[mended]
            self.repair[outside[mended]] = number
        assert len(trials) == len(REPAIRS) - 1
        return outside[~one]


def _inside(area: shapely.Geometry, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    return shapely.contains_xy(area, lon, lat)


def _close(area: shapely.Geometry, lon: np.ndarray, lat: np.ndarray, km: float) -> np.ndarray:
    """(N,) bool: within some km of the outline; never where out of range."""
    close = np.zeros(len(lon), bool)
    west, south, east, north = area.bounds
    reach = np.degrees(km / EARTH_KM)
    wide = reach / np.maximum(np.cos(np.radians(np.clip(lat, -89, 89))), 0.01)
    candidates = (np.abs(lat) <= 90) & (np.abs(lon) <= 180) & (lat >= south - reach) & (lat <= north + reach)
    index = np.flatnonzero(candidates & (lon >= west - wide) & (lon <= east + wide))
    if len(index):
        line = shapely.shortest_line(shapely.points(lon[index], lat[index]), area)
        ends = shapely.get_coordinates(line).reshape(-1, 2, 2)
        close[index] = distance_km(ends[:, 0, 0], ends[:, 0, 1], ends[:, 1, 0], ends[:, 1, 1]) <= km
    return close


def _on_open_sea(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """(N,) bool: on the globe, in the outline of no country."""
    at_sea = (np.abs(lon) <= 180) & (np.abs(lat) <= 90)
    on_land, _ = land().query(shapely.points(lon, lat), predicate="intersects")
    at_sea[on_land] = False
    return at_sea


def _wrong_side(mask: LandMask, habitat: str, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """(N,) bool: at sea where the habitat is land, on land where it is the sea; lakes are both."""
    return mask.layer.nearest(lon, lat) == (SEA if habitat == "land" else LAND)


def _around(lon: np.ndarray, lat: np.ndarray, km: float) -> tuple[np.ndarray, np.ndarray]:
    """(lon, lat), each (N, K) degrees: N places, and around each others up to `km` away, about 2 km from each other."""
    steps = [(0.0, 0.0)]
    for radius in np.append(np.arange(_PIXEL_KM, km, _PIXEL_KM), km) if km > 0 else ():
        angles = np.linspace(0, 2 * np.pi, max(8, int(2 * np.pi * radius / _PIXEL_KM)), endpoint=False)
        degrees = np.degrees(radius / EARTH_KM)
        steps += [(degrees * np.sin(a), degrees * np.cos(a)) for a in angles]
    east, north = np.array(steps).T
    x = lon[:, None] + east / np.maximum(np.cos(np.radians(lat[:, None])), 0.01)
    return (x + 180) % 360 - 180, np.clip(lat[:, None] + north, -90, 90)


def _citations(raw: RawRecords, kept: np.ndarray) -> Citations:
    def tally(name: str) -> dict[str, int]:
        column = raw.given.column(name).combine_chunks()
        numbers = column.indices.fill_null(len(column.dictionary)).to_numpy(zero_copy_only=False)
        times = np.bincount(numbers[kept], minlength=len(column.dictionary) + 1)
        words = column.dictionary.to_pylist()
        return {word: int(n) for n, word in sorted(zip(times[:-1], words, strict=True), key=lambda i: -i[0]) if n}

    keys = {
        key: count for key, count in tally("taxon_key").items() if key.isascii() and key.isdigit() and len(key) < 16
    }
    return Citations(raw.citations, raw.doi, tally("licence"), tally("dataset"), keys)
