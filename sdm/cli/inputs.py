"""What `embed` and `classify` share: photos and recordings told apart, a model that has what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdm.errors import ModelError, RequestError

if TYPE_CHECKING:
    import numpy as np

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
NOUNS = {"image": "image encoder", "audio": "audio encoder", "text": "text encoder"}


def sort_files(files: Sequence[str], photos: Sequence[str], sounds: Sequence[str]) -> tuple[list[str], list[str]]:
    """(photos, recordings): those given by option, then plain files by their endings. Raises RequestError."""
    photos, sounds = list(photos), list(sounds)
    for file in files:
        ending = Path(file).suffix.lower()
        if ending in PHOTOS:
            photos.append(file)
        elif ending in SOUNDS:
            sounds.append(file)
        else:
            raise RequestError(
                f"{file[:200]!r} is neither a photo ({', '.join(PHOTOS)}) nor a recording ({', '.join(SOUNDS)}) by its "
                "ending; say which with --photo or --audio."
            )
    return photos, sounds


def open_with(name: str, *modalities: str) -> Any:
    """The model, which must have all the modalities. Raises ModelError with one remedy."""
    from sdm.models.registry import open_model

    model = open_model(name)
    for modality in modalities:
        if modality not in model.modalities:
            what = NOUNS.get(modality, f"encoder for {modality}")
            remedy = f"; it has {', '.join(model.modalities)}" if modality not in NOUNS else "; use --model taxabind"
            raise ModelError(f"model {model.name!r} has no {what}{remedy}.")
    return model


def month_of(model: Any, month: str | None, modalities: Sequence[str]) -> int:
    """The month that an option --month means for places of these modalities (none: there are no places).

    0: the whole year. Raises RequestError.
    """
    from sdm.engine.inputs import check_month
    from sdm.engine.setup import refuse_timeless
    from sdm.request.months import month_name, parse_month

    found = parse_month(month)
    if found and not modalities:
        raise RequestError(f"month {month_name(found)} is given, but no place, whose season it could be; leave it out.")
    check_month(model, found)
    refuse_timeless(modalities, found)
    return found


def place_embeddings(
    model: Any, encoders: Any, lonlat: np.ndarray, modalities: Sequence[str], imagery: str | None, device: str,
    month: int = 0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Unit vectors (N, dim) by modality of (N, 2) degrees (lon, lat); `imagery` in place of the model's own.

    `month`: 1 to 12, of a seasonal model.
    """
    import numpy as np

    from sdm.engine.inputs import at_month
    from sdm.evaluation.encode import encode_items

    found = {}
    if "location" in modalities:
        found["location"] = encode_items(encoders, "location", at_month(model, lonlat, month), 4096)
    rest = [m for m in modalities if m != "location"]
    if "satellite" in rest and imagery:
        from sdm.layers.imagery import open_imagery

        parts = []
        for part, crops, known in open_imagery(imagery).in_blocks(lonlat[:, 0], lonlat[:, 1]):
            if not known.all():
                lon, lat = lonlat[part][~known][0]
                raise RequestError(f"{imagery[:200]!r} has no imagery at longitude {lon:g}, latitude {lat:g}.")
            parts.append(encoders.encode("satellite", crops).float().cpu().numpy())
        found["satellite"] = np.concatenate(parts)
        rest.remove("satellite")
    if rest:
        from sdm.engine.points import embed_places

        sampled = embed_places(model, lonlat[:, 0], lonlat[:, 1], device, rest)
        found |= {m: sampled[m] for m in rest}
    return {m: found[m] for m in modalities}
