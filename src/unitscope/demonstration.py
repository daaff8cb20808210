"""The demo's images: the photographs inside scikit-image and scikit-learn, cut into tiles that don't overlap."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from unitscope.errors import ImagesError

# Photographs and pictures with something to see; plots, masks and test patterns are left out.
SCIKIT_IMAGE = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "color.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg",
    "text.png",
)  # fmt: skip
SCIKIT_LEARN = ("china.jpg", "flower.jpg")
TILE_PX = (224, 112)


def demo_images(folder: Path) -> Path:
    """Write the tiles as PNG files below `folder`, one sub-folder a photograph, and give the folder back.

    Tiles come in two sizes, so that things are seen from two distances; tiles of one size don't overlap. A second call finds them
    there. Raises `ImagesError` where the packages that bring the photographs are missing.
    """
    finished = folder / ".complete"
    if not finished.exists():
        for photograph in _photographs():
            image = Image.open(photograph).convert("RGB")
            for size in TILE_PX:
                _write_tiles(image, size, folder / photograph.stem)
        finished.touch()
    return folder


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


def _write_tiles(image: Image.Image, size: int, folder: Path) -> None:
    """The tiles that fit whole, centred on the photograph; smaller photographs than one tile give none."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = image.height // size, image.width // size
    top, left = (image.height - rows * size) // 2, (image.width - columns * size) // 2
    for row in range(rows):
        for column in range(columns):
            corner = left + column * size, top + row * size
            tile = image.crop((*corner, corner[0] + size, corner[1] + size))
            tile.save(folder / f"{size}_{row:02}_{column:02}.png")
