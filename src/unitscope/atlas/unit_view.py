"""One unit of an atlas, as a notebook shows it: what it responds to, its patches, and a histogram of its sample."""

import base64
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from unitscope.atlas.figures import panel
from unitscope.atlas.meaning import UnitMeaning, read_meanings
from unitscope.atlas.patches import PatchOptions, patches_counted
from unitscope.atlas.reading import AtlasReader
from unitscope.drawing import draw_grid, draw_notice
from unitscope.records import Layer

BINS = 32
PATCH_PX = 96


@dataclass(frozen=True)
class Unit:
    """A unit of an atlas. In a notebook it shows itself."""

    atlas: AtlasReader
    layer: Layer
    number: int

    def __repr__(self) -> str:
        nothing = "dead: no image excites it" if self.statistics["dead"] else "not named or scored yet"
        return f"{self.layer.name} unit {self.number}: {self.text or nothing}"

    @property
    def meaning(self) -> UnitMeaning:
        """What is known of what it responds to: name, evidence, score, facets."""
        return read_meanings(self.atlas, self.layer.name)[self.number]

    @property
    def name(self) -> str | None:
        """What it is called; None where no name holds, or none was looked for."""
        return self.meaning.name

    @property
    def text(self) -> str:
        """What it responds to in a sentence; empty where nothing is known."""
        return "".join(piece.text for piece in self.meaning.sentence())

    @property
    def peaks(self) -> pa.Table:
        """Its peaks by rank. Columns as in the table `peaks`."""
        return self.atlas.peaks(self.layer.name, self.number)

    @property
    def troughs(self) -> pa.Table:
        """Its lowest cells by rank; none where a rectifier follows its layer, or where the scan kept none. Columns as in the table `peaks`."""
        return self.atlas.troughs(self.layer.name, self.number)

    @property
    def statistics(self) -> dict[str, Any]:
        """Its row of the table `units`, with the columns of other tables of units beside it, as `TABLE.COLUMN`."""
        row: dict[str, Any] = self.atlas.units(self.layer.name, joined=True).slice(self.number, 1).to_pylist()[0]
        return row

    @property
    def sample(self) -> NDArray[np.float32]:
        """Its values in the sample of images, finite ones, from the lowest to the highest."""
        values = self.atlas.table("sample", self.layer.name, self.number)["value"].to_numpy()
        return np.sort(values[np.isfinite(values)])

    def block(self, patch: str = "auto", size_px: int = PATCH_PX) -> Image.Image:
        """Its patches in a square, the strongest first; `patch` as in `Atlas.sheet`."""
        with patches_counted() as count:
            [block] = panel(self.atlas, self.layer, [self.number], PatchOptions(patch, size_px=size_px), count).blocks
        grid = draw_grid(block.patches, block.slot_count, size_px)
        draw_notice(grid, block.notice)
        return grid

    def _repr_html_(self) -> str:
        """Sentence, patches and histogram, for notebooks."""
        content = BytesIO()
        self.block().save(content, "JPEG", quality=85)
        picture = base64.b64encode(content.getvalue()).decode()
        sentence = f"<p>This unit {escape(self.text)}</p>" if self.text else ""
        return (
            f"<div><p><b>{escape(self.layer.name)}</b> unit {self.number}</p>{sentence}"
            f'<img alt="The patches of {escape(self.layer.name)} unit {self.number}" src="data:image/jpeg;base64,{picture}">'
            f"{self._histogram()}</div>"
        )

    def _histogram(self) -> str:
        """The sample's values as an SVG, with the peaks marked; nothing without a sample."""
        sample, peaks = self.sample.astype(np.float64), self.peaks["value"].to_numpy().astype(np.float64)
        peaks = peaks[np.isfinite(peaks)]
        if not len(sample):
            return ""
        low, high = float(sample[0]), float(max(sample[-1], *peaks[:1])) if len(peaks) else float(sample[-1])
        counts, _ = np.histogram(sample, BINS, (low, high if high > low else low + 1))
        width, scale = 288 / BINS, 60 / counts.max()
        bars = "".join(
            f'<rect x="{index * width:.1f}" y="{60 - count * scale:.1f}" width="{width - 1:.1f}" height="{count * scale:.1f}" fill="#8a9099"/>'
            for index, count in enumerate(counts.tolist())
        )
        marks = "".join(
            f'<path d="M{288 * (value - low) / ((high - low) or 1):.1f} 0V60" stroke="#e2703a"/>' for value in peaks.tolist()
        )
        text = f"{len(sample):,} images of the sample, from {low:.3g} to {high:.3g}; the peaks in orange"
        return (
            f'<p style="margin:.5em 0 0"><svg width="288" height="60" viewBox="0 0 288 60" role="img" aria-label="{text}">{bars}{marks}</svg></p>'
            f"<p>{text}</p>"
        )
