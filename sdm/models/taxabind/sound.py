"""Sound recordings as the audio tower expects them: mono float32 at 48 kHz.

Resampling follows `torchaudio.functional.resample` with its defaults (windowed sinc, Hann, 6 zero
crossings, roll-off 0.99), which is what TaxaBind was trained with; the method is Smith's band-limited
interpolation, https://ccrma.stanford.edu/~jos/resample/.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path

import numpy as np

from sdm.errors import RequestError

RATE = 48_000
"""Samples per second that the audio tower hears."""
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF")
MAX_SECONDS = 600
RATES = (4_000, 384_000)
"""Lowest and highest sampling rate taken, in Hz; bat detectors use 384 kHz."""
MAX_CHANNELS = 32
MAX_SAMPLES = 2 * MAX_SECONDS * RATE
"""Samples of all channels together: ten minutes in stereo at 48 kHz. A small file can hold many times as many."""
_BLOCK, _CHUNK = 1 << 18, 1 << 16
_ZEROS, _ROLLOFF = 6, 0.99


def read_sound(path: str | Path) -> np.ndarray:
    """One recording (WAV, FLAC, OGG, MP3, AIFF) -> (N,) float32 at 48 kHz, the mean of its channels.

    Raises RequestError when the file is missing, of another format, damaged, silent, longer than ten
    minutes or at an unusual sampling rate, and when the library `soundfile` is not installed.
    """
    name = str(path)[:200]
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise RequestError(
            f"reading sound needs the library soundfile, which cannot be loaded ({error}); "
            'install it with: pip install "taxabind-map[taxabind]"'
        ) from error
    if not Path(path).is_file():
        raise RequestError(f"recording {name!r} does not exist or is not a file.")
    try:
        with soundfile.SoundFile(str(path)) as file:
            _check(file, name)
            blocks = [block.mean(axis=1) for block in _blocks(file, name)]
            rate, frames = file.samplerate, file.frames
    except soundfile.SoundFileError as error:
        raise RequestError(f"recording {name!r} cannot be read: {str(error)[-120:]}") from error
    wave = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if len(wave) < frames:
        raise RequestError(f"recording {name!r} ends after {len(wave) / rate:.2f} s of {frames / rate:.2f} s: cut off?")
    if not np.isfinite(wave).all():
        raise RequestError(f"recording {name!r} has samples that are not finite.")
    if not wave.any():
        raise RequestError(f"recording {name!r} is silent from beginning to end.")
    return resample(wave, rate)


def _blocks(file, name: str):
    left = file.frames
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        left -= len(block)
        if left < 0:
            raise RequestError(f"recording {name!r} is longer than its header says.")
        yield block


def _check(file, name: str) -> None:
    """Refuse a recording whose header shows that it cannot be used."""
    if file.format not in FORMATS:
        raise RequestError(f"recording {name!r} is {file.format}; give one of {', '.join(FORMATS)}.")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise RequestError(
            f"recording {name!r} has {file.samplerate} Hz; the rate must be {RATES[0]} to {RATES[1]} Hz."
        )
    if file.channels > MAX_CHANNELS:
        raise RequestError(f"recording {name!r} has {file.channels} channels; at most {MAX_CHANNELS} are read.")
    if file.frames <= 0:
        raise RequestError(f"recording {name!r} is empty.")
    if file.frames > MAX_SECONDS * file.samplerate:
        raise RequestError(
            f"recording {name!r} lasts {file.frames / file.samplerate:.0f} s; the limit is {MAX_SECONDS} s. "
            "Cut out the call: the model hears 10 s."
        )
    if (samples := file.frames * file.channels) > MAX_SAMPLES:
        raise RequestError(
            f"recording {name!r} has {samples:,} samples; the limit is {MAX_SAMPLES:,}. Cut out the call: the model "
            "hears 10 s."
        )


def resample(wave: np.ndarray, rate: int, to: int = RATE) -> np.ndarray:
    """(N,) float32 at `rate` Hz -> (ceil(N * to / rate),) float32 at `to` Hz."""
    if rate == to:
        return np.ascontiguousarray(wave, np.float32)
    divisor = gcd(rate, to)
    down, up = rate // divisor, to // divisor
    cutoff = min(down, up) * _ROLLOFF
    width = int(np.ceil(_ZEROS * down / cutoff))
    # One row of weights per position between two samples; there are `up` such positions.
    i = np.arange(up)
    taps = (i * down // up)[:, None] + np.arange(-width, width + 2)
    # torchaudio has the position in float32; its rounding, -90 dB, is part of what the model has heard.
    t = np.clip((taps / down - np.divide(i, up, dtype=np.float32)[:, None]) * cutoff, -_ZEROS, _ZEROS)
    weights = (np.sinc(t) * np.cos(t * np.pi / (2 * _ZEROS)) ** 2 * (cutoff / down)).astype(np.float32)

    padded = np.pad(wave.astype(np.float32, copy=False), (width, width + 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps.shape[1])
    out = np.empty(-(-len(wave) * up // down), np.float32)
    for start in range(0, len(out), _CHUNK):
        n = np.arange(start, min(start + _CHUNK, len(out)))
        out[n] = np.einsum("nt,nt->n", windows[n * down // up], weights[n % up])
    return out
