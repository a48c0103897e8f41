"""The README's picture: the top of a run's report.html in a headless Chromium, as a PNG of few colours.

python scripts/picture.py RUN/report.html scripts/report.png
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1100, 900
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MOST_BYTES = 200_000
COLOURS = 64


def main(page: Path, picture: Path) -> None:
    """Take it; raises SystemExit where there is no Chromium or the file would be too large for a README."""
    chromium = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if chromium is None:
        raise SystemExit("no Chromium here to take it with")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [
            chromium, "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}",
            f"--user-data-dir={folder}/profile", "--virtual-time-budget=4000", f"--screenshot={shot}",
            f"file://{page.absolute()}",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        Image.open(shot).convert("RGB").quantize(COLOURS).save(picture, optimize=True)
    if picture.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{picture}: {picture.stat().st_size} bytes, at most {MOST_BYTES}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
