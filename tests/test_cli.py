"""The command line: every verb, what bad input gets, and exit statuses."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from photographs import write_photographs
from PIL import Image

from unitscope.atlas import Atlas
from unitscope.cli import COMMANDS, main

NETWORK = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 13 * 13, 5))

def network_of_convolutions():
    return network()[:4]

def first_layer():
    return network()[:2]

def with_nan():
    return nn.Sequential(nn.Conv2d(3, 6, 3), FirstUnitNaN())

class FirstUnitNaN(nn.Module):
    def forward(self, maps):
        return torch.cat([maps[:, :1] * torch.nan, maps[:, 1:]], dim=1)
"""
PREPROCESSING = ["--resize", "32", "--crop", "32", "--mean", "0.5", "0.5", "0.5", "--std", "0.5,0.5,0.5"]


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error that a user can mend."""
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.strip()


Run = Callable[..., CommandResult]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command in this process, in the test's folder unless told otherwise."""

    def call(*arguments: object, cwd: Path = tmp_path) -> CommandResult:
        capsys.readouterr()
        with chdir(cwd):
            status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return CommandResult(status, out, err)

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "images", 12)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "tiny.py").write_text(NETWORK)
    return f"{tmp_path / 'tiny.py'}:network"


def test_from_images_to_pictures(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "atlas"
    result = run("scan", model, images, "--out", out, *PREPROCESSING)
    assert (result.status, result.out, result.err) == (0, f"12 images, 3 layers, 15 units in {out}\n", "")
    assert {row["label"] for row in Atlas(out).table("labels").to_pylist()} == {"cat", "dog"}
    assert run("sheet", out, "3", "--out", tmp_path / "sheet.png").out == f"drawn to {tmp_path / 'sheet.png'}\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    for name, start in (("figure.png", b"\x89PNG"), ("figure.pdf", b"%PDF")):
        assert run("figure", out, "--out", tmp_path / name, "--layers", "1", "--units", "0,2,3", "--seed", "4").status == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    assert run("check", out, "--trust-code").out.endswith("peaks come back\n45 of 45 troughs come back\n")
    checked = json.loads(run("check", out, "--trust-code", "--json").out)
    assert checked["differences"] == []
    assert checked["peaks"] == Atlas(out).table("peaks").num_rows


@pytest.mark.parametrize(
    "verb", [["check"], ["attribute", "--units", "0"], ["colour-or-shape"], ["occlude", "1", "0"]], ids=lambda verb: verb[0]
)
@pytest.mark.parametrize("model_form", ["PATH.py", "PACKAGE.MODULE"])
def test_code_that_an_atlas_names_runs_only_with_the_users_word(
    run: Run, model: str, images: Path, tmp_path: Path, verb: list[str], model_form: str
) -> None:
    assert run("scan", model, images, *PREPROCESSING).status == 0
    (tmp_path / f"tiny_{verb[0][:2]}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{NETWORK}")
    manifest = json.loads((tmp_path / "atlas" / "atlas.json").read_text())
    manifest["network"]["model"] = (
        f"{tmp_path}/tiny_{verb[0][:2]}.py:network" if model_form == "PATH.py" else f"tiny_{verb[0][:2]}:network"
    )
    (tmp_path / "atlas" / "atlas.json").write_text(json.dumps(manifest))
    name, *rest = verb
    line = run(name, "atlas", *rest).line
    assert f"names code to build its network with, {manifest['network']['model']!r}" in line
    assert "--trust-code" in line
    assert "network=" in line
    assert not (tmp_path / "ran").exists()
    assert run(name, "atlas", *rest, "--trust-code").status == 0
    assert (tmp_path / "ran").exists()


def test_pictures_get_names_where_none_are_given(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    assert run("scan", model, images, *PREPROCESSING).status == 0
    assert run("sheet", "atlas", "1").out == "drawn to atlas-1.png\n"
    assert run("figure", "atlas").out == "drawn to atlas.png\n"


def test_check_reports_what_does_not_come_back(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    run("scan", model, images, "--out", tmp_path / "atlas", "--layers", "1", *PREPROCESSING)
    Image.new("RGB", (64, 48), "white").save(images / "cat" / "000.png")
    result = run("check", tmp_path / "atlas", "--trust-code")
    assert result.status == 1
    assert "cat/000.png: was " in result.out
    (images / "cat" / "000.png").unlink()
    result = run("check", tmp_path / "atlas", "--trust-code")
    assert result.status == 1
    assert "cat/000.png: was " in result.out
    assert "is no longer there" in result.out


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").out == f"unitscope {version('unitscope')}\n"


COMPLETE = """
source "$HOME/.local/share/bash-completion/completions/unitscope"
for line in "unitscope colour" "unitscope scan m i --prec" "unitscope scan m i --runner r"; do
    COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _unitscope; echo "${COMPREPLY[@]}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_the_shell_completes_commands_options_and_values(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}
    install = [sys.executable, "-m", "unitscope", "--install-completion", "--shell", "bash"]
    result = subprocess.run(install, env=environment, capture_output=True, text=True, check=True)
    script = tmp_path / ".local" / "share" / "bash-completion" / "completions" / "unitscope"
    assert (result.stdout, result.stderr) == (f"completion is in {script}; start a new shell to use it\n", "")
    assert str(script) in (tmp_path / ".bashrc").read_text()
    result = subprocess.run(["bash", "-c", COMPLETE], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["colour-or-shape", "--precision", "ray"]


def test_layers_are_listed(run: Run, model: str) -> None:
    result = run("layers", model, *PREPROCESSING)
    assert [line.split()[0] for line in result.out.splitlines()] == ["layer", "0", "1", "2", "3", "4", "5"]
    assert result.out.splitlines()[2].split() == [
        "1",
        "ReLU",
        "6",
        "15",
        "x",
        "15",
        "3",
        "x",
        "3",
        "2",
        "x",
        "2",
        "relu",
        "yes",
        "0",
    ]
    listed = json.loads(run("layers", model, *PREPROCESSING, "--json").out)
    assert (listed["left_out"], listed["operators_without_rule"]) == ([], [])
    assert [row["layer"] for row in listed["layers"] if row["default"]] == ["1", "3", "5"]
    assert listed["layers"][2]["receptive_field_height"] == 7
    assert [row["shares_units_of"] for row in listed["layers"]][:3] == [None, "0", None]
    assert "trial" not in listed
    listed = json.loads(run("layers", model, *PREPROCESSING, "--json", "--trial").out)
    assert listed["trial"] == {"batch": None, "random": None, "shared": None, "rounding": {}}


def test_layers_tells_what_else_than_the_image_has_a_say(run: Run, tmp_path: Path) -> None:
    (tmp_path / "batch.py").write_text(
        "from torch import nn\n"
        "def network():\n    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())\n"
    )
    model = f"{tmp_path / 'batch.py'}:network"
    assert run("layers", model, *PREPROCESSING).err == ""
    assert "in the same batch, from layer '1' on" in run("layers", model, *PREPROCESSING, "--trial").err
    assert json.loads(run("layers", model, *PREPROCESSING, "--json", "--trial").out)["trial"]["batch"] == "1"


def test_layers_left_out_and_operators_without_a_rule_are_listed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "partly.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Partly(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.first, self.tokens, self.last = nn.Conv2d(3, 4, 1), nn.Linear(256, 6), nn.Conv2d(4, 5, 1)\n"
        "    def forward(self, images):\n"
        "        maps, places = nn.functional.max_pool2d(self.first(images), 2, return_indices=True)\n"
        "        maps = nn.functional.max_unpool2d(maps, places, 2)\n"
        "        self.tokens(maps.flatten(2)[..., :256].mean(0, keepdim=True))\n"
        "        return self.last(maps)\n"
    )
    model = f"{tmp_path / 'partly.py'}:Partly"
    result = run("layers", model, *PREPROCESSING)
    assert "1 more can't be scanned: 'tokens': " in result.err
    assert "no rule says what the operators 'max_unpool2d' depend on" in result.err
    listed = json.loads(run("layers", model, *PREPROCESSING, "--json").out)
    assert [row["layer"] for row in listed["left_out"]] == ["tokens"]
    assert listed["operators_without_rule"] == ["max_unpool2d"]


def test_a_list_of_paths_and_random_weights(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    chosen = sorted(images.rglob("*.png"))[:5]
    (tmp_path / "list.txt").write_text("\n".join(map(str, chosen)) + "\n")
    common = [tmp_path / "list.txt", *PREPROCESSING, "--weights", "none", "--limit", "4", "--k", "2"]
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert run("scan", model, *common, "--seed", seed, "--out", tmp_path / name).status == 0
    tables = [Atlas(tmp_path / name).table("peaks") for name in ("one", "two", "three")]
    checked = [f"{count} of {count} {name} come back\n" for name, count in (("peaks", tables[0].num_rows), ("troughs", 10))]
    assert run("check", tmp_path / "one", "--trust-code").out == "".join(checked)
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert max(tables[0]["rank"].to_pylist()) == 2


def test_an_atlas_beside_the_images_is_checked_from_anywhere(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\ufeff".encode() + b"images/cat/000.png\r\n\r\nimages/cat/\xff.png\r\n")
    assert run("scan", "tiny.py:network", "list.txt", "--out", "listed", *PREPROCESSING).status == 0
    assert run("scan", model, ".", *PREPROCESSING, cwd=images).status == 0
    for atlas in (tmp_path / "listed", images / "atlas"):
        assert run("check", atlas, "--trust-code", cwd=Path("/")).status == 0
    assert run("scan", model, images, "--out", tmp_path / "again", *PREPROCESSING).out.startswith("12 images")


def test_a_picture_that_fails_leaves_what_is_there(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    run("scan", model, images, "--out", tmp_path / "atlas", *PREPROCESSING)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "inside").touch()
    result = run("figure", tmp_path / "atlas", "--out", tmp_path / "folder.png")
    assert (result.status, result.line.endswith("can't be written: it is a folder")) == (1, True)
    assert [path.name for path in (tmp_path / "folder.png").iterdir()] == ["inside"]
    assert not list(tmp_path.glob(".*.unfinished"))


def test_unreadable_files_are_skipped_counted_and_named(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    (images / "empty.jpg").write_bytes(b"")
    (images / "notes.txt").write_text("no image")
    first = images / "cat" / "000.png"
    first.write_bytes(first.read_bytes()[:200])
    result = run("scan", model, images, "--out", tmp_path / "atlas", *PREPROCESSING)
    assert result.status == 0
    assert result.out.splitlines() == [
        f"11 images, 3 layers, 15 units in {tmp_path / 'atlas'}",
        f"3 files were skipped; why is in {tmp_path / 'atlas' / 'skipped.parquet'}",
    ]
    skipped = {row["key"]: row["reason"] for row in pq.read_table(tmp_path / "atlas" / "skipped.parquet").to_pylist()}
    assert skipped.keys() == {"empty.jpg", "notes.txt", "cat/000.png"}
    assert skipped["notes.txt"] == "is not an image that Pillow knows"


def test_no_readable_image_is_one_line_and_writes_nothing(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_text("nothing")
    result = run("scan", model, tmp_path / "images", "--out", tmp_path / "atlas", *PREPROCESSING)
    assert result.status == 1
    assert result.line == "ImagesError: none of 1 files is an image that can be read; 'a.jpg' is not an image that Pillow knows"
    assert not (tmp_path / "atlas").exists()


def test_nan_in_the_activations_is_counted_and_the_scan_goes_on(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    with_nan = model.replace(":network", ":with_nan")
    assert run("scan", with_nan, images, "--out", tmp_path / "atlas", "--layers", "1", *PREPROCESSING).status == 0
    atlas = Atlas(tmp_path / "atlas")
    assert atlas.units("1")["nan_images"].to_pylist() == [12, 0, 0, 0, 0, 0]
    assert sorted(atlas.table("peaks")["unit"].to_pylist()) == sorted([1, 2, 3, 4, 5] * 9)


@pytest.mark.parametrize(
    ("arguments", "error_start"),
    [
        (["scan", "MODEL", "nowhere"], "ImagesError: there is no folder 'nowhere' with images"),
        (["scan", "torchvision:alexnett", "IMAGES"], "NetworkError: torchvision has no model 'alexnett'. Close: 'alexnet'"),
        (["scan", "MODEL", "IMAGES"], "NetworkError: nothing is known of how"),
        (
            ["scan", "MODEL", "IMAGES", "--weights", "nowhere.pt", *PREPROCESSING],
            "NetworkError: there is no weights file 'nowhere.pt'",
        ),
        (["scan", "MODEL", "IMAGES", "--layers", "conv9", *PREPROCESSING], "LayerNotFound: "),
        (
            ["scan", "MODEL", "IMAGES", "--crop", "32", "--mean", "0.5", "--std", "0.5"],
            "NetworkError: the network doesn't run on an input of shape (1, 1, 32, 32)",
        ),
        (
            ["scan", "MODEL", "IMAGES", "--channels", "1", *PREPROCESSING],
            "NetworkError: preprocessing with 1 channels needs as many",
        ),
        (["scan", "MODEL", "IMAGES", "--k", "0", *PREPROCESSING], "UnitscopeError: k must be at least 1, not 0"),
        (["scan", "MODEL", "IMAGES", "--limit", "0", *PREPROCESSING], "UnitscopeError: limit must be at least 1, not 0"),
        (["scan", "MODEL", "IMAGES", "--resize", "0", "--crop", "32", "--mean", "0", "--std", "1"], "NetworkError: resize 0"),
        (["scan", "MODEL", "IMAGES", "--workers", "-1", *PREPROCESSING], "UnitscopeError: workers must be at least 0, not -1"),
        (["scan", "MODEL", "IMAGES", "--device", "abacus", *PREPROCESSING], "UnitscopeError: device is auto, cpu, cuda or mps"),
        (["scan", "MODEL", "IMAGES", "--out", "IMAGES", *PREPROCESSING], "AtlasError: "),
        (
            ["scan", "MODEL", "IMAGES", "--out", "FILE", *PREPROCESSING],
            "AtlasError: 'a file' is a file, and an atlas is a folder",
        ),
        (["scan", "MODEL", "IMAGES", "--weights", "", *PREPROCESSING], "NetworkError: weights are ''; give 'default'"),
        (
            ["layers", "MODEL", "--crop", "32", "--mean", "123,117,104", "--std", "58,57,57"],
            "NetworkError: mean (123.0, 117.0, 104.0) and std (58.0, 57.0, 57.0) are for values from 0 to 1",
        ),
        (
            ["layers", "MODEL", "--crop", "99999", "--mean", "0.5", "0.5", "0.5", "--std", "1", "1", "1"],
            "NetworkError: crop (99999, 99999) has more than 500 million pixels",
        ),
        (["layers", "MODEL", *PREPROCESSING, "--value-range", "9", "1"], "NetworkError: value range (9.0, 1.0) must be a lower"),
        (["layers", "alexnet"], "NetworkError: model 'alexnet' isn't one of the forms"),
        (["sheet", "nowhere", "1"], "AtlasError: 'nowhere' holds no atlas"),
        (["figure", "nowhere"], "AtlasError: 'nowhere' holds no atlas"),
        (["check", "nowhere"], "AtlasError: 'nowhere' holds no atlas"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_1(
    run: Run, model: str, images: Path, tmp_path: Path, arguments: list[str], error_start: str
) -> None:
    (tmp_path / "a file").write_text("words")
    values = {"MODEL": model, "IMAGES": images, "FILE": "a file"}
    result = run(*(values.get(argument, argument) for argument in arguments))
    assert result.status == 1
    assert result.line.startswith(error_start)
    assert not (tmp_path / "atlas").exists()


@pytest.mark.parametrize(
    ("arguments", "usage", "complaint"),
    [
        ("scan", "scan [OPTIONS] MODEL IMAGES", 'parameter MODEL requires an argument'),
        ("scan a", "scan [OPTIONS] MODEL IMAGES", 'parameter IMAGES requires an argument'),
        ("figure", "figure [OPTIONS] ATLAS", "parameter ATLAS requires an argument"),
        ("evolve a b --images i", "evolve --model STR --images STR [OPTIONS] CHECKPOINTS", "parameter --model requires"),
        ("scann a b", "COMMAND [OPTIONS]", 'Did you mean "scan"?'),
        ("sheet a b c", "sheet [OPTIONS] ATLAS LAYER", "['c']"),
        ("scan a b --kk 3", "scan [OPTIONS] MODEL IMAGES", "Did you mean --k?"),
        ("scan a b --k many", "scan [OPTIONS] MODEL IMAGES", 'Invalid value for --k: unable to convert "many" into int'),
        ("scan a b --k", "scan [OPTIONS] MODEL IMAGES", "--k requires an argument"),
        ("scan a b --layers", "scan [OPTIONS] MODEL IMAGES", "--layers requires at least 1 element"),
        ("scan a b --layers --k 3", "scan [OPTIONS] MODEL IMAGES", "--layers requires at least 1 element"),
        ("scan a b --crop wide", "scan [OPTIONS] MODEL IMAGES", "Invalid value for --crop: it takes numbers, not 'wide'"),
        ("scan a b --crop 1,2,3", "scan [OPTIONS] MODEL IMAGES", "Invalid value for --crop: it takes one number or two, not 3"),
        ("scan a b --crop 1 2 3", "scan [OPTIONS] MODEL IMAGES", "Invalid value for --crop: it takes one number or two, not 3"),
        ("scan a b --crop 1 --crop 2", "scan [OPTIONS] MODEL IMAGES", "--crop specified multiple times"),
        ("scan a b --mean 0.5 x.5", "scan [OPTIONS] MODEL IMAGES", "Invalid value for --mean: it takes numbers, not 'x.5'"),
        ("scan a b --value-range 9", "scan [OPTIONS] MODEL IMAGES", "Invalid value for --value-range: it takes two numbers, not 1"),
        ("scan a b --workers some", "scan [OPTIONS] MODEL IMAGES", "Invalid value for --workers"),
        ("scan a b --runner moon", "scan [OPTIONS] MODEL IMAGES", 'Choose from: "local", "ray"'),
        ("serve a --port 99999", "serve [OPTIONS] ATLAS", 'Invalid value "99999" for --port. Must be <= 65535'),
        ("sheet a --units 3 l", "sheet [OPTIONS] ATLAS LAYER", "parameter LAYER requires an argument"),
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2_with_the_usage_and_one_line(run: Run, arguments: str, usage: str, complaint: str) -> None:
    result = run(*arguments.split())
    assert (result.status, result.out) == (2, "")
    first, second = result.err.splitlines()
    assert first.startswith(f"Usage: unitscope {usage} (more with unitscope ")
    assert complaint in second


def test_without_a_command_the_commands_are_listed(run: Run) -> None:
    result = run()
    assert (result.status, result.err) == (2, "")
    assert run("-v") == result
    assert run("--help") == CommandResult(0, result.out, "")
    assert "--verbose -v" in result.out
    for command in COMMANDS:
        assert f" {command.__name__.replace('_', '-')} " in result.out


@pytest.mark.parametrize(
    "words", ["-v occlude atlas 1 0 --classes c", "occlude -v atlas 1 0 --classes c", "occlude atlas 1 0 --classes c --verbose"]
)
def test_verbose_shows_the_traceback_of_an_error_and_of_its_cause(run: Run, atlas: Path, words: str) -> None:
    (atlas.parent / "c").write_bytes(b"\xff\xfea")
    quiet = run("occlude", "atlas", "1", "0", "--classes", "c")
    assert (quiet.status, quiet.line) == (1, "UnitscopeError: 'c' can't be read: it isn't text in UTF-8")
    verbose = run(*words.split())
    assert (verbose.status, verbose.out, verbose.err.splitlines()[-1]) == (1, quiet.out, quiet.line)
    assert re.search(r"DEBUG unitscope\.cli: the command failed\nTraceback ", verbose.err)
    assert "\nUnicodeDecodeError: " in verbose.err
    assert "direct cause" in verbose.err
    assert run("occlude", "atlas", "1", "0", "--classes", "c") == quiet


def test_a_picture_that_cannot_be_written_is_one_line(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    run("scan", model, images, "--out", tmp_path / "atlas", *PREPROCESSING)
    (tmp_path / "file").touch()
    for name in ("file/figure.png", "figure.nothing", "figure", "atlas"):
        result = run("figure", tmp_path / "atlas", "--out", tmp_path / name)
        assert result.status == 1
        assert result.line.startswith(f"UnitscopeError: the picture {str(tmp_path / name)!r} can't be written: ")
    assert run("figure", tmp_path / "atlas", "--out", tmp_path / "new" / "figure.PNG").status == 0


def test_weights_that_do_not_fit_are_named(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "w.pt")
    result = run("scan", model, images, "--weights", tmp_path / "w.pt", *PREPROCESSING)
    assert result.status == 1
    assert "lacks 0.bias" in result.line
    assert "0.weight is (1,), not (6, 3, 3, 3)" in result.line


LOADED = """
import sys
from unitscope.cli import main
status = main(sys.argv[2:])
loaded = sorted(set(sys.argv[1].split(",")) & sys.modules.keys())
sys.exit(f"loaded {loaded}" if loaded else status)
"""


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ("--help", "torch,ray,numpy,pyarrow,PIL,starlette"),
        ("--version", "torch,ray,numpy,pyarrow,PIL,starlette,rich.console"),
        ("scan --help", "torch,ray,numpy,pyarrow,PIL,starlette"),
        ("sheet atlas 1", "torch,torchvision,ray,starlette"),
        ("figure atlas", "torch,torchvision,ray,starlette"),
        ("export atlas site", "torch,torchvision,ray"),
    ],
)
def test_a_command_loads_what_it_needs_alone(atlas: Path, words: str, absent: str) -> None:
    command = [sys.executable, "-c", LOADED, absent, *words.split()]
    result = subprocess.run(command, cwd=atlas.parent, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("words", ["--layers 1 [35]", "--layers 1 --layers [35]", "--layers=1 --layers 3 5"])
def test_an_option_takes_several_patterns(run: Run, model: str, images: Path, tmp_path: Path, words: str) -> None:
    assert run("scan", model, images, "--out", "several", *words.split(), *PREPROCESSING).status == 0
    assert [layer.name for layer in Atlas(tmp_path / "several").layers] == ["1", "3", "5"]


def test_words_before_the_next_option_are_the_last_ones(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    assert run("scan", "--out", "first", *PREPROCESSING, "--layers", "1", "3", "--", model, images).status == 0
    assert [layer.name for layer in Atlas(tmp_path / "first").layers] == ["1", "3"]


@pytest.mark.parametrize("crop", ["--crop 24 30", "--crop 24,30", "--crop 24x30", "--crop=24,30"])
@pytest.mark.parametrize("means", ["--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5", "--mean 0.5,0.5,0.5 --std=.5,.5,.5"])
def test_numbers_have_spaces_or_commas_between(run: Run, model: str, crop: str, means: str) -> None:
    listed = json.loads(run("layers", f"{model}_of_convolutions", *crop.split(), *means.split(), "--json").out)
    assert [listed["layers"][0][f"map_{side}"] for side in ("height", "width")] == [11, 14]


def test_numbers_may_be_negative(run: Run, model: str) -> None:
    assert run("layers", model, *PREPROCESSING, "--value-range", "-5", "-1.5e0").status == 0
    assert run("layers", model, *PREPROCESSING, "--value-range=-5,-1.5e0").status == 0


@pytest.mark.parametrize(
    ("words", "units"),
    [
        (["0-2"], [0, 1, 2]),
        (["0-1", "5"], [0, 1, 5]),
        (["3,0-1"], [3, 0, 1]),
        (["5", "2-4", "0"], [5, 2, 3, 4, 0]),
        (["1-1"], [1]),
    ],
)
def test_ranges_of_units_are_what_they_hold(
    run: Run, model: str, images: Path, tmp_path: Path, words: list[str], units: list[int]
) -> None:
    run("scan", model, images, "--out", tmp_path / "atlas", "--layers", "1", *PREPROCESSING)
    assert run("sheet", tmp_path / "atlas", "1", "--out", tmp_path / "sheet.png", "--units", *words).status == 0
    expected = Atlas(tmp_path / "atlas").sheet("1", units=units)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.tobytes() == expected.tobytes()


@pytest.mark.parametrize("words", ["2-1", "-1", "0-", "a", "", ",", "0-1-2", "0x3", "1.5", "0-99999999999"])
def test_what_is_no_list_of_units_is_wrong_usage(run: Run, tmp_path: Path, words: str) -> None:
    result = run("sheet", tmp_path, "1", f"--units={words}")
    assert result.status == 2
    assert "Invalid value for --units: it takes" in result.err


def test_units_that_a_layer_lacks_are_one_line(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    run("scan", model, images, "--out", tmp_path / "atlas", "--layers", "1", *PREPROCESSING)
    for verb in (["sheet", "ATLAS", "1"], ["figure", "ATLAS"], ["attribute", "ATLAS", "--trust-code"]):
        result = run(*(tmp_path / "atlas" if word == "ATLAS" else word for word in verb), "--units", "0", "4-9")
        assert (result.status, result.line) == (1, "AtlasError: layer '1' has units 0 to 5, not 6")
    result = run("occlude", tmp_path / "atlas", "1", "6", "--trust-code")
    assert (result.status, result.line) == (1, "AtlasError: layer '1' has units 0 to 5, not 6")


@pytest.mark.parametrize(
    ("content", "error_text"),
    [
        (b"cat\ndog\n", "2 classes were given, but the network has 5 outputs"),
        (b"\n".join([b"x"] * 6), "6 classes were given, but the network has 5 outputs"),
        (b"", "0 classes were given"),
        (b"\xff\xfea", "can't be read: it isn't text in UTF-8"),
        (None, "can't be read: No such file"),
    ],
)
def test_a_wrong_file_of_classes_is_found_before_the_work(
    run: Run, model: str, images: Path, tmp_path: Path, content: bytes | None, error_text: str
) -> None:
    run("scan", model, images, "--out", tmp_path / "atlas", "--layers", "1", *PREPROCESSING)
    if content is not None:
        (tmp_path / "classes.txt").write_bytes(content)
    words = ["--classes", tmp_path / "classes.txt", "--out", tmp_path / "plot.png", "--trust-code"]
    result = run("occlude", tmp_path / "atlas", "1", "0", *words)
    assert result.status == 1
    assert error_text in result.line
    assert not (tmp_path / "atlas" / "experiments").exists()
    assert not (tmp_path / "atlas" / "tables").exists()
    assert not (tmp_path / "plot.png").exists()


SLOW_NETWORK = """
import time
from pathlib import Path
from torch import nn

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.calls = nn.Conv2d(3, 4, 3), 0

    def forward(self, images):
        self.calls += 1
        if self.calls > 4:
            Path(__file__).with_name("running").touch()
            time.sleep(1)
        return self.convolution(images)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_leaves_nothing_behind(images: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_NETWORK)
    arguments = ["scan", f"{tmp_path / 'slow.py'}:Slow", images, "--out", tmp_path / "atlas", "--batch-size", "1", *PREPROCESSING]
    command = [sys.executable, "-m", "unitscope", *map(str, arguments)]
    # A shell's background job ignores the signal, and its children with it, unless they are told otherwise.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listen) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "running").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, error_text = process.communicate(timeout=60)
    assert (process.returncode, error_text) == (130, "stopped; nothing was written\n")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["images", "running", "slow.py"]


@pytest.mark.slow
def test_the_demo_needs_nothing_but_the_package_index(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unitscope", "demo", "--out", "demo", "--limit", "40"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        f"40 images, 50 layers, 22,008 units in {Path('demo', 'atlas')}",
        f"drawn to {Path('demo', 'figure.png')}",
        f"to look at every unit: python -m unitscope serve {Path('demo', 'atlas')}",
    ]
    assert "using the atlas" in run("demo", "--out", "demo", "--limit", "40").out
    assert "one of other images" in run("demo", "--out", "demo").line


@pytest.mark.slow
def test_the_demo_takes_ones_own_images(run: Run, images: Path, tmp_path: Path) -> None:
    assert run("demo", "--out", tmp_path / "demo", "--images", images).status == 0
    assert Atlas(tmp_path / "demo" / "atlas").manifest["read"] == 12


@pytest.fixture
def atlas(run: Run, model: str, images: Path, tmp_path: Path) -> Path:
    assert run("scan", model, images, "--weights", "none", *PREPROCESSING, "--out", tmp_path / "atlas").status == 0
    return tmp_path / "atlas"


def test_export_writes_a_site_and_says_how_much(run: Run, atlas: Path, tmp_path: Path) -> None:
    result = run("export", atlas, tmp_path / "site", "--compare", atlas)
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert result.out.startswith(f"{len(files):,} files, ")
    assert (tmp_path / "site" / "compared" / "index.html").exists()
    assert "not empty" in run("export", atlas, tmp_path / "site").line
    assert "holds no atlas" in run("export", tmp_path, tmp_path / "other").line


DRAWING = [["sheet", "1"], ["figure"], ["export"]]


@pytest.mark.parametrize("command", DRAWING)
def test_a_drawing_that_lacks_images_says_how_many(
    run: Run, atlas: Path, images: Path, tmp_path: Path, command: list[str]
) -> None:
    (images / "cat" / "000.png").unlink()
    Image.new("RGB", (64, 48)).save(images / "dog" / "001.png")
    verb, *arguments = command
    out = ["--out", tmp_path / "a.png"] if verb != "export" else [tmp_path / "site"]
    result = run(verb, atlas, *arguments, *out)
    assert result.status == 0
    assert re.match(r"\d+ (of [\d,]+ patches|images, and the patches in them,) could not be drawn: ", result.line)
    assert result.line.endswith("say where they are with --images (images= in Python)")


def test_the_tables_of_experiments_are_printed_as_json(run: Run, model: str, images: Path, atlas: Path) -> None:
    shares = run("colour-or-shape", atlas, "--trust-code", "--json")
    assert (shares.status, shares.err) == (0, "")
    assert [list(row) for row in json.loads(shares.out)] == [
        ["layer", "grey_mean", "blurred_mean", "scrambled_mean", "mirrored_mean"]
    ] * 3
    probed = run("probe", model, images, "--layers", "1", "5", *PREPROCESSING, "--json")
    assert (probed.status, probed.err) == (0, f"drawn to {Path('probe', 'probe.png')}\n")
    assert [(row["layer"], row["features"], row["images"]) for row in json.loads(probed.out)] == [("1", 6, 12), ("5", 5, 12)]
    assert "accuracy" in run("probe", model, images, "--layers", "1", "5", *PREPROCESSING).out.splitlines()[0].split()


def test_evolution_is_printed_as_json(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save({"0.weight": torch.randn(6, 3, 3, 3), "0.bias": torch.zeros(6)}, tmp_path / f"epoch-{seed}.pt")
    first_layer = model.replace(":network", ":first_layer")
    evolved = run("evolve", "epoch-1.pt", "epoch-2.pt", "--model", first_layer, "--images", images, *PREPROCESSING, "--json")
    assert evolved.status == 0
    assert evolved.err.splitlines() == ["scanning epoch-1", "scanning epoch-2", f"drawn to {Path('evolution', 'figure.png')}"]
    (row,) = json.loads(evolved.out)
    assert (row["layer"], 0 <= row["overlap"] <= 1) == ("1", True)


@pytest.mark.slow
@pytest.mark.parametrize("command", [*DRAWING, ["occlude", "1", "0", "--trust-code"]])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_drawing_of_nothing_is_an_error_that_names_images_and_images_helps(
    run: Run, model: str, images: Path, tmp_path: Path, command: list[str], as_list: bool
) -> None:
    source = images
    if as_list:
        source = tmp_path / "list.txt"
        source.write_text("\n".join(str(path) for path in sorted(images.rglob("*.png"))))
    atlas = tmp_path / "atlas"
    assert run("scan", model, source, "--out", atlas, *PREPROCESSING).status == 0
    os.rename(images, tmp_path / "elsewhere")
    verb, *arguments = command
    out = ["--out", tmp_path / "a.png"] if verb != "export" else [tmp_path / "site"]
    result = run(verb, atlas, *arguments, *out)
    assert result.status == 1
    assert "--images" in result.line
    assert not (tmp_path / "a.png").exists()
    assert not (tmp_path / "site").exists()
    moved = run(verb, atlas, *arguments, *out, "--images", tmp_path / "elsewhere")
    assert (moved.status, moved.err) == (0, "")


def test_twelve_bits_are_scanned_once_their_range_is_said(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "rays").mkdir()
    for number in range(3):
        values = np.linspace(0, 4095 - number, 40 * 40).astype(np.uint16).reshape(40, 40)
        Image.fromarray(values).save(tmp_path / "rays" / f"{number}.png")
    refused = run("scan", model, tmp_path / "rays", "--out", tmp_path / "atlas", *PREPROCESSING)
    assert refused.status == 1
    assert "--value-range LOW HIGH" in refused.line
    scan = ["scan", model, tmp_path / "rays", "--out", tmp_path / "atlas", *PREPROCESSING, "--value-range", "0", "4095"]
    assert run(*scan).status == 0
    assert Atlas(tmp_path / "atlas").manifest["preprocessing"]["value_range"] == [0, 4095]
    assert Atlas(tmp_path / "atlas").picture(0).getextrema()[0] == (0, 255)
    assert run("check", tmp_path / "atlas", "--trust-code").status == 0
    assert run(*scan[:-1]).status == 2
    assert "lower and a higher" in run(*scan[:-2], "9", "0", "--out", tmp_path / "b").line


@contextmanager
def serving(atlas: Path, *options: str) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "unitscope", "serve", str(atlas), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=atlas.parent) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(address: str, path: str, content: bytes | None = None) -> str:
    with urllib.request.urlopen(urllib.request.Request(address + path, data=content)) as answered:
        return str(answered.read().decode())


@pytest.mark.slow
def test_serve_opens_the_pages_and_listens_to_an_image_of_ones_own(atlas: Path, images: Path) -> None:
    with serving(atlas, "--port", "0", "--compare", str(atlas), "--trust-code") as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        assert "Search by image" in answer(address, "index.html")
        assert "compared with atlas" in answer(address, "compare/index.html")
        picture = next(images.rglob("*.png")).read_bytes()
        assert "layers/1.html" in answer(address, "image-search", picture)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) in (0, 130, -signal.SIGINT)


@pytest.mark.slow
@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_serve_answers_at_the_address_that_it_prints(atlas: Path) -> None:
    with serving(atlas, "--host", "::1", "--port", "0") as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://[::1]:")
        assert "layer" in answer(address, "index.html")
        process.terminate()


@pytest.mark.slow
def test_serve_runs_no_code_that_the_atlas_names(atlas: Path, images: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{NETWORK}")
    manifest = json.loads((atlas / "atlas.json").read_text())
    (atlas / "atlas.json").write_text(json.dumps(manifest | {"network": manifest["network"] | {"model": f"{evil}:network"}}))
    with serving(atlas, "--port", "0") as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        page = answer(address, "image-search.html")
        assert "Search by image is off" in page
        assert "--trust-code" in page
        assert 'type="file"' not in page
        with pytest.raises(urllib.error.HTTPError, match="403"):
            answer(address, "image-search", next(images.rglob("*.png")).read_bytes())
        assert "layer" in answer(address, "index.html")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_serve_says_who_can_look(atlas: Path) -> None:
    with serving(atlas, "--host", "0.0.0.0", "--port", "0") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "whoever reaches this machine can see the atlas and its images\n"
        process.terminate()


def test_a_port_that_is_taken_is_one_line(run: Run, atlas: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"can't listen on 127.0.0.1 port {port}" in run("serve", atlas, "--port", port).line
    assert "can't listen on nowhere.invalid" in run("serve", atlas, "--host", "nowhere.invalid").line
