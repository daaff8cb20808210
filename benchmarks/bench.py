"""How long a scan takes beside the other ways, in turn, in one run: A B C A B C …

    python benchmarks/bench.py [--images FOLDER] [--repeats N] [--share S] [--networks NAME …]

Every way is timed in a process of its own, on the same files, and the memory of that process and its children is watched. The
table is printed and written to `benchmarks/results/`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import sleep

import psutil
import torch

from unitscope.demonstration import write_demo_images
from unitscope.scanning.screening import has_bfloat16

HERE = Path(__file__).parent
SAMPLE = HERE.parents[1] / "shared" / "data" / "imagenet-sample"
NETWORKS = {"torchvision:alexnet": 4800, "torchvision:resnet18": 2400, "demo:efficientnet-lite0": 2400, "torchvision:vgg16": 640}
"""The networks, and how many images each gets: so many that start-up doesn't count. Files repeat under other names."""
WAYS = {"loop": 1, "scan": 1, "steady": 2, "hooks": 4, "floor": 4, "crp": 8}
"""The ways, and the share of the images that each gets: one in so many."""
PAIRS = {
    "Two Ray workers of one core beside one scan on two": ("torchvision:resnet18", 1200, "steady", "ray"),
    "Screening in bfloat16 beside float32, one layer of 48 units": ("torchvision:googlenet", 4800, "narrow", "screened"),
}
"""Other questions: a network, how many images, and two ways."""
WORDS = {
    "loop": "evaluation loop",
    "scan": "unitscope scan, fp32",
    "hooks": "hooks, amax, topk",
    "floor": "floor",
    "crp": "zennit-crp 0.6.0",
    "steady": "the same, start-up and end aside",
    "ray": "on Ray",
    "narrow": "fp32",
    "screened": "bf16",
}


@dataclass(frozen=True)
class Measured:
    """Milliseconds an image, and the highest memory in MB."""

    image_ms: float
    memory_mb: float


def measure(way: str, model: str, folder: Path, images: int, root: Path = HERE.parent) -> Measured:
    """One way in a process of its own, by the code of the checkout at `root`."""
    command = [sys.executable, str(root / "benchmarks" / "ways.py"), way, model, str(folder), str(images)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(HERE.parent / ".bench")])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        peak_bytes = 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, memory_of(process.pid))
            sleep(1)  # to look costs time too
        output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{way} of {model} failed:\n{errors[-2000:]}")
    return Measured(json.loads(output.splitlines()[-1])["seconds"] / images * 1e3, peak_bytes / 1e6)


def memory_of(pid: int) -> int:
    """Bytes of a process and its children; what they share counts once."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup")
            total += proportional(rollup.read_text()) if rollup.exists() else process.memory_full_info().uss
    except (psutil.Error, OSError):
        pass  # one that has just ended
    return total


def proportional(rollup: str) -> int:
    """Bytes of a process's memory, where what several share counts for each in part."""
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def machine() -> str:
    """Processor and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "unitscope"))
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def table(model: str, count: int, measured: dict[str, list[Measured]]) -> str:
    """Medians, and medians of the ratios to the loop that ran beside."""
    lines = [f"### {model}, {count:,} images", "", "| way | ms an image | ÷ loop | memory |", "| --- | ---: | ---: | ---: |"]
    for way, runs in measured.items():
        ratio = median(run.image_ms / loop.image_ms for run, loop in zip(runs, measured["loop"], strict=True))
        memory = f"{median(run.memory_mb for run in runs):,.0f} MB" if way != "floor" else ""
        lines.append(f"| {WORDS[way]} | {median(run.image_ms for run in runs):.1f} | {ratio:.2f} | {memory} |")
    scans = measured["scan"]
    share = median(least.image_ms / scan.image_ms for least, scan in zip(measured["floor"], scans, strict=True))
    faster = median(other.image_ms / scan.image_ms for other, scan in zip(measured["crp"], scans, strict=True))
    lines += ["", f"The scan reaches {share:.2f} of the floor and is {faster:.1f} times as fast as zennit-crp.", ""]
    return "\n".join(lines)


def pair(title: str, folder: Path, repeats: int, share: float) -> str:
    model, full, first, second = PAIRS[title]
    if second == "screened" and not has_bfloat16(torch.device("cpu")):
        return f"### {title}\n\nNot here: this processor has no fast bfloat16 arithmetic, so such a scan runs in float32.\n"
    count = int(full * share)
    runs = [(measure(first, model, folder, count), measure(second, model, folder, count)) for _ in range(repeats)]
    faster = median(slow.image_ms / fast.image_ms for slow, fast in runs)
    times = [median(run[index].image_ms for run in runs) for index in (0, 1)]
    return (
        f"### {title}\n\n{model}, {count:,} images: {WORDS[first]} {times[0]:.1f} ms an image, {WORDS[second]} {times[1]:.1f} ms: "
        f"{faster:.2f} times as fast.\n"
    )


def measured_by(script: str, folder: Path) -> str:
    """What another script here measures and prints."""
    command = [sys.executable, str(HERE / script), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "src")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of images; the ImageNet sample if it is there, else the demo's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="share of the images that a full run takes")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    arguments = parser.parse_args()
    folder = arguments.images or (SAMPLE if SAMPLE.is_dir() else write_demo_images(Path("demo/images")))
    heading = (
        f"# {date.today():%Y-%m-%d}: {machine()}\n\n"
        f"{arguments.repeats} runs in turn, medians; images: {folder.name}. The ways on fewer images: "
        "a scan without its start-up half, hooks and floor a quarter, zennit-crp an eighth.\n"
    )
    print(heading, flush=True)
    written = [heading]
    for model in arguments.networks:
        count = int(NETWORKS[model] * arguments.share)
        measured: dict[str, list[Measured]] = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):
            for way in WAYS:
                measured[way].append(measure(way, model, folder, max(32, count // WAYS[way])))
                print(f"  {way} {measured[way][-1].image_ms:.1f} ms", file=sys.stderr, flush=True)
        written.append(table(model, count, measured))
        print(written[-1], flush=True)
    for title in PAIRS if arguments.networks == list(NETWORKS) else ():
        written.append(pair(title, folder, arguments.repeats, arguments.share))
        print(written[-1], flush=True)
    for script in ("projecting.py", "browse.py") if arguments.networks == list(NETWORKS) else ():
        written.append(measured_by(script, folder))
        print(written[-1], flush=True)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"{date.today():%Y-%m-%d}.md").write_text("\n".join(written))


if __name__ == "__main__":
    main()
