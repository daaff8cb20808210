"""The demo's images: the photographs inside scikit-image and scikit-learn, cut into tiles that don't overlap."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from unitscope.errors import ImagesError
from unitscope.files import atomic_write
from unitscope.records import Box

# Photographs and pictures with something to see; plots, masks and test patterns are left out.
SCIKIT_IMAGE = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg",
    "text.png",
)  # fmt: skip
SCIKIT_LEARN = ("china.jpg", "flower.jpg")
ROWS, SMALLEST_PX = 3, 128
COMPLETE = ".complete"
"""A file in the folder of the tiles, which says that they are these: a folder of other images isn't taken for them."""


def demo_images(folder: Path) -> Path:
    """Write the tiles as PNG files below `folder`, one sub-folder a photograph, and give the folder back.

    A second call finds them there. Raises `ImagesError` where the packages that bring the photographs are missing.
    """
    if not (folder / COMPLETE).exists():
        with atomic_write(folder, f"the demo's images {str(folder)!r}", ImagesError) as unfinished:
            for photograph in _photographs():
                image = Image.open(photograph).convert("RGB")
                tile_folder = unfinished / photograph.stem
                tile_folder.mkdir(parents=True)
                for number, box in enumerate(tiles(image.height, image.width)):
                    image.crop((int(box.left), int(box.top), int(box.right), int(box.bottom))).save(
                        tile_folder / f"{number:02}.png"
                    )
            (unfinished / COMPLETE).touch()
    return folder


def tiles(height: int, width: int) -> Iterator[Box]:
    """Boxes that don't overlap on a picture of that size: squares, three in a column, and every other one cut into four.

    So things are seen from two distances. Squares are no smaller than 128 pixels before they are cut.
    """
    side = max(min(height, width) // ROWS, SMALLEST_PX) // 2 * 2
    top, left = height % side // 2, width % side // 2
    for row in range(height // side):
        for column in range(width // side):
            yield from _squares(top + row * side, left + column * side, side, 1 + (row + column) % 2)


def _squares(top: int, left: int, side: int, across: int) -> Iterator[Box]:
    part = side // across
    for y in range(top, top + side, part):
        for x in range(left, left + side, part):
            yield Box(y, x, y + part, x + part)


def _photographs() -> Iterator[Path]:
    try:
        import skimage.data
        import sklearn.datasets
    except ImportError as error:
        raise ImagesError(
            "the demo's photographs come with: pip install 'unitscope[demo]'. Or give your own: --images DIR"
        ) from error
    places = (Path(skimage.data.__file__).parent, SCIKIT_IMAGE), (Path(sklearn.datasets.__file__).parent / "images", SCIKIT_LEARN)
    for place, names in places:
        yield from (place / name for name in names if (place / name).is_file())
