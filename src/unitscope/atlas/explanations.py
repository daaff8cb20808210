"""Explanations of images: which layer is shown, and the figure of a picture with the units that raise or lower a class's score in it."""

from PIL import Image

from unitscope.atlas.figures import panel
from unitscope.atlas.meaning import UnitMeaning, read_meanings
from unitscope.atlas.patches import PatchOptions
from unitscope.atlas.reading import AtlasReader
from unitscope.drawing import EffectRow, draw_effects, draw_place
from unitscope.errors import AtlasError
from unitscope.images import prepare
from unitscope.records import ImageExplanation, LayerEffects

RAISING, LOWERING = 5, 3
"""How many units are drawn each way."""
SIZE_PX, PICTURE_PX = 96, 288


def explained_layer(atlas: AtlasReader, explanation: ImageExplanation, layer: str | None = None) -> LayerEffects:
    """The layer whose units are shown: the last one with a map whose units aren't the classes, unless told otherwise.

    Raises `AtlasError` for a layer that the score doesn't depend on.
    """
    by_name = {of_layer.layer: of_layer for of_layer in explanation.layers if of_layer.raising or of_layer.lowering}
    if layer is not None:
        name = atlas.layer(layer).name
        if name not in by_name:
            raise AtlasError(f"the score doesn't depend on layer {name!r}; it does on {', '.join(by_name)}")
        return by_name[name]
    if not by_name:
        raise AtlasError("the score depends on none of the atlas's layers")
    own = set(atlas.manifest.get("class_layers", ()))
    names = [name for name in by_name if name not in own] or list(by_name)
    with_maps = [name for name in names if atlas.layer(name).map_height * atlas.layer(name).map_width > 1]
    return by_name[(with_maps or names)[-1]]


def question_text(explanation: ImageExplanation) -> str:
    """What is explained, in words."""
    against = "" if explanation.against is None else f", not {explanation.against.name}"
    return f"Why {explanation.explained.name}{against}?"


def draw_explanation(
    atlas: AtlasReader, image: Image.Image, explanation: ImageExplanation, layer: str | None = None
) -> Image.Image:
    """The explanation of an image as displayed, by the units of one layer; their patches are cut from the atlas's images.

    Raises `AtlasError` for a layer that the score doesn't depend on, and `ImagesError` where the atlas's images are gone.
    """
    of_layer = explained_layer(atlas, explanation, layer)
    seen = _as_seen(image, atlas)
    picture = seen.resize((PICTURE_PX, round(PICTURE_PX * seen.height / seen.width)), Image.Resampling.BICUBIC)
    units = [*of_layer.raising[:RAISING], *of_layer.lowering[:LOWERING]]
    found = atlas.layer(of_layer.layer)
    blocks = panel(atlas, found, [unit.unit for unit in units], PatchOptions(size_px=SIZE_PX)).blocks
    meanings = read_meanings(atlas, found.name)
    longest = max((abs(unit.effect) for unit in units), default=1.0) or 1.0
    rows = [
        EffectRow(
            f"{unit.effect:+.2f}",
            unit.effect / longest,
            meanings[unit.unit].name or f"unit {unit.unit}",
            f"unit {unit.unit}, {unit.share * 100:.1f} % of the layer",
            picture if unit.map is None else draw_place(picture, unit.map),
            block.patches,
            _score_text(meanings[unit.unit]),
        )
        for unit, block in zip(units, blocks, strict=True)
    ]
    scores = [f"{known.name}: {known.probability * 100:.1f} %" for known in explanation.top]
    kind = "exact" if of_layer.exact else "to first order"
    title = f"{question_text(explanation)} {found.name}, {kind}; the score is {explanation.score:.2f}"
    return draw_effects(picture, scores, title, rows, SIZE_PX)


def _score_text(meaning: UnitMeaning) -> str:
    return "" if meaning.predictability is None else f"predictability {meaning.predictability:.2f}"


def _as_seen(image: Image.Image, atlas: AtlasReader) -> Image.Image:
    """What the network gets to see of an image."""
    if atlas.preprocessing is None:
        return image
    pixels = prepare(image, atlas.preprocessing)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]).convert("RGB")
