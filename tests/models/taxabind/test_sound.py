"""Recordings: formats, channels, resampling as in training, hostile files refused."""

import numpy as np
import pytest

from sdm.errors import RequestError
from sdm.models.taxabind.sound import RATE, read_sound, resample

soundfile = pytest.importorskip("soundfile")


@pytest.fixture
def call():
    """A second of two tones at 48 kHz, (48000,)."""
    t = np.arange(RATE) / RATE
    return (0.5 * np.sin(2 * np.pi * 1000 * t) + 0.2 * np.sin(2 * np.pi * 5200 * t)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "FLOAT", 0),
        ("wav", "PCM_16", 4e-5),
        ("wav", "PCM_24", 1e-6),
        ("flac", "PCM_16", 4e-5),
        ("aiff", "PCM_16", 4e-5),
        ("ogg", "VORBIS", 0.1),
        ("mp3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_formats(tmp_path, call, suffix, subtype, tolerance):
    path = tmp_path / f"call.{suffix}"
    soundfile.write(path, call, RATE, subtype=subtype)
    seen = read_sound(path)
    assert seen.dtype == np.float32
    assert abs(len(seen) - len(call)) <= (3000 if suffix == "mp3" else 0)
    middle = slice(10_000, 30_000)
    if suffix == "mp3":  # delayed by its codec: the spectrum is what stays
        seen, call = (np.abs(np.fft.rfft(x[middle])) / 10_000 for x in (seen, call))
        middle = slice(None)
    assert np.abs(seen[middle] - call[middle]).max() <= tolerance


def test_mean_of_channels(tmp_path, call):
    soundfile.write(tmp_path / "a.wav", np.stack([call, -0.5 * call, 0 * call], 1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav"), call / 6, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 47_999, 96_000, 192_000, 384_000])
def test_resampling_keeps_a_tone(rate):
    t = np.arange(rate) / rate
    ours = resample(np.sin(2 * np.pi * 1000 * t).astype(np.float32), rate)
    assert len(ours) == RATE
    expected = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(ours[500:-500], expected[500:-500], atol=5e-3)


@pytest.mark.parametrize("rate", [96_000, 384_000])
def test_resampling_removes_what_48_khz_cannot_hold(rate):
    t = np.arange(rate) / rate
    assert np.abs(resample(np.sin(2 * np.pi * 40_000 * t).astype(np.float32), rate)[500:-500]).max() < 0.02


def test_resampling_is_that_of_torchaudio():
    """`torchaudio.functional.resample(sin(2 pi 1000 t), 44100, 48000)` of torchaudio 2.11, 441 samples."""
    ours = resample(np.sin(2 * np.pi * 1000 * np.arange(441) / 44_100).astype(np.float32), 44_100)
    assert len(ours) == 480
    golden = [3.9223564e-04, 1.2804565e-01, 2.5877869e-01, 4.9997634e-01, -3.8127631e-01, -1.2804681e-01]
    np.testing.assert_allclose(ours[[0, 1, 50, 100, 477, 479]], golden, atol=3e-6)


@pytest.mark.parametrize(("rate", "count"), [(44_100, 999), (44_101, 1000), (8_000, 1), (384_000, 7), (16_000, 601)])
def test_resampling_against_the_definition(rng, rate, count):
    """Every output sample as the sum over all inputs, weighted by the windowed sinc at its distance."""
    wave = rng.standard_normal(count).astype(np.float32)
    ours = resample(wave, rate)
    assert len(ours) == -(-count * RATE // rate)
    cutoff = min(rate, RATE) * 0.99
    distance = np.arange(count)[None] / rate - np.arange(len(ours))[:, None] / RATE
    t = np.clip(distance * cutoff, -6, 6)
    weights = np.sinc(t) * np.cos(t * np.pi / 12) ** 2 * cutoff / rate
    np.testing.assert_allclose(ours, weights @ wave, atol=2e-4)


def test_short_and_long_recordings(tmp_path, call, monkeypatch):
    soundfile.write(tmp_path / "one.wav", call[1000:1001], RATE, subtype="FLOAT")
    assert read_sound(tmp_path / "one.wav").shape == (1,)
    monkeypatch.setattr("sdm.models.taxabind.sound.MAX_SECONDS", 0.5)
    soundfile.write(tmp_path / "long.wav", call, RATE)
    with pytest.raises(RequestError, match=r"lasts 1 s; the limit is 0.5 s"):
        read_sound(tmp_path / "long.wav")


@pytest.mark.parametrize(("rate", "channels", "seconds"), [(384_000, 1, 200), (48_000, 32, 60)])
def test_a_small_file_of_very_many_samples(tmp_path, rate, channels, seconds):
    with soundfile.SoundFile(tmp_path / "a.flac" if channels <= 8 else tmp_path / "a.wav", "w", rate, channels) as file:
        for _ in range(seconds):
            file.write(np.zeros((rate, channels), np.int16))
    with pytest.raises(RequestError, match=r"samples; the limit is 57,600,000\. Cut out the call"):
        read_sound(next(tmp_path.iterdir()))


def write(path, values, rate=RATE, **options):
    soundfile.write(path, values, rate, **options)
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p, c: write(p / "a.wav", c[:0]), "empty"),
        (lambda p, c: write(p / "a.wav", c * 0), "silent"),
        (lambda p, c: write(p / "a.wav", c * np.nan, subtype="FLOAT"), "not finite"),
        (lambda p, c: write(p / "a.wav", c, 1000), "1000 Hz"),
        (lambda p, c: write(p / "a.wav", c, 2**30), "1073741824 Hz"),
        (lambda p, c: write(p / "a.wav", np.ones((9, 40))), "40 channels"),
        (lambda p, c: write(p / "a.au", c), "AU"),
        (lambda p, c: p / "missing.wav", "does not exist"),
        (lambda p, c: p, "not a file"),
    ],
)
def test_recordings_that_are_refused(tmp_path, call, make, says):
    with pytest.raises(RequestError, match=says):
        read_sound(make(tmp_path, call))


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "wav"])
@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound" * 100])
def test_files_that_are_none(tmp_path, suffix, content):
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(RequestError, match=r"cannot be read"):
        read_sound(tmp_path / f"a.{suffix}")


def test_a_recording_that_was_cut_off(tmp_path, rng):
    noise = rng.uniform(-0.5, 0.5, RATE).astype(np.float32)
    path = write(tmp_path / "a.flac", noise)
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(RequestError, match=r"cut off|cannot be read"):
        read_sound(path)
