"""Neural style transfer (Gatys et al. 2016, arXiv 1508.06576) with the layers that an atlas proposes.

    python examples/style_transfer.py [--atlas ATLAS] [--content IMAGE] [--style IMAGE] [--out FOLDER] [--grid]

Content is what a layer's units give in each cell, style is how much they go together, cells aside (their Gram matrix). Which layers? The
table `depth` of the atlas says how much of the picture a unit sees, layer by layer: style layers are one for each doubling of that, from the
first on; the content layer is the deepest whose units still see a small part, so that things stay where they are.

Without `--atlas` the trunk of VGG-16 from `pip install stlpips-pytorch` is scanned over some photographs first. With `--grid` the figure has a
row for each number of style layers and a column for each of three content layers.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage import data
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import unitscope
from unitscope.atlas.depth import depth_table
from unitscope.embedding.embedders import lpips_trunk

IMAGENET = unitscope.Preprocessing(224, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CONTENT_SHARE = 1 / 3
"""Units of the content layer see no more of the picture than this, along each side."""
STYLE_SHARE = 1 / 2
STYLE_WEIGHT, OUTSIDE_WEIGHT = 5, 100
"""Of the mean distance of the style layers, beside the content's, and of what pixels lie below black or above white."""
PARTS = (4, 2, 1)
"""The picture is made at a quarter of its side first, then at half of it, then at all of it, as far as that is `SMALLEST_SIDE` pixels."""
SMALLEST_SIDE = 64


def vgg16() -> nn.Module:
    """The convolutions of VGG-16 as the shift-tolerant LPIPS has them (Ghildyal & Liu 2022): trained on ImageNet, with blurred pooling."""
    trunk = lpips_trunk("vgg")
    slices = (trunk.slice1, trunk.slice2, trunk.slice3, trunk.slice4, trunk.slice5)
    modules = [module for part in slices for module in part.children()]
    return nn.Sequential(*(nn.ReLU() if isinstance(module, nn.ReLU) else module for module in modules)).eval()


@dataclass(frozen=True)
class ProposedLayer:
    """A layer, and why it is proposed."""

    name: str
    reason: str


def proposed_layers(atlas: unitscope.Atlas) -> tuple[list[ProposedLayer], list[ProposedLayer]]:
    """Content layers from shallow to deep, the last of which is the one to take, and style layers from shallow to deep."""
    height = atlas.input_size[0]
    kinds = {layer.name: layer for layer in atlas.layers}
    rows = [
        row
        for row in depth_table(atlas).to_pylist()
        if kinds[row["layer"]].map_height > 1 and kinds[row["layer"]].activation != "none"
    ]
    sizes = {row["layer"]: row["effective_field_height"] or row["receptive_field_height"] for row in rows}
    style, next_size = [], 0.0
    for name, size in sizes.items():
        if next_size <= size <= STYLE_SHARE * height:
            style.append(ProposedLayer(name, f"its units see {size} of {height} pixels: textures of that size"))
            next_size = 2 * size
    seen = [name for name, size in sizes.items() if size <= CONTENT_SHARE * height]
    chosen = [seen[round(step * (len(seen) - 1) / 2)] for step in range(3)]
    texts = (
        "nearly the pixels",
        "edges and corners where they are",
        "the deepest whose units see no more than a third: things stay in place",
    )
    content = [ProposedLayer(name, f"{sizes[name]} of {height} pixels, {text}") for name, text in zip(chosen, texts, strict=True)]
    return list(dict.fromkeys(content)), style


@contextmanager
def read(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What these layers give, by name, of the last picture that went through the network: of shape (unit, cell)."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        outputs[name] = output[0].flatten(1).clone()

    hooks = [
        module.get_submodule(name).register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def gram(values: Tensor) -> Tensor:
    """How much the units of a layer go together."""
    return values @ values.T / values.shape[1]


@dataclass(frozen=True)
class Wanted:
    """What the layers should give: the content layer in each cell, the style layers in their Gram matrices."""

    content: Tensor
    style: dict[str, Tensor]


def restyled(
    module: nn.Module,
    content: Image.Image,
    style: Image.Image,
    content_layer: str,
    style_layers: Sequence[str],
    side: int,
    steps: int,
) -> Tensor:
    """The content picture in the style of the other, of shape (colour, y, x), from 0 to 1.

    First at a quarter of the side, then at half of it: large strokes come from there (Gatys et al. 2017, arXiv 1611.07865).
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    picture = None
    for small in (side // part for part in PARTS if part == 1 or side // part >= SMALLEST_SIDE):
        contents, styles = square(content, small), square(style, small)
        start = contents if picture is None else interpolate(picture[None], size=(small, small), mode="bicubic")[0].clamp(0, 1)
        with read(module, [content_layer, *style_layers]) as values:
            module(normalised(contents))
            content_values = values[content_layer]
            module(normalised(styles))
            wanted = Wanted(content_values, {name: gram(values[name]) for name in style_layers})
            to_style = partial(distance, module, values=values, content_layer=content_layer, wanted=wanted)
            picture = improved(start, to_style, colour_steps(styles), steps)
    return picture


def distance(module: nn.Module, picture: Tensor, *, values: dict[str, Tensor], content_layer: str, wanted: Wanted) -> Tensor:
    """How far a picture is from what is wanted; content and each style layer as shares of their own mean squares."""
    module(normalised(picture))
    content = (values[content_layer] - wanted.content).square().mean() / wanted.content.square().mean()
    style = [(gram(values[name]) - target).square().mean() / target.square().mean() for name, target in wanted.style.items()]
    outside = (picture - picture.clamp(0, 1)).square().mean()
    return content + STYLE_WEIGHT * torch.stack(style).mean() + OUTSIDE_WEIGHT * outside


def colour_steps(picture: Tensor) -> Tensor:
    """Directions of colour, by column, each as long as the picture varies along it, and at least a fifth of the longest."""
    variances, directions = torch.linalg.eigh(torch.cov(picture.flatten(1)))
    lengths = variances.clamp_min(0).sqrt() / variances.max().sqrt()
    return directions * lengths.clamp_min(0.2)


def improved(start: Tensor, distance_of: Callable[[Tensor], Tensor], colours: Tensor, steps: int) -> Tensor:
    """The picture after these steps of L-BFGS.

    They are taken in its frequencies, the low ones further than the high, and along the style's colours: pixel by pixel a sky would
    never turn dark (Olah et al. 2017, "Feature visualization", preconditioning).
    """
    size = start.shape[-2:]
    frequencies = (torch.fft.fftfreq(size[0])[:, None].square() + torch.fft.rfftfreq(size[1]).square()).sqrt()
    gains = 0.1 / frequencies.clamp_min(1 / max(size))
    change = torch.zeros(len(start), *gains.shape, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [change], max_iter=steps, history_size=20, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def picture() -> Tensor:
        changes = torch.fft.irfft2(torch.view_as_complex(change) * gains, s=size, norm="ortho")
        return start + torch.tensordot(colours, changes, 1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = distance_of(picture())
        total.backward()
        return total

    optimizer.step(loss)
    return picture().detach().clamp(0, 1)


def normalised(picture: Tensor) -> Tensor:
    """As the network was trained, of shape (image, colour, y, x)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    return (picture - mean)[None] / std


def opened(file: Path | None, otherwise: np.ndarray) -> Image.Image:
    return (Image.open(file) if file else Image.fromarray(otherwise)).convert("RGB")


def square(image: Image.Image, side: int) -> Tensor:
    """The middle of an image, of shape (colour, y, x), from 0 to 1."""
    scale = side / min(image.size)
    image = image.resize(
        (max(side, round(image.width * scale)), max(side, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return (pil_to_tensor(image.crop((left, top, left + side, top + side))) / 255).contiguous()


def figure(pictures: Sequence[Sequence[Tensor]], rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Pictures with a line above each column and one over each row."""
    side, line = pictures[0][0].shape[1], 18
    canvas = Image.new("RGB", (len(columns) * (side + 6), line + len(rows) * (side + line + 6)), "white")
    pen = ImageDraw.Draw(canvas)
    for column, text in enumerate(columns):
        pen.text((column * (side + 6), 2), text, "black")
    for row, text in enumerate(rows):
        top = line + row * (side + line + 6)
        pen.text((0, top + 2), text, "black")
        for column, picture in enumerate(pictures[row]):
            canvas.paste(to_pil_image(picture), (column * (side + 6), top + line))
    return canvas


def scanned_vgg(folder: Path) -> unitscope.Atlas:
    """The atlas of VGG-16's trunk over the photographs that come with scikit-image."""
    if not (folder / "atlas").exists():
        names = ("astronaut", "chelsea", "coffee", "rocket", "colorwheel", "hubble_deep_field", "retina", "cat")
        images = [Image.fromarray(getattr(data, name)()[..., :3]) for name in names if hasattr(data, name)]
        unitscope.scan(f"{Path(__file__).resolve()}:vgg16", images, folder / "atlas", preprocess=IMAGENET, sample=8)
    return unitscope.Atlas(folder / "atlas")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", type=Path, help="an atlas of a network of convolutions")
    parser.add_argument("--content", type=Path, help="the picture to restyle; a cat, if not given")
    parser.add_argument("--style", type=Path, help="the picture whose style it gets; stained tissue, if not given")
    parser.add_argument("--out", type=Path, default=Path("style-transfer"))
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=80, help="at each of three sizes")
    parser.add_argument("--grid", action="store_true", help="content from shallow to deep, style from the first 1 to n layers")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    atlas = unitscope.Atlas(arguments.atlas) if arguments.atlas else scanned_vgg(arguments.out)
    network = atlas.manifest["network"]
    module = unitscope.load_network(network["model"], network["weights"], network["seed"]).module
    contents, styles = proposed_layers(atlas)
    for title, layers in (("content", contents), ("style", styles)):
        for layer in layers:
            print(f"{title:8} {layer.name:12} {layer.reason}")
    content = opened(arguments.content, data.chelsea())
    style = opened(arguments.style, data.immunohistochemistry())
    columns = contents if arguments.grid else contents[-1:]
    counts = range(1, len(styles) + 1) if arguments.grid else [len(styles)]
    pictures = []
    for count in counts:
        pictures.append([])
        for column in columns:
            started = monotonic()
            names = [layer.name for layer in styles[:count]]
            pictures[-1].append(restyled(module, content, style, column.name, names, arguments.side, arguments.steps))
            print(f"content of {column.name}, style of {', '.join(names)}: {monotonic() - started:.0f} s")
    rows = [f"style of the first {count}: up to {styles[count - 1].name}" for count in counts]
    given = [square(content, arguments.side), square(style, arguments.side)]
    drawn = [given, *pictures] if arguments.grid else [[*given, pictures[0][0]]]
    if arguments.grid:
        picture = figure(drawn, ["content and style", *rows], [f"content of {layer.name}" for layer in columns])
    else:
        picture = figure(drawn, rows, ["content", "style", f"content of {columns[0].name}"])
    picture.save(arguments.out / "style-transfer.png")
    print(f"drawn to {arguments.out / 'style-transfer.png'}")


if __name__ == "__main__":
    main()
