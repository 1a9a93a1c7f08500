"""Shared code of `embed` and `classify`: sorting of files into photos and recordings, opening and use of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdm.errors import ModelError, RequestError
from sdm.request import Sampling
from sdm.request.months import month_name, parse_month

if TYPE_CHECKING:
    import numpy as np

    from sdm.models.protocol import Model

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
NOUNS = {"image": "image encoder", "audio": "audio encoder", "text": "text encoder"}


def sort_files(files: Sequence[str], photos: Sequence[str], sounds: Sequence[str]) -> tuple[list[str], list[str]]:
    """(photos, recordings): those given by option, then plain files by extension. Raises RequestError."""
    photos, sounds = list(photos), list(sounds)
    for file in files:
        extension = Path(file).suffix.lower()
        if extension in PHOTOS:
            photos.append(file)
        elif extension in SOUNDS:
            sounds.append(file)
        else:
            raise RequestError(
                f"the extension of {file[:200]!r} is neither that of a photo ({', '.join(PHOTOS)}) nor of a recording "
                f"({', '.join(SOUNDS)}); use --photo or --audio."
            )
    return photos, sounds


def open_with(name: str, *modalities: str) -> Model:
    """The model, which must have all the modalities. Raises ModelError with one remedy."""
    from sdm.models.registry import open_model

    model = open_model(name)
    for modality in modalities:
        if modality not in model.modalities:
            what = NOUNS.get(modality, f"encoder for {modality}")
            remedy = f"; it has {', '.join(model.modalities)}" if modality not in NOUNS else "; use --model taxabind"
            raise ModelError(f"model {model.name!r} has no {what}{remedy}.")
    return model


class Encoder:
    """The encoders of an opened model, loaded on a device, for the places of one month."""

    def __init__(self, model: Model, device: str, month: int = 0) -> None:
        """`device`: cpu, cuda or cuda:N. `month`: 1 to 12 of a seasonal model, 0 for the whole year."""
        self.model, self.device, self.month = model, device, month
        self._encoders = model.load(device)

    def encode(self, modality: str, items: Sequence[str], batch: int = 64) -> np.ndarray:
        """Unit vectors (N, dim) of photos or recordings by path, or of texts."""
        from sdm.evaluation.encode import encode_items

        return encode_items(self._encoders, modality, items, batch)

    def encode_places(
        self, lonlat: np.ndarray, modalities: Sequence[str], imagery: str | None = None
    ) -> dict[str, np.ndarray]:
        """Unit vectors (N, dim) by modality of (N, 2) degrees (lon, lat); `imagery` in place of the model's own."""
        from sdm.engine.inputs import at_month
        from sdm.evaluation.encode import encode_items

        vectors: dict[str, np.ndarray] = {}
        if "location" in modalities:
            located = at_month(self.model, lonlat, self.month)
            vectors["location"] = encode_items(self._encoders, "location", located, 4096)
        if "satellite" in modalities and imagery:
            vectors["satellite"] = self._encode_imagery(lonlat, imagery)
        if rest := [m for m in modalities if m not in vectors]:
            from sdm.engine.points import embed_places

            sampling = Sampling(modalities=rest)
            vectors |= embed_places(self.model, lonlat[:, 0], lonlat[:, 1], sampling, self.device)
        return {m: vectors[m] for m in modalities}

    def _encode_imagery(self, lonlat: np.ndarray, imagery: str) -> np.ndarray:
        import numpy as np

        from sdm.layers.imagery import open_imagery

        parts = []
        for part, crops, known in open_imagery(imagery).in_blocks(lonlat[:, 0], lonlat[:, 1]):
            if not known.all():
                lon, lat = lonlat[part][~known][0]
                raise RequestError(f"{imagery[:200]!r} has no imagery at longitude {lon:g}, latitude {lat:g}.")
            parts.append(self._encoders.encode("satellite", crops).float().cpu().numpy())
        return np.concatenate(parts)


def check_month(model: Model, month: str | int | None, modalities: Sequence[str]) -> int:
    """The month of an option --month, 0 for the whole year, for places of these modalities (none: no places).

    Raises RequestError.
    """
    from sdm.engine.inputs import check_month as check_seasonal
    from sdm.engine.setup import check_month_modalities

    number = parse_month(month)
    if number and not modalities:
        raise RequestError(f"month {month_name(number)} is given but no places; omit it.")
    check_seasonal(model, number)
    check_month_modalities(modalities, number)
    return number
