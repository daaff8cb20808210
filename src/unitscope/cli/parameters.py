"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

WHAT_IMAGES = (
    "A folder of images, a .txt file with one path a line (and a label after it), a glob, tar shards or Parquet files, here or behind a URL "
    "('s3://bucket/train-{000..127}.tar'), or hf:NAME:SPLIT."
)

Model = Annotated[
    str, typer.Argument(help="torchvision:NAME, timm:NAME, demo:efficientnet-lite0, PACKAGE.MODULE:FACTORY or PATH.py:FACTORY")
]
AtlasFolder = Annotated[Path, typer.Argument(metavar="ATLAS", help="The folder of an atlas.")]
Weights = Annotated[
    str,
    typer.Option(help="default, none (random, by --seed), or the path of a state dict; PATH:KEY for one of several in a file."),
]
Seed = Annotated[int, typer.Option(help="Seed of random weights.")]
Resize = Annotated[str | None, typer.Option(metavar="N | H W", help="Length of the shorter side, or height and width.")]
Crop = Annotated[str | None, typer.Option(metavar="N | H W", help="What is cut from the centre.")]
Mean = Annotated[str | None, typer.Option(metavar="M …", help="Mean per channel, for values from 0 to 1.")]
Std = Annotated[str | None, typer.Option(metavar="S …", help="Standard deviation per channel.")]
ValueRange = Annotated[
    str | None,
    typer.Option(
        metavar="LOW HIGH", help="The values that are black and white in images of more than 8 bits, where files don't say."
    ),
]
Channels = Annotated[int | None, typer.Option(help="1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.")]
Layers = Annotated[list[str] | None, typer.Option(metavar="GLOB …", help="Glob patterns of layer names.")]
Units = Annotated[str | None, typer.Option(metavar="N …", help="Numbers of units, and ranges of them: 0-8 17.")]
Patch = Annotated[str, typer.Option(help="auto, field, effective or image: what of the image is drawn.")]
Attribution = Annotated[str | None, typer.Option(metavar="METHOD", help="Draw what this method found beside the patches.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Images = Annotated[str | None, typer.Option(help="Where the images are now, if they have moved.")]
Beside = Annotated[Path | None, typer.Option(metavar="ATLAS", help="Another atlas, to compare with.")]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Run the code that the atlas names to build its network with, PATH.py or PACKAGE.MODULE."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
