"""Photos as the image tower expects them: (224, 224, 3) uint8 RGB.

Photos are untrusted input: only a few formats are opened, with a limit on bytes and on pixels, and no truncated
files. The steps are TaxaBind's (`Resize((256, 256))`, `CenterCrop(224)` of torchvision, which on a
Pillow image is Pillow's own antialiased resize, so the bytes are the same); see `PREPROCESS`.
Colour profiles are ignored, as they were in training.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdm.errors import RequestError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
"""Nothing else is opened: every decoder is attack surface."""
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64_000_000
"""As many as cameras have; a quarter of a gigabyte as Pillow holds them, of which two are needed at a time."""
MAX_SIDE = 65_535
"""Pixels, as in JPEG: a picture of one column would become one of 256 while it is resized."""
_STRIP = 4 << 20
"""Pixels that are converted at a time."""
SIZE = 224
"""Pixels on a side of what the image tower sees."""
PREPROCESS = ("taxabind", "open_clip")
"""`taxabind`: squash to 256 x 256, bilinear, centre crop: what the model was trained and evaluated with.
`open_clip`: shortest side to 224, bicubic, centre crop: what the model card's open_clip code does."""

_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""The transposition that turns a picture with an EXIF orientation upright."""

_open_lock = threading.Lock()


def read_photo(path: str | Path, preprocess: str = "taxabind") -> np.ndarray:
    """One photo file -> (224, 224, 3) uint8 RGB, upright (EXIF orientation applied), alpha over white.

    Raises RequestError when the file is missing, of another format, too large, truncated or corrupt.
    """
    return prepare(open_photo(path), preprocess)


def read_photos(
    paths: Iterable[str | Path], preprocess: str = "taxabind", batch: int = 64, workers: int | None = None
) -> Iterator[np.ndarray]:
    """Photo files -> batches of at most (batch, 224, 224, 3) uint8, in order.

    Threads decode at most two batches ahead (Pillow releases the interpreter lock), so that a device computes one
    batch while the next is read. Raises as `read_photo`.
    """
    paths = iter(paths)
    with ThreadPoolExecutor(workers) as pool:
        try:
            ahead = deque(pool.submit(read_photo, p, preprocess) for p in islice(paths, 2 * batch))
            while ahead:
                photos = [ahead.popleft().result() for _ in range(min(batch, len(ahead)))]
                ahead.extend(pool.submit(read_photo, p, preprocess) for p in islice(paths, len(photos)))
                yield np.stack(photos)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def prepare(image: Image.Image, preprocess: str = "taxabind") -> np.ndarray:
    """Resize and crop an RGB Pillow image -> (224, 224, 3) uint8."""
    from PIL import Image

    if preprocess == "taxabind":
        image = image.resize((256, 256), Image.Resampling.BILINEAR)
    elif preprocess == "open_clip":
        short, long = sorted(image.size)
        longer = SIZE * long // short
        if longer > MAX_PIXELS // SIZE:
            raise RequestError(f"a photo of {image.width} x {image.height} pixels is too narrow; crop it first.")
        # torchvision leaves an image alone whose shortest side fits already.
        if short != SIZE:
            size = (SIZE, longer) if image.width <= image.height else (longer, SIZE)
            image = image.resize(size, Image.Resampling.BICUBIC)
    else:
        raise RequestError(f"preprocessing {preprocess!r} is not known; choose one of {', '.join(PREPROCESS)}.")
    # Rounded as torchvision's CenterCrop does: half a pixel goes to the even side.
    left, top = round((image.width - SIZE) / 2), round((image.height - SIZE) / 2)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def open_photo(path: str | Path) -> Image.Image:
    """A photo file as an upright RGB Pillow image, fully decoded. Raises RequestError."""
    from PIL import Image, UnidentifiedImageError

    name = str(path)[:200]
    try:
        if not Path(path).is_file():
            raise RequestError(f"photo {name!r} does not exist or is not a file.")
        if (size := Path(path).stat().st_size) > MAX_BYTES:
            raise RequestError(f"photo {name!r} has {size / 2**20:.0f} MiB; the limit is {MAX_BYTES // 2**20} MiB.")
        # Filters of warnings belong to the whole process, hence the lock; only the header is read here.
        with _open_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise _too_many_pixels(name)
            image.load()
            orientation = _orientation(image)
            rgb = _to_rgb(image, name)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels(name) from None
    except UnidentifiedImageError:
        raise RequestError(
            f"photo {name!r} is not one of {', '.join(FORMATS)} (or is damaged); convert it, for example to JPEG."
        ) from None
    except RequestError:
        raise
    except Exception as error:  # decoders raise errors of every kind for damaged files
        raise RequestError(f"photo {name!r} cannot be read: {error or type(error).__name__}.") from error
    turn = _TURNS.get(orientation)
    return rgb if turn is None else rgb.transpose(Image.Transpose[turn])


def _too_many_pixels(name: str) -> RequestError:
    return RequestError(
        f"photo {name!r} has more than {MAX_PIXELS / 1e6:.0f} megapixels or {MAX_SIDE:,} on a side; reduce it first."
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; read after decoding, since Pillow turns a TIFF by itself and drops the tag."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF is common, and no reason to refuse the picture
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode that a photo can have -> RGB: alpha over white, 16 bits to 8, floats from 0..1 or 0..255."""
    from PIL import Image

    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "LAB":
        raise RequestError(f"photo {name!r} is in the Lab colour space; convert it to RGB.")
    to_bytes = _grey_scale(image, name) if image.mode in ("I", "F") or image.mode.startswith("I;") else None
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if to_bytes:
            strip = Image.fromarray(to_bytes(np.asarray(strip)))
        elif image.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        rgb.paste(strip.convert("RGB"), (0, top))
    return rgb


def _grey_scale(image: Image.Image, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Function: grey levels of a 16-bit or float image -> uint8."""
    grey = np.asarray(image)
    low, high = float(grey.min()), float(grey.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RequestError(f"photo {name!r} has pixels that are not finite.")
    top = (1.0, 255.0) if grey.dtype.kind == "f" else (65535.0,)
    fitting = [t for t in top if high <= t]
    if low < 0 or not fitting:
        raise RequestError(
            f"photo {name!r} has grey levels from {low:g} to {high:g}; a photo has 0..65535 as integers, 0..1 or "
            "0..255 as floats. Convert it to 8 bits."
        )
    return lambda part: (part.astype(np.float64) * (255.0 / fitting[0]) + 0.5).astype(np.uint8)
