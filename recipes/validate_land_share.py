"""What a share of land costs: records of land animals on pixels that are not shown, and sea that is.

    python recipes/validate_land_share.py --inat FOLDER

`FOLDER` as for `recipes/validate_records.py`. For each pixel size and each rule the share of the records of mammals
and birds of the land whose pixel is not shown, and the area of water shown and of land not shown, over that of land.
"centre": the pixel's centre decides.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sdm.layers.landmask import LandMask
from sdm.models.registry import list_models
from sdm.names.habitat import mask_for

SIZES = (0.01, 0.05, 0.25, 1.0)
SHARES = (0.5, 0.25, 0.1, 0.05, 0.0)
PLACES = 1_000_000
"""Random places of the globe, even by area."""


def records_of_the_land(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lon, lat, group) of the records of mammals and birds that are masked to land."""
    groups = {t.name: t.group for model in list_models() for t in model.taxa if mask_for(t) == "land"}
    with np.load(folder / "occurrences.npz") as data:
        names = dict(zip(data["taxon_ids"].tolist(), data["taxon_names"].tolist(), strict=True))
        group = np.array([groups.get(names[number], "") for number in data["taxon_id"].tolist()])
        lat, lon = data["lat_lon"].T.astype(np.float64)
    known = np.isin(group, ["mammal", "bird"])
    return lon[known], lat[known], group[known]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inat", required=True, type=Path)
    lon, lat, group = records_of_the_land(parser.parse_args().inat)
    rng, mask = np.random.default_rng(0), LandMask()
    x, y = rng.uniform(-180, 180, PLACES), np.degrees(np.arcsin(rng.uniform(-1, 1, PLACES)))
    land = mask.keep("land", x, y)
    print(f"{(group == 'mammal').sum()} records of mammals, {(group == 'bird').sum()} of birds")
    print("pixel, rule: % of records of mammals, of birds not shown; water shown, land not shown, % of land")
    for size in SIZES:

        def centre(a: np.ndarray, size: float = size) -> np.ndarray:
            return (np.floor(a / size) + 0.5) * size

        at = mask.keep("land", centre(lon), centre(lat)), mask.keep("land", centre(x), centre(y))
        rules = {"centre": at} | {
            f"{share:g}": tuple(
                mask.keep_pixels("land", centre(a), centre(b), (size, size), share) for a, b in ((lon, lat), (x, y))
            )
            for share in SHARES
        }
        for rule, (shown, drawn) in rules.items():
            lost = [100 * (~shown[group == kind]).mean() for kind in ("mammal", "bird")]
            areas = [100 * (drawn & ~land).sum() / land.sum(), 100 * (~drawn & land).sum() / land.sum()]
            print(f"{size:g}, {rule}: {lost[0]:.1f}, {lost[1]:.1f}; {areas[0]:.1f}, {areas[1]:.1f}")


if __name__ == "__main__":
    main()
