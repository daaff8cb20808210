"""How long the verbs that run a network again take beside a scan of the same images, in turn, in one run: A B C A B C …

    python benchmarks/verbs.py [--images FOLDER] [--count N] [--repeats N]

Every verb is a command in a process of its own, start-up and imports included, on EfficientNet-Lite0. Printed are medians of its seconds
and of its ratio to the scan that ran beside, with the range of all runs.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

from bench import SAMPLE, machine

from unitscope.demonstration import write_demo_images

MODEL, LAYER, UNIT = "demo:efficientnet-lite0", "_blocks.9._swish#2", "17"


def seconds(folder: Path, *arguments: str) -> float:
    """Of one command, from its start to its end."""
    started = perf_counter()
    command = [sys.executable, "-m", "unitscope", *arguments]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return perf_counter() - started


def link_images(source: Path, folder: Path, count: int) -> Path:
    """So many of the images, in a folder of their own; images repeat under other names where there are fewer."""
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    folder.mkdir()
    for number in range(count):
        original = files[number % len(files)]
        (folder / f"{number // len(files)}-{number % len(files):05}{original.suffix}").symlink_to(original.resolve())
    return folder


def interval(values: Sequence[float]) -> str:
    """The median, and the lowest and the highest value."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of images; the ImageNet sample if it is there, else the demo's")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    source = arguments.images or (SAMPLE if SAMPLE.is_dir() else write_demo_images(Path("demo/images")))
    runs: dict[str, list[float]] = {"scan": [], "check": [], "colour-or-shape": [], "occlude": [], "effects": [], "why": []}
    with tempfile.TemporaryDirectory() as temporary:
        images = link_images(source, Path(temporary, "images"), arguments.count)
        for repeat in range(arguments.repeats):
            folder = Path(temporary, str(repeat))
            folder.mkdir()
            runs["scan"].append(seconds(folder, "scan", MODEL, str(images)))
            runs["check"].append(seconds(folder, "check", "atlas"))
            runs["colour-or-shape"].append(seconds(folder, "colour-or-shape", "atlas"))
            runs["occlude"].append(seconds(folder, "occlude", "atlas", LAYER, UNIT))
            runs["effects"].append(seconds(folder, "effects", "atlas", "--by", "prediction"))
            runs["why"].append(seconds(folder, "why", "atlas", str(next(images.iterdir()))))
            print("  " + " ".join(f"{verb} {times[-1]:.1f} s" for verb, times in runs.items()), file=sys.stderr, flush=True)
    print(f"{machine()}; {MODEL}, {arguments.count:,} images of {source.name}, {arguments.repeats} runs in turn.\n")
    print("| verb | seconds | ÷ scan |\n| --- | ---: | ---: |")
    for verb, times in runs.items():
        ratios = [time / scan for time, scan in zip(times, runs["scan"], strict=True)]
        print(f"| {verb} | {interval(times)} | {interval(ratios)} |")


if __name__ == "__main__":
    main()
