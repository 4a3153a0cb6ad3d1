"""Photographs in colour in class folders, for the suite ``stamps``: Tux Paint's stamps, without drawings.

    apt-get install tuxpaint-stamps-default                       # Debian and Ubuntu, 160 MB, GPL-2
    python benchmarks/perf/stamps.py [source=/usr/share/tuxpaint/stamps] [out=data/stamps]

Eight classes by the folders of the package. Cut-out objects on transparent ground, which maelift composites on white.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

CLASSES = {
    "birds": ("animals/birds",),
    "mammals": ("animals/mammals", "animals/marsupials"),
    "small_animals": ("animals/fish", "animals/insects", "animals/amphibians", "animals/lizards", "animals/shellfish"),
    "food": ("food",),
    "plants": ("plants",),
    "things": ("household", "hobbies", "sports"),
    "vehicles": ("vehicles", "military"),
    "coins": (*tuple(f"symbols/money/{place}/coins" for place in ("us", "euro", "canadian")), "symbols/money/japanese"),
}
DRAWN = "cartoon"
"""In the path of what isn't a photograph."""


def stamps(source: Path, name: str) -> list[Path]:
    """The photographs of a class, by path."""
    found = (path for folder in CLASSES[name] for path in (source / folder).rglob("*.png"))
    return sorted(path for path in found if DRAWN not in str(path.relative_to(source)))


def main(words: list[str]) -> None:
    """Copy the photographs of every class."""
    keys = {"source": "/usr/share/tuxpaint/stamps", "out": "data/stamps", **dict(word.split("=", 1) for word in words)}
    source, out = Path(keys["source"]), Path(keys["out"])
    if not source.is_dir():
        raise SystemExit(f"source={source}: not there. Debian and Ubuntu: apt-get install tuxpaint-stamps-default")
    for name in CLASSES:
        (out / name).mkdir(parents=True, exist_ok=True)
        images = stamps(source, name)
        for path in images:
            shutil.copyfile(path, out / name / "_".join(path.relative_to(source).parts))
        print(f"{name}: {len(images)} photographs")


if __name__ == "__main__":
    main(sys.argv[1:])
