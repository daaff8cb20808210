"""What the documentation says is so: its examples run, and nothing public is left out."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from photographs import write_photographs

import unitscope
from unitscope import cli
from unitscope.atlas import TABLES
from unitscope.atlas.schema import PROJECTIONS
from unitscope.experiments.colour_shape import SCHEMA as COLOUR_OR_SHAPE
from unitscope.experiments.occlusion import SCHEMA as CLASS_PROBABILITY

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


def test_every_column_is_documented() -> None:
    page = (ROOT / "docs" / "atlas.md").read_text()
    added = {
        "attributions/METHOD": PROJECTIONS,
        "experiments/colour_or_shape": COLOUR_OR_SHAPE,
        "experiments/class_probability": CLASS_PROBABILITY,
    }
    for table, schema in (TABLES | added).items():
        (row,) = re.findall(rf"^\| `{table}` \| (.*) \|$", page, re.MULTILINE)
        for name in schema.names:
            assert f"`{name}`" in row, f"{table}.{name}"


@pytest.mark.parametrize(
    "code",
    ["unitscope.drawing, unitscope.atlas", "unitscope", "unitscope.images, unitscope.records", "unitscope.cli", "unitscope.web"],
)
def test_looking_at_an_atlas_loads_no_torch(code: str) -> None:
    check = f"import sys, {code}; assert not {{'torch', 'torchvision', 'ray'}} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
