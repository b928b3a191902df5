"""The explorer's ready-made page: a small network, trained here on drawn shapes for some seconds, and one step of it.

`python docs/figures/explorer_page.py [FILE]` writes it, to docs/explorer.html unless told otherwise. It is not committed:
the site makes it anew whenever it is built, by the same function.
"""

import sys
from pathlib import Path

from scratchnet.explore import demo


def main(path=Path(__file__).parents[1] / "explorer.html"):
    """Write it and say how large it is."""
    size, _ = demo(path)
    print(f"{path}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
