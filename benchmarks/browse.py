"""How the explorer feels in a real browser, on the atlas of EfficientNet-Lite0 over a folder of images.

    python benchmarks/browse.py FOLDER

Prints a part of the bench's page.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

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
SCROLL = """async () => {
  while (window.scrollY + window.innerHeight < document.documentElement.scrollHeight - 1) {
    window.scrollBy(0, 300);
    await new Promise(requestAnimationFrame);
  }
}"""
ALL_THERE = "[...document.querySelectorAll('.blocks img')].slice(-1)[0].complete"


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
    """The large layer's page in a browser that has seen nothing, scrolled to its end."""
    page = fresh(browser)
    started = time.perf_counter()
    page.goto(f"{site}layers/{slug(LARGE)}.html")
    page.wait_for_function("window.seen.first !== null")
    page.evaluate(SCROLL)
    page.wait_for_function(ALL_THERE, timeout=120_000)
    seen, all_s = page.evaluate("window.seen"), time.perf_counter() - started
    page.context.close()
    return (
        f"| layer of 1,280 units: first patches | {seen['first'] / 1e3:.2f} s |\n"
        f"| its last block, scrolled to at once | {all_s:.1f} s |\n"
        f"| cumulative layout shift | {seen['shift']:.3f} |\n"
        f"| longest task, loading and scrolling to the end | {seen['longest']:.0f} ms |\n"
    )


def unit_pages(browser: Browser, site: str) -> str:
    """Pages of neighbouring units, one after the other: to the last picture."""
    page, times = fresh(browser), []
    for unit in UNITS:
        page.goto(f"{site}units/{slug(LARGE)}/{unit}.html")
        page.wait_for_load_state("networkidle")
        times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
    page.context.close()
    return f"| unit page, warm, with its pictures | {median(times[3:]):.0f} ms |\n"


def every_layer(browser: Browser, site: str, server: psutil.Process, atlas: Atlas) -> str:
    """The server's memory after every layer was opened and all its blocks were drawn."""
    page = fresh(browser)
    for layer in atlas.layers:
        page.goto(f"{site}layers/{slug(layer.name)}.html")
    while server.cpu_percent(interval=1.0) > 20:
        pass
    page.context.close()
    return (
        f"| memory of the server after opening all {len(atlas.layers)} layers | {server.memory_full_info().pss / 1e6:.0f} MB |\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as held, sync_playwright() as playwright:
        folder, site = Path(held, "atlas"), Path(held, "site")
        run("scan", MODEL, sys.argv[1], "--out", str(folder))
        atlas = Atlas(folder)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        lines = ""
        with serving(folder) as (address, server):
            lines += layer_page(browser, address)
            lines += unit_pages(browser, address)
            lines += every_layer(browser, address, server, atlas)
        seconds = run("export", str(folder), str(site))
        files = [path.stat().st_size for path in site.rglob("*") if path.is_file()]
        lines += f"| export | {seconds:.0f} s, {len(files):,} files, {sum(files) / 1e6:,.0f} MB |\n"
        browser.close()
    units = sum(layer.units for layer in atlas.layers)
    print(f"### The explorer, on {MODEL}: {units:,} units, {atlas.manifest['read']} images\n\n| | |\n| --- | ---: |\n{lines}")


if __name__ == "__main__":
    main()
