"""Means and standard deviations that stand in for WorldClim's, of the bundled layers.

    python recipes/worldclim_approx.py --out data/worldclim-approx.toml

The published TaxaBind model reads WorldClim 2.1, standardised over its cells of 5 arc-minutes. Where a user has no
WorldClim, `sdm.layers.worldclim.approximated` puts the bundled layers in its place; they need the same treatment.
WorldClim 2.1 covers the land, Antarctica included (its lowest bio1, at 10 arc-minutes, is -54.7 degC); here that is
the cells with any land, lakes apart, on the bundled mask. Each cell counts once, whatever its area.

Takes two minutes and 0.7 GB; the same layers give the same bytes.
"""

import argparse
from pathlib import Path

import numpy as np

from sdm.files.paths import folder
from sdm.layers.worldclim import APPROXIMATION, CHANNELS, SEA, Approximated

ROWS_AT_ONCE = 90


def statistics(source: Approximated) -> dict[str, tuple[float, float]]:
    """(mean, standard deviation) by channel; of elevation also with the sea counted as `SEA`."""
    columns = np.arange(source.columns)
    count, total, squares = np.zeros(20), np.zeros(20), np.zeros(20)
    cells = source.rows * source.columns
    for pass_ in (1, 2):
        mean = total / np.maximum(count, 1)
        for r0 in range(0, source.rows, ROWS_AT_ONCE):
            rows = np.arange(r0, min(r0 + ROWS_AT_ONCE, source.rows))
            raw = source.raw(np.repeat(rows, columns.size), np.tile(columns, rows.size))
            there = np.isfinite(raw)
            if pass_ == 1:
                count += there.sum(axis=0)
                total += np.where(there, raw, 0.0).sum(axis=0)
            else:
                squares += np.where(there, (raw - mean) ** 2, 0.0).sum(axis=0)
    found = {name: (mean[k], np.sqrt(squares[k] / count[k])) for k, name in enumerate(CHANNELS) if count[k]}
    # The sea joins the land: two groups, their means and spreads put together.
    (land_mean, land_std), share = found["elevation"], count[0] / cells
    both = share * land_mean + (1 - share) * SEA
    spread = share * (land_std**2 + (land_mean - both) ** 2) + (1 - share) * (SEA - both) ** 2
    return {"elevation_with_sea": (both, np.sqrt(spread)), **found}


def main() -> None:
    """Write the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=folder("data") / APPROXIMATION)
    out = parser.parse_args().out
    lines = [
        "# Mean and standard deviation of the bundled layers over land cells of 5 arc-minutes, for the published model",
        "# where WorldClim is not at hand. Written by recipes/worldclim_approx.py. The layers have no bio2 and bio3.",
        "# elevation_with_sea counts the sea as -32768 m.",
        "",
    ]
    for name, (mean, std) in statistics(Approximated()).items():
        lines += [f"[{name}]", f"mean = {mean:.6g}", f"std = {std:.6g}", ""]
    out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
