"""What the documentation says is so: its examples run, and nothing public is left out."""

import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from networks import small_network
from photographs import write_photographs

import unitscope
from unitscope import cli
from unitscope.atlas.tables import ATLAS_TABLES, ATTRIBUTION_METHODS, OWN_TABLES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "cli.md")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs")
    commands = [
        line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines() if line.startswith("$ unitscope")
    ]
    assert commands.pop(0) == "unitscope demo"  # see test_demonstration
    assert len(commands) == 6
    assert commands.pop() == "unitscope serve atlas"
    for command in commands:
        words = [sys.executable, "-m", *shlex.split(command)]
        ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{command}: {ran.stderr}"
    assert {"figure.png", "sheet.png"} <= {path.name for path in tmp_path.iterdir()}
    with subprocess.Popen(
        [sys.executable, "-m", "unitscope", "serve", "atlas"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stdout is not None
        said = serving.stdout.readline()
        serving.kill()
    assert said.startswith("http://127.0.0.1:8000/ shows atlas")


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs")
    (code,) = blocks("python")
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "_blocks.9._swish#2 ReLU6 672 275" in ran.stdout


def notebook_of_the_tutorial() -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)


def test_the_notebook_is_the_tutorial() -> None:
    """Made from the page by docs/notebook.py."""
    spec = spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    notebook = module_from_spec(spec)
    spec.loader.exec_module(notebook)
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^## \d+\. ", page, re.MULTILINE)) == 10
    assert notebook.notebook_of(page) == notebook_of_the_tutorial()


@pytest.mark.slow
def test_the_tutorial_finds_the_unit_that_looks_for_wheels(tmp_path: Path) -> None:
    notebook = notebook_of_the_tutorial()
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = "".join(output["text"] for output in outputs if output.output_type == "stream" and output["name"] == "stdout")
    units, z_scores = re.findall(r"\[(.*?)\]", texts)[-2:]
    assert "99" in units.split(", ")
    ranked = [float(z) for z in z_scores.split()]
    assert min(ranked[:5]) > 4 > max(ranked[5:])
    assert re.search(r"([\d,]+) of \1 peaks come back", texts)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4


@pytest.mark.slow
def test_the_example_of_a_notebook_runs(tmp_path: Path) -> None:
    """It is kept with its outputs; run again, it shows the same units."""
    kept = nbformat.read(ROOT / "examples" / "atlas.ipynb", as_version=4)
    notebook = nbformat.read(ROOT / "examples" / "atlas.ipynb", as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()

    def outputs(of: nbformat.NotebookNode, kind: str) -> list[str]:
        of_cells = [output for cell in of.cells for output in cell.get("outputs", [])]
        return [output["data"][kind] for output in of_cells if kind in output.get("data", {})]

    frames = [html for html in outputs(notebook, "text/html") if "<iframe" in html]
    units = [[html for html in outputs(of, "text/html") if "unit 20" in html] for of in (kept, notebook)]
    assert len(frames) == len(units[1]) == 1
    assert re.findall(r"[\d.]+ to [\d.]+", units[0][0]) == re.findall(r"[\d.]+ to [\d.]+", units[1][0])
    assert len(outputs(kept, "image/png")) == len(outputs(notebook, "image/png")) == 2


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_verb_is_documented() -> None:
    assert len(cli.COMMANDS) >= 6
    for command in cli.COMMANDS:
        assert command.__doc__
        assert re.search(rf"`?(unitscope |\b){command.__name__}\b", PAGES)


def test_every_public_name_is_documented() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    for name in unitscope.__all__:
        assert f":: unitscope.{name}\n" in page
        assert getattr(unitscope, name).__doc__


def test_every_column_of_every_declared_table_is_documented() -> None:
    page = (ROOT / "docs" / "atlas.md").read_text()
    for spec in (ATLAS_TABLES | OWN_TABLES).values():
        name = "METHOD" if spec.name in ATTRIBUTION_METHODS else spec.name
        (row,) = re.findall(rf"^\| `{name}` \| {spec.level} \| (.*) \|$", page, re.MULTILINE)
        for column in spec.schema.names:
            assert f"`{column}`" in row, f"{spec.name}.{column}"


def test_the_example_of_a_table_of_ones_own_runs(tmp_path: Path) -> None:
    atlas = unitscope.scan(small_network(), torch.rand(4, 3, 14, 14), tmp_path / "atlas")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "atlas.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    units = atlas.units("4", joined=True)
    assert units["sparseness.sparseness"].to_pylist() == [1 - rate for rate in units["activation_rate"].to_pylist()]


def test_every_declared_table_and_column_is_described() -> None:
    for spec in (ATLAS_TABLES | OWN_TABLES).values():
        for text in (spec.description, *(column.description for column in spec.columns)):
            assert text.strip() == text != ""
            assert not text.endswith(".")
            assert "\n" not in text


@pytest.mark.parametrize(
    "code",
    ["unitscope.drawing, unitscope.atlas", "unitscope", "unitscope.images, unitscope.records", "unitscope.cli", "unitscope.web"],
)
def test_looking_at_an_atlas_loads_no_torch(code: str) -> None:
    check = f"import sys, {code}; assert not {{'torch', 'torchvision', 'ray'}} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
