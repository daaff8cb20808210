"""The demo's images: the photographs inside scikit-image and scikit-learn, cut into tiles that don't overlap, or Imagenette, downloaded."""

import tarfile
import warnings
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from PIL import Image

from unitscope.errors import ImagesError, first_line
from unitscope.files import atomic_write
from unitscope.records import Box

SCIKIT_IMAGE_FILES = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg",
    "text.png",
)  # fmt: skip
"""Photographs and pictures with something to see; plots, masks and test patterns are left out."""
SCIKIT_LEARN_FILES = ("china.jpg", "flower.jpg")
SQUARES_PER_COLUMN = 3
"""With three, the photographs of both packages give 300 to 600 tiles."""
COMPLETE_MARK = ".complete"
"""A file in the folder of the tiles, which says that they are these: a folder of other images isn't taken for them."""
MIN_SQUARE_PX = 128
"""A quarter of such a square still has the 64 pixels a side at which a patch is drawn."""
IMAGENETTE_SPLIT, IMAGENETTE_SIZE = "val", "320px"
"""The images that are scanned, and their shorter side. Networks of ImageNet take 224 pixels, so the archive of 160 would show them blurred, and the full one has nothing to add."""
WITHOUT_NETWORK = "without a network, leave out --images imagenette: the demo's own photographs come with Python packages"


def write_demo_images(folder: Path) -> Path:
    """Write the tiles as PNG files below `folder`, one sub-folder a photograph, and give the folder back.

    Where a call has written them already, another writes nothing. Raises `ImagesError` where the packages that bring the photographs are missing.
    """
    if not (folder / COMPLETE_MARK).exists():
        with atomic_write(folder, f"the demo's images {str(folder)!r}", ImagesError) as unfinished:
            for photograph in _photographs():
                _write_tiles(photograph, unfinished / photograph.stem)
            (unfinished / COMPLETE_MARK).touch()
    return folder


def imagenette_images() -> Path:
    """The folder of Imagenette's validation images, 3,925 of ten classes of ImageNet, in sub-folders that are called by WordNet ids.

    The archive of all 13,394 images is downloaded by torchvision where it isn't in the cache that PyTorch's weights are in, once. Raises
    `ImagesError` where it can't be downloaded, or isn't what it should be; nothing is left of it then.
    """
    from torch import hub
    from torchvision.datasets import Imagenette

    root = Path(hub.get_dir()) / "datasets" / "imagenette"
    url, _ = Imagenette._ARCHIVES[IMAGENETTE_SIZE]
    folder = Path(Path(url).stem, IMAGENETTE_SPLIT)
    if not root.exists():
        with atomic_write(root, f"the images of Imagenette {str(root)!r}", ImagesError) as unfinished:
            _download_imagenette(unfinished, url)
    return root / folder


def _download_imagenette(folder: Path, url: str) -> None:
    from torchvision.datasets import Imagenette

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torchvision unpacks without a filter, behind a checksum
            Imagenette(folder, IMAGENETTE_SPLIT, IMAGENETTE_SIZE, download=True)
    except (URLError, ConnectionError, TimeoutError, HTTPException) as error:
        raise ImagesError(f"Imagenette can't be downloaded from {url!r}: {first_line(error)}; {WITHOUT_NETWORK}") from error
    except (RuntimeError, tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise ImagesError(
            f"what came from {url!r} is incomplete or another file; give the same command again, or {WITHOUT_NETWORK}"
        ) from error
    (folder / Path(url).name).unlink(missing_ok=True)


def tile_boxes(height_px: int, width_px: int) -> Iterator[Box]:
    """Boxes that don't overlap on a picture of that size: squares, three in a column, and every other one cut into four.

    So things are seen from two distances. Squares are no smaller than 128 pixels before they are cut.
    """
    side = max(min(height_px, width_px) // SQUARES_PER_COLUMN, MIN_SQUARE_PX) // 2 * 2
    top, left = height_px % side // 2, width_px % side // 2
    for row in range(height_px // side):
        for column in range(width_px // side):
            yield from _square_boxes(top + row * side, left + column * side, side, 1 + (row + column) % 2)


def _square_boxes(top: int, left: int, side: int, cuts_per_side: int) -> Iterator[Box]:
    """The boxes of one square, cut into `cuts_per_side` rows and as many columns."""
    tile_px = side // cuts_per_side
    for y in range(top, top + side, tile_px):
        for x in range(left, left + side, tile_px):
            yield Box(y, x, y + tile_px, x + tile_px)


def _write_tiles(photograph: Path, folder: Path) -> None:
    image = Image.open(photograph).convert("RGB")
    folder.mkdir(parents=True, exist_ok=True)
    for number, box in enumerate(tile_boxes(image.height, image.width)):
        image.crop((int(box.left), int(box.top), int(box.right), int(box.bottom))).save(folder / f"{number:02}.png")


def _photographs() -> Iterator[Path]:
    try:
        import skimage.data
        import sklearn.datasets
    except ImportError as error:
        raise ImagesError(
            "the demo's photographs come with: pip install 'unitscope[demo]'. Or give your own: --images DIR"
        ) from error
    scikit_image, scikit_learn = Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"
    for folder, names in ((scikit_image, SCIKIT_IMAGE_FILES), (scikit_learn, SCIKIT_LEARN_FILES)):
        yield from (folder / name for name in names if (folder / name).is_file())
