"""The yardstick of relative suitability: a fixed sample of the world's land, encoded once.

The published space is not calibrated: a cosine of 0.2 may be high for one species and low for another. What
can be said is how a place ranks among all land: the share of an area-uniform sample that scores lower.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from sdm.engine.encode import embed_positions
from sdm.engine.inputs import open_inputs
from sdm.engine.suitability import Relative
from sdm.errors import RequestError
from sdm.files.fingerprint import of_parts
from sdm.files.paths import cache_folder, replace_file
from sdm.layers.landmask import land_sample
from sdm.models.registry import AnyModel

SAMPLE = 20_000
"""Places: a share is exact to a third of a per cent."""
SAMPLE_IMAGERY = 2_000
"""Where imagery must be read and encoded for each, which takes a second per place on a CPU: exact to one per cent."""
FEWEST = 500
"""Places of the sample that the layers must cover."""


def reference(
    model: AnyModel, modalities: Sequence[str], environment: Sequence[str] = (), satellite: str | None = None,
    device: str = "cpu", month: int = 0,
) -> np.ndarray:  # fmt: skip
    """Unit summed embeddings of the sample: (n, dim) float16, kept in the user's cache folder.

    Depends on the model, the month, the modalities and the layers, not on the map. Raises RequestError when the layers
    cover too little of the world.
    """
    inputs = open_inputs(model, modalities, environment, satellite)
    count = SAMPLE_IMAGERY if "satellite" in modalities and not model.calibrated else SAMPLE
    season = [f"month {month}"] if month else []
    key = of_parts(["reference 1", model.digest, ",".join(modalities), inputs.fingerprint, count, *season])
    kept = cache_folder() / f"reference-{key}.npy"
    try:
        found = np.load(kept, allow_pickle=False)
        if found.dtype == np.float16 and found.ndim == 2 and found.shape[1] == model.dim:
            return found
    except (OSError, ValueError):
        pass
    lon, lat = land_sample(count)
    embeddings, known = embed_positions(
        model, modalities, lon, lat, environment=environment, satellite=satellite, device=device, month=month
    )
    if known.sum() < FEWEST:
        raise RequestError(
            f"relative suitability compares with the land of the whole world, of which the layers cover "
            f"{known.sum():,} of {count:,} sampled places; give layers of the world, or take --score cosine."
        )
    found = embeddings[known].astype(np.float16)
    _keep(kept, found)
    return found


def relative(vector: np.ndarray, sample: np.ndarray) -> Relative:
    """Relative suitability for a unit vector (dim,), among a sample (n, dim) from `reference`."""
    return Relative(np.sort(sample.astype(np.float32) @ vector))


def _keep(path, values: np.ndarray) -> None:
    """Save for the next time, if the cache can be written: it is only a matter of speed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, values)
        replace_file(path, buffer.getvalue())
    except OSError:
        pass
