"""The picture in the README: the web map of `make map`, photographed by a headless Chromium.

make map && python recipes/readme_picture.py maps/ursus-arctos.html docs/ursus-arctos.png
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
]


def main(page: str, picture: str) -> None:
    """Photograph `page` at 1200 x 800 pixels into `picture`."""
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile) / "shot.png"
        subprocess.run(
            [
                "chromium",
                *FLAGS,
                f"--user-data-dir={profile}",
                "--window-size=1200,800",
                f"--screenshot={shot}",
                Path(page).resolve().as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        Image.open(shot).convert("RGB").save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
