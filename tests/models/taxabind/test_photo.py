"""Photos: the same bytes as torchvision, every mode and orientation, hostile files refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sdm.errors import RequestError
from sdm.models.taxabind.photo import open_photo, prepare, read_photo, read_photos


@pytest.fixture
def picture(rng):
    """A smooth RGB picture, (48, 64, 3)."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((64, 48), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (224, 224), (256, 256), (223, 1000), (30, 40), (1, 1), (225, 300)]
)
def test_same_bytes_as_torchvision(reference, rng, size):
    t = reference.transforms
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    squash = t.Compose([t.Resize((256, 256)), t.CenterCrop(224)])
    np.testing.assert_array_equal(prepare(image), np.asarray(squash(image)))
    shortest = t.Compose([t.Resize(224, interpolation=t.InterpolationMode.BICUBIC), t.CenterCrop(224)])
    np.testing.assert_array_equal(prepare(image, "open_clip"), np.asarray(shortest(image)))


@pytest.mark.parametrize("form", ["png", "tiff", "webp", "jpeg"])
def test_formats(tmp_path, picture, form):
    path = tmp_path / f"bear.{form}"
    Image.fromarray(picture).save(path, **{"webp": {"lossless": True}, "jpeg": {"quality": 98}}.get(form, {}))
    error = np.abs(np.asarray(open_photo(path)).astype(int) - picture)
    assert error.max() <= (30 if form == "jpeg" else 0)
    assert read_photo(path).shape == (224, 224, 3)
    assert read_photo(path).dtype == np.uint8


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(tmp_path, picture, form, orientation):
    """The stored picture is the upright one, turned as the EXIF standard defines each value."""
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: picture.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{form}"
    options = {"jpeg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(form, {})
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    seen = np.asarray(open_photo(path)).astype(int)
    assert seen.shape == picture.shape
    assert np.abs(seen - picture).max() <= (25 if form == "jpeg" else 0)


def test_broken_exif_is_no_reason_to_refuse(tmp_path, picture):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert np.asarray(open_photo(path)).shape == picture.shape
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        Image.fromarray(picture).save(path, exif=exif)
        assert np.asarray(open_photo(path)).shape == picture.shape


GREY = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
ALPHA = np.tile((np.arange(48, dtype=np.uint8) * 5)[:, None], (1, 64))


def over_white(colour, alpha):
    colour, alpha = np.atleast_3d(colour).astype(float), alpha[..., None] / 255.0
    return np.broadcast_to(colour * alpha + 255 * (1 - alpha), (*alpha.shape[:2], 3))


def modes(picture):
    """name -> (image, suffix, options of save, expected RGB, tolerance)"""
    rgb = Image.fromarray(picture)
    grey3 = np.repeat(GREY[..., None], 3, 2)
    palette = rgb.quantize(32)
    flat = np.asarray(palette.convert("RGB"))
    index = int(np.asarray(palette)[0, 0])
    holes = np.where((np.asarray(palette) == index)[..., None], 255, flat)
    hole_rgb = np.where((picture == picture[0, 0]).all(-1, keepdims=True), 255, picture)
    sixteen = GREY.astype(np.uint16) * 257
    cmyk = rgb.convert("CMYK")
    half = np.full((48, 64), 128)
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    return {
        "1": (Image.fromarray(GREY > 100), "png", {}, np.where(grey3 > 100, 255, 0), 0),
        "L": (Image.fromarray(GREY), "png", {}, grey3, 0),
        "LA": (grey_alpha, "png", {}, over_white(GREY, ALPHA), 2),
        "RGBA": (Image.fromarray(np.dstack([picture, ALPHA])), "png", {}, over_white(picture, ALPHA), 2),
        "RGBA webp": (
            Image.fromarray(np.dstack([picture, ALPHA])),
            "webp",
            {"lossless": True, "exact": True},
            over_white(picture, ALPHA),
            2,
        ),
        "RGBA tiff": (Image.fromarray(np.dstack([picture, ALPHA])), "tiff", {}, over_white(picture, ALPHA), 2),
        "P": (palette, "png", {}, flat, 0),
        "P with a hole": (palette, "png", {"transparency": index}, holes, 0),
        "P with alpha": (palette, "png", {"transparency": bytes([128] * 256)}, over_white(flat, half), 2),
        "RGB with a hole": (rgb, "png", {"transparency": tuple(int(v) for v in picture[0, 0])}, hole_rgb, 0),
        "L with a hole": (Image.fromarray(GREY), "png", {"transparency": 0}, np.where(grey3 == 0, 255, grey3), 0),
        "CMYK jpeg": (cmyk, "jpeg", {"quality": 100}, picture, 12),
        "CMYK tiff": (cmyk, "tiff", {}, picture, 2),
        "YCbCr": (rgb.convert("YCbCr"), "jpeg", {"quality": 100, "subsampling": 0}, picture, 6),
        "I;16": (Image.fromarray(sixteen), "png", {}, grey3, 0),
        "I;16 tiff": (Image.fromarray(sixteen), "tiff", {}, grey3, 0),
        "I": (Image.fromarray(sixteen.astype(np.int32)), "tiff", {}, grey3, 0),
        "F, 0 to 1": (Image.fromarray(GREY.astype(np.float32) / 255), "tiff", {}, grey3, 0),
        "F, 0 to 255": (Image.fromarray(GREY.astype(np.float32)), "tiff", {}, grey3, 0),
    }


@pytest.mark.parametrize("mode", list(modes(np.zeros((48, 64, 3), np.uint8))))
def test_modes(tmp_path, picture, mode):
    image, suffix, options, expected, tolerance = modes(picture)[mode]
    path = tmp_path / f"photo.{suffix}"
    image.save(path, **options)
    seen = open_photo(path)
    assert seen.mode == "RGB"
    assert np.abs(np.asarray(seen).astype(float) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((9, 9), np.nan, np.float32), "not finite"),
        (np.full((9, 9), -1.0, np.float32), "from -1"),
        (np.full((9, 9), 1e6, np.float32), "1e\\+06"),
        (np.full((9, 9), -5, np.int32), "from -5"),
        (np.full((9, 9), 70_000, np.int32), "70000"),
    ],
)
def test_grey_levels_that_no_photo_has(tmp_path, values, says):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(RequestError, match=says):
        open_photo(tmp_path / "a.tiff")


def test_a_camera_with_a_preview_in_the_file(tmp_path, picture):
    """MPO: a JPEG with further pictures after the first, as many phones and cameras write it."""
    first = Image.fromarray(picture)
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[first.resize((32, 24))], quality=98)
    assert np.abs(np.asarray(open_photo(tmp_path / "a.jpg")).astype(int) - picture).max() < 30


@pytest.mark.parametrize("form", ["gif", "bmp", "ppm", "ico", "eps", "tga"])
def test_other_formats_are_refused(tmp_path, picture, form):
    Image.fromarray(picture).save(tmp_path / f"a.{form}")
    with pytest.raises(RequestError, match=r"not one of JPEG, PNG, WEBP, TIFF"):
        read_photo(tmp_path / f"a.{form}")
    (tmp_path / f"a.{form}").rename(tmp_path / "a.jpg")  # the name decides nothing
    with pytest.raises(RequestError, match=r"not one of"):
        read_photo(tmp_path / "a.jpg")


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_files_are_refused(tmp_path, picture, form, share, rng):
    path = tmp_path / f"a.{form}"
    Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RequestError, match=r"cannot be read|not one of"):
        read_photo(path)


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "page.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("empty.jpg", "text.jpg", "page.jpg"):
        with pytest.raises(RequestError, match=r"not one of"):
            read_photo(tmp_path / name)
    for name in ("missing.jpg", ".", "a\0b", "x" * 5000):
        with pytest.raises(RequestError):
            read_photo(tmp_path / name)


def png(width, height, data=b""):
    """A PNG file with any size in its header."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000), (2**31 - 1, 1)])
def test_bombs_are_refused_before_they_unpack(tmp_path, size, recwarn):
    (tmp_path / "bomb.png").write_bytes(png(*size))
    with pytest.raises(RequestError, match=r"64 megapixels"):
        read_photo(tmp_path / "bomb.png")
    assert not recwarn.list


def test_a_sliver_is_refused_where_it_would_be_blown_up(tmp_path):
    Image.new("RGB", (60_000, 1)).save(tmp_path / "sliver.png")
    assert read_photo(tmp_path / "sliver.png").shape == (224, 224, 3)
    with pytest.raises(RequestError, match=r"too narrow"):
        read_photo(tmp_path / "sliver.png", "open_clip")


def test_large_files_are_refused(tmp_path, picture, monkeypatch):
    monkeypatch.setattr("sdm.models.taxabind.photo.MAX_BYTES", 100)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match=r"limit"):
        read_photo(tmp_path / "a.png")


def test_unknown_preprocessing(picture):
    with pytest.raises(RequestError, match=r"'squash'.*taxabind"):
        prepare(Image.fromarray(picture), "squash")


def test_batches_in_order(tmp_path, rng):
    paths = []
    for k in range(11):
        paths.append(tmp_path / f"{k}.png")
        Image.new("RGB", (10, 10), (k, 0, 0)).save(paths[-1])
    batches = list(read_photos(iter(paths), batch=4, workers=3))
    assert [len(b) for b in batches] == [4, 4, 3]
    assert [int(p[0, 0, 0]) for b in batches for p in b] == list(range(11))
    paths.insert(5, tmp_path / "missing.png")
    with pytest.raises(RequestError, match=r"missing.png"):
        list(read_photos(paths, batch=4))
    assert list(read_photos([])) == []
