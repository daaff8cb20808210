"""How the explorer feels in a real browser, and under many clients, on an atlas of EfficientNet-Lite0.

    python benchmarks/browse.py IMAGES_OR_ATLAS [--before SRC] [--repeats N] [--clients-s S] [--no-export]

Given a folder of images, it scans them first; an atlas is copied. With `--before`, the folder `src` of another checkout, every figure is
measured for that too, in turn. Prints a part of the bench's page.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from unitscope.atlas import Atlas
from unitscope.web.addresses import slug

MODEL = "demo:efficientnet-lite0"
LARGE = "_swish#2"
"""The layer of 1,280 units."""
UNITS = range(100, 120)
CLIENTS = 20
READ_AHEAD_S = 10
"""By when a server has read what layers' pages need."""
HERE = Path(__file__).parents[1] / "src"
WATCH = """
window.seen = {first: null, shift: 0, longest: 0};
document.addEventListener("load", event => {
  if (event.target.tagName === "IMG" && event.target.closest(".blocks")) window.seen.first ??= performance.now();
}, true);
new PerformanceObserver(list => { for (const one of list.getEntries()) window.seen.shift += one.value; }).observe({type: "layout-shift", buffered: true});
new PerformanceObserver(list => { for (const one of list.getEntries()) window.seen.longest = Math.max(window.seen.longest, one.duration); })
  .observe({type: "longtask", buffered: true});
"""
JUMP = "document.querySelector('#units > li:last-child').scrollIntoView()"
LAST_IS_THERE = "(last => last.complete && last.naturalWidth > 0)(document.querySelector('#units > li:last-child img'))"

Figures = dict[str, float]
"""By what was measured, with the unit in the name."""


def run(src: Path, *arguments: str) -> float:
    """One command of that checkout; gives the seconds that it took."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "unitscope", *arguments], check=True, stdout=subprocess.DEVNULL, env=environment(src))
    return time.perf_counter() - started


def environment(src: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(src), "PYTHONUNBUFFERED": "1"}


@contextmanager
def serving(src: Path, atlas: Path) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "unitscope", "serve", str(atlas), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(src)) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield next(word for word in line.split() if word.startswith("http")), psutil.Process(process.pid)
        finally:
            process.terminate()


def new_page(browser: Browser) -> Page:
    """In a browser that has seen nothing."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True).new_page()
    page.add_init_script(WATCH)
    return page


def layer_page(browser: Browser, site: str) -> Figures:
    """The large layer's page; then its end, jumped to."""
    page = new_page(browser)
    page.goto(f"{site}layers/{slug(LARGE)}.html")
    page.wait_for_function("window.seen.first !== null")
    started = time.perf_counter()
    page.evaluate(JUMP)
    page.wait_for_function(LAST_IS_THERE, timeout=120_000)
    seen, jump_s = page.evaluate("window.seen"), time.perf_counter() - started
    page.context.close()
    return {
        "layer of 1,280 units: first patches, s": seen["first"] / 1e3,
        "its last block, jumped to, s": jump_s,
        "cumulative layout shift": seen["shift"],
        "longest task, ms": seen["longest"],
    }


def unit_pages(browser: Browser, site: str) -> Figures:
    """A unit's page, then those of its neighbours, to the last picture."""
    page, times = new_page(browser), []
    for unit in UNITS:
        page.goto(f"{site}units/{slug(LARGE)}/{unit}.html", wait_until="networkidle")
        times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        if unit == UNITS[0]:
            sizes = page.evaluate("performance.getEntries().map(entry => entry.transferSize).filter(size => size !== undefined)")
    page.context.close()
    return {
        "unit page: requests": len(sizes),
        "unit page: kB": sum(sizes) / 1e3,
        "its neighbours with their pictures, ms": median(times[3:]),
    }


def many_clients(site: str, server: psutil.Process, atlas: Atlas, seconds: float) -> Figures:
    """Programs that ask for units and layers at random, as fast as they are answered."""
    times: list[float] = []
    errors: list[str] = []
    before, end = server.cpu_times(), time.perf_counter() + seconds

    def get(path: str) -> None:
        started = time.perf_counter()
        try:
            with urlopen(site + path, timeout=120) as answer:
                answer.read()
        except OSError as error:
            errors.append(f"{path}: {error}")
        times.append(time.perf_counter() - started)

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        while time.perf_counter() < end:
            layer = chance.choice(atlas.layers)
            unit, name = chance.randrange(layer.units), slug(layer.name)
            if chance.random() < 0.2:
                get(f"layers/{name}.html")
                for shown in range(min(layer.units, 24)):
                    get(f"blocks/{name}/{shown}.jpg")
            else:
                for path in (f"units/{name}/{unit}.html", f"blocks/{name}/{unit}.jpg", f"bands/{name}/{unit}.jpg"):
                    get(path)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS)))
    for error in errors[:3]:
        print(error, file=sys.stderr)
    times.sort()
    after = server.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return {
        f"{CLIENTS} clients, {seconds:g} s: requests": len(times),
        "errors": len(errors),
        "median, ms": times[len(times) // 2] * 1e3,
        "99 of 100 within, ms": times[len(times) * 99 // 100] * 1e3,
        "the server's CPU time for a request, ms": cpu_s / len(times) * 1e3,
        "memory of the server then, MB": server.memory_full_info().pss / 1e6,
    }


def exported(src: Path, atlas: Path) -> Figures:
    with tempfile.TemporaryDirectory() as held:
        seconds = run(src, "export", str(atlas), str(Path(held, "site")))
        sizes = [path.stat().st_size for path in Path(held, "site").rglob("*") if path.is_file()]
    return {"export, s": seconds, "export: files": len(sizes), "export: MB": sum(sizes) / 1e6}


def measured(src: Path, atlas: Path, browser: Browser, arguments: argparse.Namespace) -> Figures:
    """All figures of one checkout: before packing, after a restart, and packed."""
    figures: Figures = {}
    for state in ("not packed", "restarted", "packed"):
        if state == "packed":
            figures["packing, s"] = run(src, "pack", str(atlas))
            figures["packing: MB"] = (
                sum((atlas / "tables" / f"{name}.parquet").stat().st_size for name in ("patches", "pictures")) / 1e6
            )
        with serving(src, atlas) as (address, server):
            of_state = layer_page(browser, address)
            if state != "restarted":
                of_state |= unit_pages(browser, address) | many_clients(address, server, Atlas(atlas), arguments.clients_s)
        figures |= {f"{state}: {name}": value for name, value in of_state.items()}
    with serving(src, atlas) as (address, _):
        time.sleep(READ_AHEAD_S)
        figures |= {
            f"packed, asked after {READ_AHEAD_S} s: {name}": value for name, value in layer_page(browser, address).items()
        }
    return figures if arguments.no_export else figures | exported(src, atlas)


def copied(atlas: Path, folder: Path) -> Path:
    """A copy that isn't packed, in a folder of its own."""
    copy = folder / "atlas"
    shutil.copytree(atlas, copy, ignore=shutil.ignore_patterns("patches.parquet", "pictures.parquet"))
    return copy


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images_or_atlas", type=Path)
    parser.add_argument("--before", type=Path, help="the folder src of another checkout")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--clients-s", type=float, default=30)
    parser.add_argument("--no-export", action="store_true")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    checkouts = [HERE] if arguments.before is None else [arguments.before.resolve(), HERE]
    runs: dict[Path, list[Figures]] = {src: [] for src in checkouts}
    with tempfile.TemporaryDirectory() as held, sync_playwright() as playwright:
        atlas = arguments.images_or_atlas
        if not (atlas / "atlas.json").exists():
            atlas = Path(held, "scanned")
            run(HERE, "scan", MODEL, str(arguments.images_or_atlas), "--out", str(atlas))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        for _ in range(arguments.repeats):
            for src in checkouts:
                with tempfile.TemporaryDirectory() as folder:
                    runs[src].append(measured(src, copied(atlas, Path(folder)), browser, arguments))
        browser.close()
        opened = Atlas(atlas)
        units, images = sum(layer.units for layer in opened.layers), opened.manifest["read"]
    print(f"### The explorer, on {MODEL}: {units:,} units, {images:,} images\n")
    print("| | " + " | ".join(["before", "now"][-len(checkouts) :]) + " |\n| --- |" + " ---: |" * len(checkouts))
    for name in runs[HERE][0]:
        values = [median(figures[name] for figures in runs[src] if name in figures) for src in checkouts]
        print(f"| {name} | " + " | ".join(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values) + " |")


if __name__ == "__main__":
    main()
