"""The arguments and options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unitscope.arguments import MODEL_FORMS
from unitscope.cli.parsing import channel_values, sizes_px, two_numbers, unit_numbers

if TYPE_CHECKING:
    from unitscope.networks import PreprocessingOverrides

IMAGES_HELP = (
    "A folder of images, a .txt file with one path a line (and a label after it), a glob, tar shards or Parquet files, here or behind a URL "
    "('s3://bucket/train-{000..127}.tar'), or hf:NAME:SPLIT."
)
AT_LEAST_ONE = (1, None)
"""An option takes all words up to the next option, and needs one."""

Model = Annotated[str, Parameter(help=MODEL_FORMS)]
Images = Annotated[str, Parameter(help=IMAGES_HELP)]
AtlasFolder = Annotated[Path, Parameter(help="The folder of an atlas.")]
LayerName = Annotated[str, Parameter(help="Name of a layer.")]
Weights = Annotated[
    str,
    Parameter(help="default, none (random, by --seed), or the path of a state dict; PATH:KEY for one of several in a file."),
]
Seed = Annotated[int, Parameter(help="Seed of random weights.")]
LayerPatterns = Annotated[
    list[str] | None, Parameter(help="Glob patterns of layer names.", metavar="GLOB…", consume_multiple=AT_LEAST_ONE)
]
UnitNumbers = Annotated[
    list[int] | None,
    Parameter(
        help="Numbers of units, and ranges of them: 0-8 17.",
        metavar="N…",
        consume_multiple=AT_LEAST_ONE,
        converter=unit_numbers,
    ),
]
AttributionMethod = Annotated[str | None, Parameter(help="Draw what this method found beside the patches.", metavar="METHOD")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.")]
MovedImages = Annotated[str | None, Parameter(help="Where the images are now, if they have moved.")]
SecondAtlas = Annotated[Path | None, Parameter(help="Another atlas, to compare with.", metavar="ATLAS")]
TrustCode = Annotated[
    bool,
    Parameter(help="Run the code that the atlas names to build its network with, PATH.py or PACKAGE.MODULE.", show_default=False),
]
AsJson = Annotated[bool, Parameter("--json", help="Print JSON.", show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessingOptions:
    """How the network wants its images; None leaves what comes with its weights."""

    resize: Annotated[
        tuple[int, ...] | None,
        Parameter(
            help="Length of the shorter side, or height and width.",
            metavar="N | H W",
            consume_multiple=AT_LEAST_ONE,
            converter=sizes_px,
            allow_repeating=False,
        ),
    ] = None
    crop: Annotated[
        tuple[int, ...] | None,
        Parameter(
            help="What is cut from the centre.",
            metavar="N | H W",
            consume_multiple=AT_LEAST_ONE,
            converter=sizes_px,
            allow_repeating=False,
        ),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None,
        Parameter(
            help="Mean per channel, for values from 0 to 1.",
            metavar="M…",
            consume_multiple=AT_LEAST_ONE,
            converter=channel_values,
            allow_repeating=False,
        ),
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        Parameter(
            help="Standard deviation per channel.",
            metavar="S…",
            consume_multiple=AT_LEAST_ONE,
            converter=channel_values,
            allow_repeating=False,
        ),
    ] = None
    channels: Annotated[int | None, Parameter(help="1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.")] = None
    value_range: Annotated[
        tuple[float, ...] | None,
        Parameter(
            help="The values that are black and white in images of more than 8 bits, where files don't say.",
            metavar="LOW HIGH",
            consume_multiple=AT_LEAST_ONE,
            converter=two_numbers,
            allow_repeating=False,
        ),
    ] = None

    def overrides(self) -> "PreprocessingOverrides":
        """The same for the network's loader, where one length of a crop is that of both sides."""
        from unitscope.networks import PreprocessingOverrides

        resize = None if self.resize is None else self.resize[0] if len(self.resize) == 1 else (self.resize[0], self.resize[1])
        crop = None if self.crop is None else (self.crop[0], self.crop[-1])
        value_range = None if self.value_range is None else (self.value_range[0], self.value_range[1])
        return PreprocessingOverrides(resize, crop, self.mean, self.std, self.channels, value_range)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """Which weights a network has, and how it wants its images."""

    weights: Weights = "default"
    seed: Seed = 0
    preprocessing: PreprocessingOptions = PreprocessingOptions()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class UntrainedNetworkOptions(NetworkOptions):
    """The same for commands that need no weights: random ones, unless told otherwise."""

    weights: Weights = "none"
