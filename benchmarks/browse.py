"""How the explorer feels in a real browser, on the atlas of EfficientNet-Lite0 over a folder of images.

    python benchmarks/browse.py FOLDER

Prints a part of the bench's page.
"""

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
CLIENTS, CLIENTS_S = 20, 30


def run(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "unitscope", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


@contextmanager
def serving(atlas: Path) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "unitscope", "serve", str(atlas), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0], psutil.Process(process.pid)
        finally:
            process.terminate()


def fresh(browser: Browser) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True).new_page()
    page.add_init_script(WATCH)
    return page


def layer_page(browser: Browser, site: str) -> str:
    """The large layer's page in a browser that has seen nothing; then its end, jumped to."""
    page = fresh(browser)
    page.goto(f"{site}layers/{slug(LARGE)}.html")
    page.wait_for_function("window.seen.first !== null")
    started = time.perf_counter()
    page.evaluate(JUMP)
    page.wait_for_function(LAST_IS_THERE, timeout=120_000)
    seen, jump_s = page.evaluate("window.seen"), time.perf_counter() - started
    page.context.close()
    return (
        f"| layer of 1,280 units: first patches | {seen['first'] / 1e3:.2f} s |\n"
        f"| its last block, jumped to | {jump_s:.2f} s |\n"
        f"| cumulative layout shift | {seen['shift']:.3f} |\n"
        f"| longest task | {seen['longest']:.0f} ms |\n"
    )


def unit_pages(browser: Browser, site: str) -> str:
    """A unit's page in a browser that has seen nothing, then those of its neighbours, to the last picture."""
    page, times, sizes = fresh(browser), [], []
    page.on("response", lambda response: sizes.append(len(response.body())))
    for unit in UNITS:
        page.goto(f"{site}units/{slug(LARGE)}/{unit}.html")
        page.wait_for_load_state("networkidle")
        times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        if unit == UNITS[0]:
            first = f"{len(sizes)} requests, {sum(sizes) / 1e3:.0f} kB"
    page.context.close()
    return f"| unit page | {first} |\n| its neighbours, warm, with their pictures | {median(times[3:]):.0f} ms |\n"


def many_clients(site: str, server: psutil.Process, atlas: Atlas) -> str:
    """Twenty programs that ask for units and layers at random, as fast as they are answered."""
    times: list[float] = []
    errors: list[str] = []
    end = time.perf_counter() + CLIENTS_S

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
    times.sort()
    return (
        f"| {CLIENTS} clients, {CLIENTS_S} s: requests, errors | {len(times):,}, {len(errors)} |\n"
        f"| median, 99 of 100 within | {times[len(times) // 2]:.2f} s, {times[len(times) * 99 // 100]:.2f} s |\n"
        f"| memory of the server then | {server.memory_full_info().pss / 1e6:.0f} MB |\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as held, sync_playwright() as playwright:
        folder, site = Path(held, "atlas"), Path(held, "site")
        run("scan", MODEL, sys.argv[1], "--out", str(folder))
        atlas = Atlas(folder)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        lines = ""
        for is_packed in (False, True):
            if is_packed:
                seconds, tables = run("pack", str(folder)), (folder / "tables").glob("p*s.parquet")
                lines += f"| **packed** | {seconds:.0f} s, {sum(table.stat().st_size for table in tables) / 1e6:,.0f} MB |\n"
            with serving(folder) as (address, server):
                lines += layer_page(browser, address)
                lines += unit_pages(browser, address)
                lines += many_clients(address, server, atlas)
        seconds = run("export", str(folder), str(site))
        files = [path.stat().st_size for path in site.rglob("*") if path.is_file()]
        lines += f"| export | {seconds:.0f} s, {len(files):,} files, {sum(files) / 1e6:,.0f} MB |\n"
        browser.close()
    units = sum(layer.units for layer in atlas.layers)
    print(f"### The explorer, on {MODEL}: {units:,} units, {atlas.manifest['read']} images\n\n| | |\n| --- | ---: |\n{lines}")


if __name__ == "__main__":
    main()
