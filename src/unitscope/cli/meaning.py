"""The commands that say what units are."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unitscope.cli.networks import network_by_trusted_code
from unitscope.cli.output import print_drawn, print_json, print_rows, print_table, progress_bar
from unitscope.cli.parameters import AsJson, AtlasFolder, Device, LayerPatterns, MovedImages, TrustCode
from unitscope.cli.parsing import read_lines
from unitscope.errors import UnitscopeError

PRINTED_NAMES = 20


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class NamingFlags:
    """What units are named by."""

    tree: Annotated[
        Path | None,
        Parameter(help="A CSV file with a child and its parent a line; WordNet above ImageNet, if not given.", metavar="FILE"),
    ] = None
    texts: Annotated[
        Path | None,
        Parameter(
            help="A file with a text a line, which take the place of labels; some 3,000 words, if not given.", metavar="FILE"
        ),
    ] = None
    embedder: Annotated[
        str | None,
        Parameter(
            help="Name by texts: what joins images and texts, open_clip:NAME/PRETRAINED or PATH.py:FACTORY.", metavar="NAME"
        ),
    ] = None
    rate: Annotated[float, Parameter(help="The share of names that may be false.")] = 0.05
    visual: Annotated[
        bool,
        Parameter(
            help="Show the network gratings and colours, and call units by those where they explain more.", negative="--no-visual"
        ),
    ] = True


def name(
    atlas: AtlasFolder, /, *, flags: NamingFlags = NamingFlags(), images: MovedImages = None, device: Device = "auto",
    trust_code: TrustCode = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Name units: after what is seen, or labels, groups of labels or texts, that their responses go with."""
    from unitscope.atlas import Atlas, check_table_writable
    from unitscope.atlas.meaning import PERHAPS, WEAKLY, read_meanings
    from unitscope.atlas.tables import NAMES
    from unitscope.naming import ClassNaming, Naming, TextNaming, check_rate, name_units, stimulus_count, tune_visually

    opened = Atlas(atlas, images=images)
    check_rate(flags.rate)
    check_table_writable(NAMES, opened)
    if flags.texts is not None and flags.embedder is None:
        raise UnitscopeError("--texts needs --embedder, which joins images and texts: open_clip:NAME/PRETRAINED")
    if flags.embedder is None:
        naming: Naming = ClassNaming.of(opened, flags.tree)
    else:
        naming = TextNaming.of(opened, read_lines(flags.texts) if flags.texts else None, flags.embedder)
    if flags.visual:
        with progress_bar(stimulus_count(opened), "showing gratings") as advance:
            tune_visually(opened, network_by_trusted_code(opened, trust_code), device, on_images=advance)
    with progress_bar(sum(layer.units for layer in opened.layers), "naming", "units") as advance:
        table = name_units(opened, naming, visual=flags.visual, rate=flags.rate, on_units=advance)
    rows = sorted(table.filter(table["name"].is_valid()).to_pylist(), key=_evidence, reverse=True)
    if as_json:
        print_json({"units": len(table), "named": len(rows), "names": rows})
        return
    columns = ("layer", "unit", "name", "kind", "r_b", "peaks_inside", "peaks", "base_rate", "explained")
    print_rows(columns, [[_text(row[column]) for column in columns] for row in rows[:PRINTED_NAMES]])
    print(
        f"{len(rows):,} of {len(table):,} units are named, {min(PRINTED_NAMES, len(rows))} with the best evidence above; the others are in the table names"
    )
    beliefs = Counter(meaning.belief for layer in opened.layers for meaning in read_meanings(opened, layer.name))
    if beliefs[PERHAPS] or beliefs[WEAKLY]:
        print(f"of the names {beliefs[PERHAPS]:,} are said with perhaps and {beliefs[WEAKLY]:,} with weakly (docs/meaning.md)")


def score(
    atlas: AtlasFolder, /, *,
    embedder: Annotated[str, Parameter(help="The network that says what looks alike: demo, lpips-alex, dreamsim, or a model string as for scan; not the scanned one.")] = "lpips-alex",
    layers: LayerPatterns = None,
    crops: Annotated[bool, Parameter(help="Embed each patch by itself, which takes hours for many layers.")] = False,
    images: MovedImages = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Score units: how well do their patches predict which images, of those that no patch shows, excite them?"""
    from unitscope.atlas import Atlas
    from unitscope.scoring import score_units

    opened = Atlas(atlas, images=images)
    total = sum(layer.units for layer in opened.layers_matching(layers))
    with progress_bar(total, "scoring", "units") as advance:
        table = score_units(opened, embedder, layers=layers, crops=crops, on_units=advance)
    columns = (
        "predictability",
        "predictability_shuffled",
        "monosemanticity",
        "monosemanticity_shuffled",
        "localisation",
        "localisation_chance",
    )
    print_table(table.group_by("layer", use_threads=False).aggregate([(column, "mean") for column in columns]), as_json)


def depth(
    atlas: AtlasFolder, /, *,
    out: Annotated[Path, Parameter(help="The folder to write the table and the plot to.")] = Path("depth"), as_json: AsJson = False,
) -> None:  # fmt: skip
    """See how units change from the first layer to the last: fields, names, scores, colour and shape."""
    from unitscope.atlas import Atlas, write_table
    from unitscope.atlas.depth import depth_table
    from unitscope.atlas.tables import DEPTH
    from unitscope.experiments.plots import draw_depth, plot_format

    plot_format(out / "depth.png")  # or the work would be for nothing
    opened = Atlas(atlas)
    table = write_table(depth_table(opened), DEPTH, out)
    shown = [name for name in table.column_names if table[name].null_count < len(table)]
    print_table(table.select(shown), as_json)
    draw_depth(table, opened.manifest["network"]["model"], out / "depth.png")
    print_drawn(out / "depth.png", as_json)


def _evidence(row: Mapping[str, Any]) -> float:
    """The share of the response that goes with the name."""
    return float(row["explained"] or 0) if row["kind"] == "visual" else float(row["r_b"]) ** 2


def _text(value: object) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
