"""Audio encoder of TaxaBind: CLAP (Wu et al. 2023, arXiv 2211.06687) from the library `transformers`.

The only tower that is not implemented here: a hierarchical Swin transformer with feature fusion.
`transformers` is imported when sound is first used.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from sdm.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

RATE = 48_000
FEATURES = {
    "feature_size": 64,
    "sampling_rate": RATE,
    "hop_length": 480,
    "max_length_s": 10,
    "fft_window_size": 1024,
    "frequency_min": 50,
    "frequency_max": 14_000,
    "truncation": "fusion",
    "padding": "repeatpad",
}
"""Of laion/clap-htsat-fused and TaxaBind's configuration: log-mel spectra, 10 s, short clips repeated."""

_random_lock = threading.Lock()


def _transformers() -> Any:
    _hide_broken_torchvision()
    try:
        import transformers

        # The names are looked up lazily: only here does a broken dependency raise.
        transformers.ClapAudioModelWithProjection  # noqa: B018
        transformers.ClapFeatureExtractor  # noqa: B018
    except (ImportError, RuntimeError) as error:
        raise ModelError(
            f"the audio encoder needs the library transformers, which cannot be loaded ({str(error)[:200]}); "
            'install it with: pip install "taxabind-map[taxabind]"'
        ) from error
    return transformers


def _hide_broken_torchvision() -> None:
    """Make a torchvision that cannot be imported count as not installed.

    One that was built for another torch fails on import, and transformers with it, although sound does not need it.
    """
    if "torchvision" in sys.modules:
        return
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except Exception:
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]


def build(config: dict) -> nn.Module:
    """`ClapAudioModelWithProjection` for a published `config.json`, random weights. Raises ModelError."""
    library = _transformers()
    try:
        return library.ClapAudioModelWithProjection(library.ClapAudioConfig(**config))
    except Exception as error:  # a config of the wrong kind fails in many ways
        raise ModelError(f"the audio encoder's config.json does not describe a CLAP audio model: {error}") from error


class ClapFeatures:
    """Waveform -> what the audio tower reads."""

    def __init__(self) -> None:
        self._extract = _transformers().ClapFeatureExtractor(**FEATURES)

    def __call__(self, wave: np.ndarray) -> tuple[Tensor, Tensor]:
        """(N,) mono at 48 kHz -> `input_features` (1, 4, 1001, 64) float32 and `is_longer` (1, 1) bool.

        One clip at a time: of several short ones the library would treat a random one differently.
        Of a clip longer than 10 s it takes three parts at random; here always the same ones, those of
        numpy's global generator with the seed 0.
        """
        with _random_lock:
            state = np.random.get_state()
            np.random.seed(0)
            try:
                features = self._extract(wave, sampling_rate=RATE, return_tensors="pt")
            finally:
                np.random.set_state(state)
        return features["input_features"].float(), features["is_longer"]
