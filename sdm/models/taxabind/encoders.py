"""The published encoders: raw values of a modality in, unit vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.errors import ModelError, RequestError
from sdm.models.taxabind.checkpoints import Checkpoints, dimension

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STATISTICS = {
    "taxabind": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "open_clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation of red, green, blue in 0..1: of ImageNet, which TaxaBind uses, and of CLIP."""
ENVIRONMENT = ("elevation", *(f"bio{k}" for k in range(1, 20)))
"""Channels of the environment encoder, in order."""
CHUNK = {"image": 256, "satellite": 256, "text": 256, "location": 16_384, "environment": 65_536}
"""Items that go through a tower at once on a GPU; a quarter of that on a CPU."""


class PublishedEncoders:
    """The towers of `checkpoints` on one device; each is read when first used.

    bfloat16 autocast on CUDA (the Fourier features of the location and all of the audio encoder stay in
    float32), float32 on a CPU. `preprocess` ("taxabind" or "open_clip") chooses how photos are normalised; give
    the same to `sdm.models.taxabind.photo.read_photo`.
    """

    def __init__(self, checkpoints: Checkpoints, device: str = "cpu", preprocess: str = "taxabind") -> None:
        import torch

        if preprocess not in STATISTICS:
            raise RequestError(f"preprocessing {preprocess!r} is not known; choose one of {', '.join(STATISTICS)}.")
        self.checkpoints = checkpoints
        self.device = torch.device(device)
        self.preprocess = preprocess
        self._helpers: dict[str, Any] = {}

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities whose weights are on disk."""
        return self.checkpoints.modalities

    def encode(self, modality: str, values: Any) -> Tensor:
        """Values of one modality -> (N, dim) unit vectors, float32 on the device; dim is 512.

        * location: (N, 2) float64 degrees, **(lon, lat)**; longitudes are wrapped to [-180, 180)
        * satellite: (N, 256, 256, 3) or (N, 224, 224, 3) uint8 RGB, row 0 north, 10 m a pixel
        * environment: (N, 20) float32 z-scores in the order of `ENVIRONMENT`, NaN where unknown
        * image: (N, 224, 224, 3) uint8 RGB, from `sdm.models.taxabind.photo`
        * text: a sequence of N strings
        * audio: a sequence of N (samples,) float32, mono at 48 kHz, from `sdm.models.taxabind.sound`

        Raises ModelError when the modality's weights are missing or damaged, RequestError for values of
        another shape.
        """
        import torch

        from sdm.models.score import normalise

        tower = self.checkpoints.load(modality, str(self.device))
        values = self.prepare(modality, values, tower)
        parts = []
        step = len(values) if modality == "audio" else CHUNK[modality] // (1 if self.device.type == "cuda" else 4)
        with torch.inference_mode():
            for start in range(0, len(values), max(step, 1)):
                part = values[start : start + step]
                with torch.autocast(
                    "cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda" and modality != "audio"
                ):
                    y = self.forward(modality, tower, part)
                parts.append(normalise(y.float()))
            return torch.cat(parts) if parts else torch.empty(0, dimension(tower), device=self.device)

    def encode_photos(
        self, paths: Iterable[str | Path], batch: int = 64, workers: int | None = None
    ) -> Iterator[Tensor]:
        """Photo files -> batches of unit vectors, in order; threads read ahead while the device works."""
        from sdm.models.taxabind.photo import read_photos

        for photos in read_photos(paths, self.preprocess, batch, workers):
            yield self.encode("image", photos)

    def prepare(self, modality: str, values: Any, tower: Any) -> Any:
        """Checked values for `forward`, still on the CPU; text as tokens. See `encode`."""
        if modality == "text":
            return self._tokens([values] if isinstance(values, str) else values)
        if modality == "audio":
            return list(values)
        values = np.asarray(values)
        if modality == "location":
            _check(modality, values, (2,), "(N, 2), longitude and latitude in degrees")
            values = values.astype(np.float64, copy=False)
            lon = values[:, 0]
            lon = np.where((lon >= -180) & (lon < 180), lon, (lon + 180) % 360 - 180)
            return np.stack([values[:, 1], lon], axis=1).astype(np.float32)  # the network takes (lat, lon)
        if modality == "environment":
            _check(modality, values, (tower.inputs,), f"(N, {tower.inputs}) z-scores")
            values = values.astype(np.float32, copy=False)
            return np.where(np.isnan(values), np.float32(0), values)
        if values.dtype != np.uint8:
            raise RequestError(f"{modality} values are {values.dtype}; they must be uint8 RGB.")
        if modality == "satellite" and values.ndim == 4 and tower.image == 224 and values.shape[1:3] == (256, 256):
            values = values[:, 16:240, 16:240]
        _check(modality, values, (tower.image, tower.image, 3), f"(N, {tower.image}, {tower.image}, 3) uint8 RGB")
        return values

    def forward(self, modality: str, tower: Any, values: Any) -> Tensor:
        """Prepared values through a tower -> (N, dim), not of unit length; with gradients, if they are on."""
        import torch

        if modality == "audio":
            return self._audio(tower, values)
        x = torch.from_numpy(np.ascontiguousarray(values)).to(self.device, non_blocking=True)
        if modality in ("image", "satellite"):
            mean, std = self._statistics("taxabind" if modality == "satellite" else self.preprocess)
            # The steps of torchvision's ToTensor and Normalize; the copy on the device is a quarter of the size.
            x = (x.permute(0, 3, 1, 2).float() / 255 - mean) / std
        return tower(x)

    def _statistics(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        if name not in self._helpers:
            mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in STATISTICS[name])
            self._helpers[name] = mean, std
        return self._helpers[name]

    def _tokens(self, texts: Sequence[str]) -> np.ndarray:
        tokens = tokenizer()(texts)
        # A token sees only those before it, so the zeros after the last end token cost time and change nothing.
        return tokens[:, : tokens.any(axis=0).nonzero()[0].max(initial=0) + 1]

    def _audio(self, tower: Any, clips: list[np.ndarray]) -> Tensor:
        import torch

        from sdm.models.encoders.clap import ClapFeatures

        if "audio" not in self._helpers:
            self._helpers["audio"] = ClapFeatures()
        read: list[tuple[Tensor, Tensor]] = []
        for clip in clips:
            clip = np.asarray(clip, np.float32)
            if clip.ndim != 1 or not len(clip) or not np.isfinite(clip).all():
                raise RequestError(f"a sound of shape {clip.shape} is not mono, is empty, or has missing samples.")
            features, longer = self._helpers["audio"](clip)
            read.append((features.to(self.device), longer.to(self.device)))
        if tower.training and read:  # the statistics of its batches are part of what it learns
            features, longer = (torch.cat(parts) for parts in zip(*read, strict=True))
            read = [(features, longer)]
        vectors = [tower(features, is_longer=longer).audio_embeds for features, longer in read]
        return torch.cat(vectors) if vectors else torch.empty(0, dimension(tower), device=self.device)


_tokenizer: list = []


def tokenizer():
    """The tokenizer of the text tower, with the merges that come with this package; made once."""
    if not _tokenizer:
        import gzip

        from sdm.files.release import data_file
        from sdm.models.encoders.clip_tokens import Tokenizer

        path = data_file("clip-merges.txt.gz")
        try:
            _tokenizer.append(Tokenizer(gzip.decompress(path.read_bytes()).decode("utf-8")))
        except (OSError, ValueError, EOFError) as error:
            raise ModelError(f"{str(path)!r} cannot be read: {error}") from error
    return _tokenizer[0]


def _check(modality: str, values: np.ndarray, shape: tuple[int, ...], expected: str) -> None:
    if values.shape[1:] != shape or values.ndim != len(shape) + 1:
        raise RequestError(f"{modality} values have the shape {values.shape}; they must be {expected}.")
