"""A scan beside a plain evaluation loop and, with `--against`, beside the scan of another commit: in turn, in at most 20 minutes.

    python benchmarks/scan.py [--against COMMIT] [--images FOLDER] [--repeats N] [--networks NAME ...]

Printed are medians with the range of all runs: of five runs, that is an interval which holds the true median in 94 of 100 cases.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench import HERE, SAMPLE, machine, measure

from unitscope.demonstration import write_demo_images

NETWORKS = {"torchvision:alexnet": 1200, "torchvision:resnet18": 600, "demo:efficientnet-lite0": 600, "torchvision:vgg16": 160}
"""The networks, and how many images each gets; start-up counts."""


@contextmanager
def checkout(commit: str | None) -> Iterator[Path | None]:
    """A checkout of that commit for as long as the block lasts."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "other")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(root), commit], cwd=HERE.parent, check=True)
        try:
            yield root
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(root)], cwd=HERE.parent, check=True)


def interval(values: Sequence[float], digits: int = 1) -> str:
    """The median, and the lowest and the highest value."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def row(model: str, count: int, runs: Sequence[tuple[float, ...]]) -> str:
    """Milliseconds an image, and ratios of runs side by side."""
    loops, scans, *others = zip(*runs, strict=True)
    cells = [
        f"{model}, {count:,}",
        interval(loops),
        interval(scans),
        interval([scan / loop for scan, loop in zip(scans, loops, strict=True)], 2),
    ]
    for other_scans in others:
        cells += [interval(other_scans), interval([scan / other for scan, other in zip(scans, other_scans, strict=True)], 3)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="COMMIT", help="time the scan of this commit too")
    parser.add_argument("--images", type=Path, help="a folder of images; the ImageNet sample if it is there, else the demo's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    arguments = parser.parse_args()
    folder = arguments.images or (SAMPLE if SAMPLE.is_dir() else write_demo_images(Path("demo/images")))
    names = ["network, images", "loop, ms an image", "scan", "scan ÷ loop"]
    names += [f"scan of {arguments.against}", "scan ÷ that"] if arguments.against else []
    print(f"{machine()}; {arguments.repeats} runs in turn, medians (lowest to highest); images: {folder.name}.\n", flush=True)
    print(f"| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}", flush=True)
    with checkout(arguments.against) as other_root:
        for model in arguments.networks:
            runs = []
            for _ in range(arguments.repeats):
                ways = [("loop", HERE.parent), ("scan", HERE.parent), *([("scan", other_root)] if other_root else [])]
                runs.append(tuple(measure(way, model, folder, NETWORKS[model], root).image_ms for way, root in ways))
                print("  " + " ".join(f"{ms:.1f}" for ms in runs[-1]), file=sys.stderr, flush=True)
            print(row(model, NETWORKS[model], runs), flush=True)


if __name__ == "__main__":
    main()
