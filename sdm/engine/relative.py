"""The reference of relative suitability: a fixed sample of the world's land, encoded once.

The published space is not calibrated: a cosine of 0.2 may be high for one species and low for another. Its maps
therefore show how a place ranks among all land: the share of an area-uniform sample that scores lower.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from sdm.engine.encode import embed_positions
from sdm.engine.inputs import content_fingerprint
from sdm.engine.suitability import Relative
from sdm.errors import RequestError
from sdm.files.fingerprint import of_parts
from sdm.files.paths import cache_folder, replace_file
from sdm.layers.landmask import land_sample
from sdm.models.protocol import Model
from sdm.request import Sampling

SAMPLE = 20_000
"""Places: a share is exact to a third of a per cent."""
SAMPLE_IMAGERY = 2_000
"""Sample size with imagery, which takes a second per place on a CPU; exact to one per cent."""
FEWEST = 500
"""Places of the sample that the layers must cover."""


def reference(model: Model, sampling: Sampling, device: str = "cpu") -> np.ndarray:
    """Unit summed embeddings of the sample: (n, dim) float16, kept in the user's cache folder.

    Depends on the model, the month, the modalities and the layers, not on the map. Raises RequestError when the layers
    cover too little of the world.
    """
    modalities, month = sampling.modalities or model.place_modalities, sampling.month
    content = content_fingerprint(model, modalities, sampling.environment, sampling.satellite)
    count = SAMPLE if all(model.layers[m].bundled for m in modalities) else SAMPLE_IMAGERY
    season = [f"month {month}"] if month else []
    key = of_parts(["reference 1", model.digest, ",".join(modalities), content, count, *season])
    path = cache_folder() / f"reference-{key}.npy"
    try:
        cached = np.load(path, allow_pickle=False)
        if cached.dtype == np.float16 and cached.ndim == 2 and cached.shape[1] == model.dim:
            return cached
    except (OSError, ValueError):
        pass
    lon, lat = land_sample(count)
    embeddings, known = embed_positions(model, sampling, lon, lat, device)
    if known.sum() < FEWEST:
        raise RequestError(
            f"relative suitability needs layers of the whole world; these cover {known.sum():,} of {count:,} sample "
            "places; give global layers or --score cosine."
        )
    sample = embeddings[known].astype(np.float16)
    _keep(path, sample)
    return sample


def relative(vector: np.ndarray, sample: np.ndarray) -> Relative:
    """Relative suitability for a unit vector (dim,), among a sample (n, dim) from `reference`."""
    return Relative(np.sort(sample.astype(np.float32) @ vector))


def _keep(path: Path, values: np.ndarray) -> None:
    """Save for the next time. A cache that cannot be written to costs time, no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, values)
        replace_file(path, buffer.getvalue())
    except OSError:
        pass
