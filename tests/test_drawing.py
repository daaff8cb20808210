"""Patches, blocks, sheets and the figure: what is drawn is what the network saw."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import see_through
from photographs import write_photographs
from PIL import Image
from planted import planted_atlas
from torch import nn

import unitscope
from unitscope.atlas import Atlas, figures, patches
from unitscope.drawing import (
    BACKGROUND,
    EMPTY_SLOT,
    GREY,
    SHEET_GROUND,
    Block,
    Crop,
    Panel,
    cut_patch,
    draw_figure,
    draw_hatching,
    draw_missing_patch,
    draw_sheet,
)
from unitscope.errors import AtlasError, ImagesError
from unitscope.images import Changed, Geometry
from unitscope.records import Box, Layer, Peak, Preprocessing
from unitscope.web.queries import AtlasQueries

WHOLE_GRADIENT = Box(0, 0, 20, 30)
SQUARE = Preprocessing(32, (32, 32), (0.5,) * 3, (0.5,) * 3)


def gradient(height: int = 20, width: int = 30) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 8, y * 12, x * 0 + 50], -1).astype(np.uint8))


def crop_of(box: Box, input_crop: Box = WHOLE_GRADIENT) -> Crop:
    """What a patch of the box shows of the gradient."""
    return Crop.of(box, input_crop, (20, 30))


def is_hatched(pixels: np.ndarray) -> bool:
    return {tuple(p) for p in pixels.reshape(-1, 3).tolist()} <= set(SHEET_GROUND.hatch)


def test_a_patch_at_its_own_size_is_the_pixels_of_its_box() -> None:
    image = gradient()
    patch = cut_patch(image, crop_of(Box(4, 6, 14, 16)), size_px=10)
    np.testing.assert_array_equal(np.asarray(patch), np.asarray(image)[4:14, 6:16])


def test_what_lies_beyond_the_image_is_hatched() -> None:
    patch = np.asarray(cut_patch(gradient(), crop_of(Box(-5, 25, 5, 35)), size_px=10))
    assert is_hatched(patch[:5])
    assert is_hatched(patch[:, 5:])
    np.testing.assert_array_equal(patch[5:, :5], np.asarray(gradient())[:5, 25:])


def test_what_the_network_did_not_see_is_hatched_though_the_image_goes_on() -> None:
    patch = np.asarray(cut_patch(gradient(), crop_of(Box(0, 0, 10, 10), input_crop=Box(5, 0, 20, 30)), size_px=10))
    assert is_hatched(patch[:5])
    assert not is_hatched(patch[5:])


def test_a_box_that_misses_the_image_is_all_padding() -> None:
    assert is_hatched(np.asarray(cut_patch(gradient(), crop_of(Box(40, 40, 50, 50)), size_px=12)))


@pytest.mark.parametrize("box", [Box(0.25, 0.5, 3.75, 4), Box(-1e3, -1e3, 1e3, 1e3), Box(3, 3, 4, 4), Box(0, 0, 1e-3, 1e-3)])
def test_every_patch_has_the_size_asked_for(box: Box) -> None:
    assert cut_patch(gradient(), crop_of(box), size_px=24).size == (24, 24)


def test_a_box_that_is_not_square_keeps_its_shape() -> None:
    patch = np.asarray(cut_patch(gradient(), crop_of(Box(0, 0, 10, 20)), size_px=20))
    assert (patch[:5] == EMPTY_SLOT).all()
    assert (patch[15:] == EMPTY_SLOT).all()
    np.testing.assert_array_equal(patch[5:15], np.asarray(gradient())[:10, :20])


SIZE_PX = 20


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour that nothing else in a drawing has."""
    return number, 255 - number, 7


def block(first: int, patch_count: int = 9, number: str = "17", value: str = "3.21") -> Block:
    """A block of patches of one colour each, the first colour and those that follow."""
    patches = [Image.new("RGB", (SIZE_PX, SIZE_PX), colour_of(first + index)) for index in range(patch_count)]
    return Block(number, value, patches, 9)


def square_of(drawing: Image.Image, number: int) -> tuple[int, int]:
    """Top and left of the patch of that colour, which is there once and whole."""
    rows, columns = np.nonzero((np.asarray(drawing) == colour_of(number)).all(-1))
    assert len(rows) == SIZE_PX**2
    assert (np.ptp(rows), np.ptp(columns)) == (SIZE_PX - 1, SIZE_PX - 1)
    return int(rows.min()), int(columns.min())


def rows_that_differ(first: Image.Image, second: Image.Image) -> list[int]:
    return np.flatnonzero((np.asarray(first) != np.asarray(second)).any((1, 2))).tolist()


def test_a_block_shows_its_patches_row_by_row_under_its_number_and_value() -> None:
    sheet = draw_sheet(Panel("features.4", "ReLU", [block(0)]), SIZE_PX)
    top, left = square_of(sheet, 0)
    positions = [square_of(sheet, number) for number in range(9)]
    assert positions == [(top + 22 * (rank // 3), left + 22 * (rank % 3)) for rank in range(9)]
    for relabelled in (block(0, number="8"), block(0, value="9.8")):
        rows = rows_that_differ(sheet, draw_sheet(Panel("features.4", "ReLU", [relabelled]), SIZE_PX))
        assert rows
        assert set(rows) <= set(range(top - 16, top))


def test_a_sheet_shows_its_blocks_in_rows_under_the_layers_name() -> None:
    sheet = draw_sheet(Panel("features.4", "ReLU", [block(9 * number) for number in range(7)]), SIZE_PX)
    tops, lefts = zip(*(square_of(sheet, 9 * number) for number in range(7)), strict=True)
    assert len(set(tops[:4])) == len(set(tops[4:])) == 1
    assert tops[0] < tops[4]
    assert lefts[:3] == lefts[4:]
    assert lefts[0] < lefts[1] < lefts[2] < lefts[3]
    renamed = draw_sheet(Panel("features.5", "ReLU", [block(9 * number) for number in range(7)]), SIZE_PX)
    assert 0 < max(rows_that_differ(sheet, renamed)) < tops[0] - 16


def test_slots_without_a_patch_are_empty() -> None:
    sheet = draw_sheet(Panel("features.4", "ReLU", [block(0, patch_count=2)]), SIZE_PX)
    top, left = square_of(sheet, 0)
    pixels = np.asarray(sheet)
    for slot in range(2, 9):
        y, x = top + 22 * (slot // 3), left + 22 * (slot % 3)
        assert (pixels[y : y + SIZE_PX, x : x + SIZE_PX] == EMPTY_SLOT).all()
    assert (pixels == EMPTY_SLOT).all(-1).sum() == 7 * SIZE_PX**2


def test_the_figure_shows_panels_from_shallow_to_deep_between_title_and_caption() -> None:
    panels = [Panel(f"layer {number}", "about it", [block(9 * number)]) for number in range(6)]
    figure = draw_figure(panels, "What it looks for", ["How to read it"], SIZE_PX)
    tops, lefts = zip(*(square_of(figure, 9 * number) for number in range(6)), strict=True)
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4] == tops[5]
    assert lefts[:3] == lefts[3:]
    assert lefts[0] < lefts[1] < lefts[2]
    title = rows_that_differ(figure, draw_figure(panels, "What else", ["How to read it"], SIZE_PX))
    caption = rows_that_differ(figure, draw_figure(panels, "What it looks for", ["How else"], SIZE_PX))
    assert 0 < max(title) < tops[0] - 16
    assert tops[5] + 62 < min(caption)
    assert (np.asarray(figure)[[0, -1]] == BACKGROUND).all()


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """An atlas of two layers over six pictures: fields of 3 pixels, and of the whole input."""
    folder = tmp_path_factory.mktemp("drawn")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 32, padding=31), nn.ReLU())
    images = write_photographs(folder / "images")
    return unitscope.scan(network, images, folder / "atlas", preprocess=SQUARE)


def first_peak(atlas: Atlas, layer: str) -> Peak:
    return Peak(**atlas.peaks(layer).to_pylist()[0])


def test_a_patch_is_cut_from_the_source_at_its_own_resolution(tmp_path: Path) -> None:
    """One bright spot with detail that the network's input has no pixels for; the patch shows it."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[96:104, 160:168] = 255
    pixels[96:104:2, 160:168] = 180  # stripes of one source pixel, an eighth of an input pixel
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "spot.png")
    network = see_through(3)
    atlas = unitscope.scan(network, tmp_path / "images", tmp_path / "atlas", preprocess=SQUARE)
    peak = first_peak(atlas, "0")
    assert (peak.y, peak.x) == (12, 20)
    assert (peak.source_top, peak.source_left, peak.source_bottom, peak.source_right) == (96, 160, 104, 168)
    patch = np.asarray(atlas.patch(peak, size_px=8))
    np.testing.assert_array_equal(patch, pixels[96:104, 160:168])


def test_patches_of_every_kind(atlas: Atlas) -> None:
    peak = first_peak(atlas, "3")
    field, effective, image = (np.asarray(atlas.patch(peak, kind)) for kind in ("field", "effective", "image"))
    assert field.shape == effective.shape == image.shape == (224, 224, 3)
    hatched = [np.isin(pixels, SHEET_GROUND.hatch).all(-1).mean() for pixels in (field, effective, image)]
    assert hatched[0] > 0.1  # the field reaches beyond the image
    assert hatched[1:] == [0, 0]
    across = 64 / 42  # source pixels to a network-input pixel: the shorter side, 48, became 32
    height = round(224 * 48 / (32 * across))
    crop = atlas.picture(peak.image).resize((224, height), Image.Resampling.BICUBIC, box=(5 * across, 0, 37 * across, 48))
    top = (224 - height) // 2
    np.testing.assert_array_equal(image[top : top + height], np.asarray(crop))
    with pytest.raises(AtlasError, match="patch is one of auto, field, effective, image, not 'nothing'"):
        atlas.patch(peak, "nothing")


def positions_of(patch: Image.Image, sheet: np.ndarray) -> list[tuple[int, int]]:
    """Top and left of every place where a sheet shows a patch."""
    pixels = np.asarray(patch)
    height, width = pixels.shape[:2]
    starts = (sheet == pixels[0, 0]).all(-1)[: sheet.shape[0] - height + 1, : sheet.shape[1] - width + 1]
    return [(int(y), int(x)) for y, x in np.argwhere(starts) if (sheet[y : y + height, x : x + width] == pixels).all()]


def test_a_sheet_shows_the_units_asked_for(atlas: Atlas) -> None:
    sheet = np.asarray(atlas.sheet("1", units=[3, 5]))
    corners = []
    for unit in (3, 5):
        patches_in_order = [atlas.patch(row, "auto", 56) for row in atlas.peaks("1", unit).to_pylist()]
        (corner,) = positions_of(patches_in_order[0], sheet)
        corners.append(corner)
        for rank, patch in enumerate(patches_in_order):
            assert (corner[0] + 58 * (rank // 3), corner[1] + 58 * (rank % 3)) in positions_of(patch, sheet)
    assert corners[0][0] == corners[1][0]
    assert corners[0][1] < corners[1][1]
    shown = {unit for unit in range(12) if positions_of(atlas.patch(atlas.peaks("1", unit).to_pylist()[0], "auto", 56), sheet)}
    assert shown == {3, 5}
    with pytest.raises(AtlasError, match="layer '1' has units 0 to 11, not 12"):
        atlas.sheet("1", units=[12])


def test_the_figure_depends_on_the_seed_alone(atlas: Atlas) -> None:
    first, repeated, reseeded = (np.asarray(atlas.figure(layers=["1"], seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, repeated)
    assert not np.array_equal(first, reseeded)


def test_a_notebook_shows_an_atlas_as_its_figure(atlas: Atlas) -> None:
    shown = Image.open(io.BytesIO(atlas._repr_png_()))
    assert shown.format == "PNG"
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(atlas.figure()))


def test_the_figure_says_which_field_is_drawn(atlas: Atlas) -> None:
    shallow, deep = atlas.layers
    assert deep.receptive_field_height > 32
    assert deep.effective_field_height is not None
    assert deep.effective_field_height <= 32
    subtitles = {
        kind: figures.panel(atlas, deep, [0], patches.PatchOptions(kind)).subtitle
        for kind in ("auto", "field", "effective", "image")
    }
    assert (
        subtitles["auto"]
        == subtitles["effective"]
        == f"ReLU · 4 units · field {deep.receptive_field_height} px (whole input), drawn: "
        + (f"effective field {deep.effective_field_height} px")
    )
    assert subtitles["field"] == f"ReLU · 4 units · field {deep.receptive_field_height} px (whole input)"
    assert subtitles["image"].endswith("drawn: whole image crop")
    assert figures.panel(atlas, shallow, [0], patches.PatchOptions()).subtitle == "ReLU · 12 units · field 3 px"


def of_size(field: tuple[int, int], effective: tuple[int, int] | None) -> Layer:
    height, width = effective or (None, None)
    return Layer("a", "ReLU", 5, 7, 7, *field, 4, 4, "relu", 0, height, width)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "effective", "drawn"),
    [
        ((3, 3), (3, 3), "field"),
        ((28, 28), (20, 20), "field"),
        ((29, 29), (20, 20), "effective"),
        ((29, 29), (29, 29), "field"),
        ((115, 115), (65, 65), "effective"),
        ((851, 851), (211, 211), "effective"),
        ((851, 851), (851, 851), "field"),
        ((851, 851), None, "field"),
        ((1, 500), (1, 100), "field"),
        ((4, 500), (4, 100), "effective"),
    ],
)
def test_the_effective_field_is_drawn_where_the_field_is_no_small_part_of_the_input(
    tmp_path: Path, field: tuple[int, int], effective: tuple[int, int] | None, drawn: str
) -> None:
    atlas = unitscope.scan(see_through(3), torch.rand(2, 3, 224, 224), tmp_path / "atlas")
    assert patches.resolve_patch_kind(atlas, of_size(field, effective), "auto") == drawn
    for kind in ("field", "image"):
        assert patches.resolve_patch_kind(atlas, of_size(field, effective), kind) == kind


SIDES = ("top", "left", "bottom", "right")


def sides_of(box: Box) -> tuple[float, float, float, float]:
    return box.top, box.left, box.bottom, box.right


@pytest.fixture(scope="module")
def deepening(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """An atlas of twelve layers whose fields grow from 3 to 25 pixels of 32."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("deepening")
    convolutions = [nn.Sequential(nn.Conv2d(3 if not n else 8, 8, 3, padding=1), nn.ReLU()) for n in range(12)]
    return unitscope.scan(nn.Sequential(*convolutions), write_photographs(folder / "images"), folder / "atlas", preprocess=SQUARE)


def test_sheet_figure_and_pages_draw_the_same_box(deepening: Atlas) -> None:
    queries = AtlasQueries(deepening)
    kinds = set()
    for layer_shown in deepening.layers:
        small = layer_shown.receptive_field_height**2 * 64 <= 32 * 32
        effective = layer_shown.effective_field_height if not small else layer_shown.receptive_field_height
        panel, patch = figures.panel(deepening, layer_shown, [0], patches.PatchOptions()), queries.patch_size(layer_shown.name)
        assert (patch.height, panel.input_share[0] * 32) == (effective, effective)
        peak = deepening.peaks(layer_shown.name).to_pylist()[0]
        (example, *_) = queries.peaks(layer_shown.name, peak["unit"])
        assert example.patch_box.height == pytest.approx(effective * 48 / 32)
        auto, drawn = (np.asarray(deepening.patch(peak, kind)) for kind in ("auto", patch.kind))
        np.testing.assert_array_equal(auto, drawn)
        kinds.add(patch.kind)
    assert kinds == {"field", "effective"}


def test_pages_compute_the_boxes_of_many_rows_as_one_by_one(deepening: Atlas) -> None:
    queries, unit, seen_kinds = AtlasQueries(deepening), 3, set()
    for name in (shown_layer.name for shown_layer in deepening.layers):
        kind, peaks = queries.patch_size(name).kind, queries.peaks(name, unit)
        sampled = [example for examples in queries.bands(name, unit).values() for example in examples]
        rows = [*deepening.peaks(name, unit).to_pylist(), *deepening.table("sample", name).to_pylist()]
        fields = {(row["image"], row["y"], row["x"]): [row[side] for side in SIDES] for row in rows if row["unit"] == unit}
        for example in [*peaks, *sampled]:
            image, cell = example.source_image, (example.y, example.x)
            size, field = (image.height, image.width), Box(*fields[image.image, *cell])
            geometry = Geometry.of(deepening.preprocessing, *size)
            source = geometry.to_source(field)
            assert sides_of(example.receptive_field) == pytest.approx(sides_of(source), abs=1e-4)  # tables have 32 bits
            assert example.input_box == geometry.to_source(Box(0, 0, 32, 32))
            row = Peak(name, unit, 1, 0.0, image.image, *cell, *sides_of(field), *sides_of(example.receptive_field))
            [crop] = patches.patch_crops(deepening, [row], kind, [size])
            assert (example.patch_box, example.visible_box) == (crop.box, crop.visible)
        assert [peak.rank for peak in peaks] == deepening.peaks(name, unit)["rank"].to_pylist()
        assert {example.rank for example in sampled} == {None}
        seen_kinds |= {kind} if peaks else set()
    assert seen_kinds == {"field", "effective"}


def test_an_effective_field_lies_on_the_input_as_far_as_it_can(deepening: Atlas) -> None:
    for deep_layer in deepening.layers:
        if patches.resolve_patch_kind(deepening, deep_layer, "auto") == "effective":
            for row in deepening.peaks(deep_layer.name).to_pylist():
                [crop] = patches.patch_crops(deepening, [Peak(**row)], "effective", [(48, 64)])
                assert crop.visible == crop.box


def layer(order: int, cells: int = 4, activation: str = "relu") -> Layer:
    return Layer(f"layer{order}", "ReLU", 5, cells, cells, 3, 3, 1, 1, activation, order)


def test_up_to_six_layers_are_spread_over_the_depth() -> None:
    def orders(layers: list[Layer]) -> list[int]:
        return [chosen.order for chosen in figures.choose_overview_layers(layers)]

    assert orders([layer(n) for n in range(20)] + [layer(20, cells=1), layer(21, activation="none")]) == [0, 4, 8, 11, 15, 19]
    assert orders([layer(n) for n in range(3)]) == [0, 1, 2]
    assert orders([layer(7, cells=1, activation="none")]) == [7]


def test_an_image_that_is_gone_leaves_a_mark_and_the_rest_is_drawn(tmp_path: Path) -> None:
    images = write_photographs(tmp_path / "images")
    atlas = unitscope.scan(see_through(3), images, tmp_path / "atlas", preprocess=SQUARE)
    sheet = np.asarray(atlas.sheet("0"))
    peaks = [Peak(**row) for row in atlas.peaks("0").to_pylist()]
    positions = [positions_of(atlas.patch(peak, "auto", 56), sheet)[0] for peak in peaks]
    gone = peaks[0]
    (images / atlas.source.key(gone.image)).write_bytes(b"")
    reopened = Atlas(tmp_path / "atlas")
    with pytest.warns(UserWarning, match=r"3 of 18 patches could not be drawn: image 'cat/000.png' is not an image .*--images"):
        sheet_now = np.asarray(reopened.sheet("0"))
    expected = sheet.copy()
    for peak, (top, left) in zip(peaks, positions, strict=True):
        if peak.image == gone.image:
            expected[top : top + 56, left : left + 56] = np.asarray(draw_missing_patch(56))
    np.testing.assert_array_equal(sheet_now, expected)
    with pytest.raises(AtlasError, match="can't be drawn any more: it is not an image"):
        reopened.patch(gone)


def test_an_image_that_became_another_is_drawn_as_changed(tmp_path: Path) -> None:
    """Of the same name and size; in a list, a folder, and a data set of which another subset is given."""
    images = write_photographs(tmp_path / "images", 12)
    paths = sorted(images.rglob("*.png"))
    pictures = [Image.open(path).copy() for path in paths]
    for number, source in enumerate((images, paths, pictures[:6])):
        atlas = unitscope.scan(see_through(3), source, tmp_path / f"atlas {number}", preprocess=SQUARE)
        peak = first_peak(atlas, "0")
        if number == 2:
            changed = unitscope.Atlas(atlas.folder, images=pictures[6:])
        else:
            path = images / atlas.key(peak.image)
            kept = path.read_bytes()
            Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
            changed = unitscope.Atlas(atlas.folder)
        with pytest.raises(Changed, match="has changed: it is not the image that was scanned"):
            changed.open_image(peak.image)
        with pytest.raises(AtlasError, match="can't be drawn any more: it has changed"):
            changed.patch(peak)
        differing = unitscope.check(changed, see_through(3)).differences
        assert peak.rank in {difference.rank for difference in differing if difference.reason.startswith("has changed")}
        if number < 2:
            with pytest.warns(UserWarning, match="patches could not be drawn: image .* has changed"):
                changed.sheet("0")
            path.write_bytes(kept)
        else:
            with pytest.raises(ImagesError, match="18 of 18 patches could not be drawn: image '0' has changed"):
                changed.sheet("0")


def test_changed_and_missing_look_different() -> None:
    tiles = [
        np.asarray(tile) for tile in (draw_missing_patch(64), draw_missing_patch(64, has_changed=True), draw_hatching(64, 64))
    ]
    assert len({tile.tobytes() for tile in tiles}) == 3


def test_an_image_is_found_by_its_name_though_others_came_before_it(tmp_path: Path) -> None:
    images = write_photographs(tmp_path / "images")
    atlas = unitscope.scan(see_through(3), images, tmp_path / "atlas", preprocess=SQUARE)
    sheet, peak = np.asarray(atlas.sheet("0")), first_peak(atlas, "0")
    Image.new("RGB", (64, 48)).save(images / "aardvark.png")
    np.testing.assert_array_equal(np.asarray(Atlas(tmp_path / "atlas").sheet("0")), sheet)
    key = atlas.source.key(peak.image)
    Image.new("RGB", (64, 50)).save(images / key)
    with pytest.raises(AtlasError, match="it is 64 x 50 pixels now and was 64 x 48"):
        Atlas(tmp_path / "atlas").patch(peak)
    (images / key).unlink()
    with pytest.raises(AtlasError, match="it is no longer there"):
        Atlas(tmp_path / "atlas").patch(peak)


def test_images_that_have_moved_are_given_again(tmp_path: Path) -> None:
    images = write_photographs(tmp_path / "images")
    atlas = unitscope.scan(see_through(3), images, tmp_path / "atlas", preprocess=SQUARE)
    sheet = np.asarray(atlas.sheet("0"))
    images.rename(tmp_path / "elsewhere")
    with pytest.raises(ImagesError, match="there is no folder"):
        Atlas(tmp_path / "atlas").sheet("0")
    np.testing.assert_array_equal(np.asarray(Atlas(tmp_path / "atlas", images=tmp_path / "elsewhere").sheet("0")), sheet)


def test_no_more_than_nine_patches_are_drawn_of_a_unit(tmp_path: Path) -> None:
    images = torch.rand(30, 1, 4, 4)
    sheets = {k: unitscope.scan(see_through(1), images, tmp_path / f"{k}", k=k).sheet("0") for k in (1, 9, 20)}
    np.testing.assert_array_equal(np.asarray(sheets[9]), np.asarray(sheets[20]))
    assert sheets[9].height - sheets[1].height == 2 * (56 + 2)


def test_dead_units_are_drawn_empty(tmp_path: Path) -> None:
    atlas = unitscope.scan(see_through(1, nn.ReLU()), -torch.ones(2, 1, 4, 4), tmp_path / "atlas")
    grid = grid_of(atlas.sheet("1", size_px=20))
    assert is_framed(grid)
    for top, left in ((2, 2), (2, 22), (2, 44), (44, 2), (44, 22), (44, 44)):  # within the frame, above and below the bar
        assert (grid[top : top + 16, left : left + 16] == EMPTY_SLOT).all()
    bar = grid[24:38]
    assert (bar == GREY).all(-1).mean() > 0.6
    assert (bar > 200).all(-1).any()  # white letters on grey


def test_tensors_are_drawn_from_their_lowest_to_their_highest_value(tmp_path: Path) -> None:
    images = torch.tensor([[[-4.0, 4.0], [0.0, 2.0]]])[None]
    atlas = unitscope.scan(see_through(1), images, tmp_path / "atlas")
    patch = np.asarray(atlas.patch(atlas.peaks("0").to_pylist()[0], "image", size_px=2))
    assert patch[..., 0].tolist() == [[0, 255], [128, 191]]


# ── ties ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def grid_of(sheet: Image.Image, size_px: int = 20) -> np.ndarray:
    """The patches of a sheet's first block, by the sizes that drawing gives them."""
    pixels, side = np.asarray(sheet), 3 * (size_px + 2) - 2
    below = pixels.shape[0] - 24
    return pixels[below - side : below, 24 : 24 + side]


def is_framed(grid: np.ndarray) -> bool:
    edges = (grid[0], grid[-1], grid[:, 0], grid[:, -1])
    return all((edge == GREY).all() for edge in edges)


def test_a_block_whose_values_tie_or_that_is_dead_is_framed(tmp_path: Path) -> None:
    atlas = planted_atlas(tmp_path)
    assert [is_framed(grid_of(atlas.sheet("1", units=[unit], size_px=20))) for unit in range(3)] == [True, False, False]
    notices = {
        block.number: block.notice for block in figures.panel(atlas, atlas.layer("1"), [0, 1, 2], patches.PatchOptions()).blocks
    }
    assert notices == {"0": "24 images tie", "1": "", "2": ""}
    dead = unitscope.scan(see_through(1, nn.ReLU()), -torch.ones(2, 1, 4, 4), tmp_path / "dead")
    assert is_framed(grid_of(dead.sheet("1", size_px=20)))


def test_the_figure_chooses_no_unit_that_shows_no_preference(tmp_path: Path) -> None:
    atlas = planted_atlas(tmp_path)
    for seed in range(5):
        assert figures.choose_overview_units(atlas, atlas.layer("1"), seed) == [1, 2]
    only = unitscope.scan(see_through(1, nn.ReLU()), torch.ones(20, 1, 4, 4), tmp_path / "only")
    assert figures.choose_overview_units(only, only.layer("1"), 0) == []
    assert figures.panel(only, only.layer("1"), [], patches.PatchOptions()).subtitle.endswith("none of them shows a preference")
    assert only.figure().size
    assert is_framed(grid_of(only.sheet("1", size_px=20)))
