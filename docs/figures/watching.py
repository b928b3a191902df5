"""The page of --watch as a picture, docs/figures/watching.png: a run on drawn shapes is looked at in its last epoch.

python docs/figures/watching.py          (extras test-browser and plot; Chromium; some minutes)
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
RUN = [
    "--sample",
    "--width",
    "0.1",
    "--epochs",
    "8",
    "--batch-size",
    "64",
    "--watch",
    "--ranks",
    "1",
    "--out",
    "runs/shapes",
]


def main():
    """Train, look, and keep the picture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", str(HERE.parents[1] / "train_cifar.py"), *RUN]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
        url = next(line.split()[1] for line in run.stdout if line.startswith("watch "))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.goto(url)
            page.locator("#confusion-title", has_text="epoch 7").wait_for(timeout=1_800_000)
            page.wait_for_timeout(5000)
            picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
            browser.close()
        run.kill()
        run.wait()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(HERE / "watching.png", optimize=True)


if __name__ == "__main__":
    main()
