"""The commands that say what units are for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unitscope.cli.networks import network_by_trusted_code
from unitscope.cli.output import check_picture_path, print_drawn, print_json, print_rows, print_table, progress_bar, save_picture
from unitscope.cli.parameters import IMAGES_HELP, AsJson, AtlasFolder, Device, LayerName, LayerPatterns, TrustCode
from unitscope.cli.parsing import unit_numbers
from unitscope.errors import ImagesError

if TYPE_CHECKING:
    from PIL import Image

    from unitscope.effects import EffectOptions


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class EffectFlags:
    """Which images and which scores are meant."""

    images: Annotated[
        str | None, Parameter(help=f"Other images than those of the atlas, or where these are now. {IMAGES_HELP}")
    ] = None
    by: Annotated[
        str,
        Parameter(
            help="The class that counts: that of the label, the network's own prediction, or auto, labels where images have them."
        ),
    ] = "auto"
    labels: Annotated[Path | None, Parameter(help="A CSV file with the key and the label of every image.", metavar="FILE")] = None
    classes: Annotated[
        Path | None,
        Parameter(
            help="Text with the name of each of the network's outputs, a line each, where the atlas doesn't know them.",
            metavar="FILE",
        ),
    ] = None
    output: Annotated[
        str | None,
        Parameter(
            help="For networks without class scores: PATH.py:FUNCTION, from what the network returns to a number an image.",
            metavar="PATH.py:FUNCTION",
        ),
    ] = None

    device: Device = "auto"

    def options(self) -> "EffectOptions":
        return {"images": self.images, "by": self.by, "labels": self.labels, "classes": self.classes, "output": self.output}


def effects(
    atlas: AtlasFolder, /, *, flags: EffectFlags = EffectFlags(),
    verify: Annotated[int, Parameter(help="Take so many of the strongest units of every layer, as many others, and so many of every class, away for real.", metavar="N")] = 0,
    objects: Annotated[Path | None, Parameter(help="Where objects are, to find shortcuts by: a folder with a mask an image, or a COCO file.", metavar="PATH")] = None,
    trust_code: TrustCode = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure what every unit does to every class, and keep what the network predicts."""
    from unitscope.atlas import Atlas
    from unitscope.effects import measure_effects

    opened = Atlas(atlas)
    network = network_by_trusted_code(opened, trust_code)
    try:
        with progress_bar(None, "measuring effects") as advance:
            measure_effects(
                opened, network, verify=verify, objects=objects, device=flags.device, on_images=advance, **flags.options()
            )
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from here") from interrupt
    layers, predictions = opened.table("effect_layers"), opened.table("predictions").to_pylist()
    counts = {(row["label_class"], row["predicted"]): row["images"] for row in predictions}
    images, labelled = sum(counts.values()), sum(count for (label, _), count in counts.items() if label >= 0)
    right = sum(count for (label, predicted), count in counts.items() if label == predicted)
    if as_json:
        print_json({"images": images, "labelled": labelled, "right": right, "layers": layers.to_pylist()})
        return
    print_table(layers)
    says = f"; {right:,} of {labelled:,} are taken for what their labels say" if labelled else ""
    print(f"{images:,} images{says}; effects are in {atlas / 'tables' / 'effects.parquet'}")


def knock_out(
    atlas: AtlasFolder, layer: LayerName,
    units: Annotated[list[int], Parameter(help="Numbers of units, and ranges of them: 0-8 17. They are taken away together.", converter=unit_numbers, metavar="UNIT…")], /, *,
    each: Annotated[bool, Parameter(help="Take each unit away by itself.", negative="")] = False,
    replacement: Annotated[str, Parameter(help="What they pass on instead: mean, their mean map over the images, or zero.")] = "mean",
    flags: EffectFlags = EffectFlags(), trust_code: TrustCode = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take units away for real: what does that do to each class?"""
    from unitscope import effects
    from unitscope.atlas import Atlas

    opened = Atlas(atlas)
    groups = [[unit] for unit in units] if each else [units]
    with progress_bar(None, "knocking out") as advance:
        table = effects.knock_out(
            opened, {layer: groups}, network_by_trusted_code(opened, trust_code), replacement=replacement, device=flags.device,
            on_images=advance, **flags.options(),
        )  # fmt: skip
    order = sorted(table.to_pylist(), key=lambda row: -abs(row["logit_drop"]))
    print_table(type(table).from_pylist(order, schema=table.schema), as_json)


def circuits(
    atlas: AtlasFolder, /, *, layers: LayerPatterns = None, device: Device = "auto", trust_code: TrustCode = False,
) -> None:  # fmt: skip
    """Find the units of earlier layers that feed every unit, in the images of its peaks."""
    from unitscope.atlas import Atlas
    from unitscope.effects import find_circuits

    opened = Atlas(atlas)
    network = network_by_trusted_code(opened, trust_code)
    total = sum(layer.units for layer in opened.layers_matching(layers))
    try:
        with progress_bar(total, "finding circuits", "units") as advance:
            table = find_circuits(opened, network, layers=layers, device=device, on_units=advance)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from here") from interrupt
    print(f"{len(table):,} rows in {atlas / 'tables' / 'circuits.parquet'}")


def why(
    atlas: AtlasFolder, image: Annotated[Path, Parameter(help="The file of an image.")], /, *,
    class_: Annotated[str | None, Parameter("--class", help="The class to explain: its name, WordNet id or position; the predicted one, if not given.", metavar="CLASS")] = None,
    against: Annotated[str | None, Parameter("--not", help="Explain why not this one: the difference of the two scores.", metavar="CLASS")] = None,
    layer: Annotated[str | None, Parameter(help="The layer whose units are drawn; the last one with a map, if not given.")] = None,
    out: Annotated[Path, Parameter(help="The picture to write.")] = Path("why.png"),
    trust_code: TrustCode = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Explain a picture: which units carry its class, and where in it?"""
    from unitscope.atlas import Atlas
    from unitscope.atlas.explanations import draw_explanation, explained_layer, question_text
    from unitscope.atlas.meaning import read_meanings
    from unitscope.effects.explaining import explanation_as_json, open_explainer

    check_picture_path(out)
    opened = Atlas(atlas)
    picture = _read_picture(image)
    with open_explainer(opened, network_by_trusted_code(opened, trust_code)) as explainer:
        explanation = explainer.explain(picture, class_, against)
    save_picture(draw_explanation(opened, picture, explanation, layer), out)
    if as_json:
        print_json(explanation_as_json(opened, explanation))
    else:
        print(question_text(explanation))
        shown = explained_layer(opened, explanation, layer)
        units = [*shown.raising, *shown.lowering]
        meanings = read_meanings(opened, shown.layer)
        print_rows(
            ("unit", "name", "predictability", "effect", "share"),
            [
                [
                    str(unit.unit),
                    meanings[unit.unit].name or "",
                    "" if (score := meanings[unit.unit].predictability) is None else f"{score:.2f}",
                    f"{unit.effect:+.3f}",
                    f"{unit.share:.3f}",
                ]
                for unit in units
            ],
        )
    print_drawn(out, as_json)


def _read_picture(file: Path) -> "Image.Image":
    """The image as displayed. Raises `ImagesError` where it can't be read."""
    from unitscope.images import Skipped, decode_image

    try:
        return decode_image(file)
    except Skipped as reason:
        raise ImagesError(f"the image {str(file)!r} {reason}") from reason
