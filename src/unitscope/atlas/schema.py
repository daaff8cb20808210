"""The tables of an atlas and their columns. A change needs a decision record and a new format version."""

import pyarrow as pa

FORMAT = 2
MANIFEST = "atlas.json"
METHODS = ("deconvnet", "guided_backprop", "gradient", "integrated_gradients", "occlusion")
"""Of attribution, whose tables an atlas may have; `unitscope.attribution`, which needs torch, has them."""
MOST_PEAKS = (1 << 15) - 1
"""The highest rank that the tables can hold."""
MOST_INPUT = 1 << 28
"""How many numbers one input of the network may have: a gigabyte in float32."""

_PLACE = [("layer", pa.string()), ("unit", pa.int32())]
_CELL = [("image", pa.int64()), ("y", pa.int32()), ("x", pa.int32())]
_SIDES = ("top", "left", "bottom", "right")

TABLES: dict[str, pa.Schema] = {
    "layers": pa.schema(
        [
            ("layer", pa.string()),
            ("kind", pa.string()),
            ("units", pa.int32()),
            ("map_height", pa.int32()),
            ("map_width", pa.int32()),
            ("receptive_field_height", pa.int32()),
            ("receptive_field_width", pa.int32()),
            ("effective_field_height", pa.int32()),
            ("effective_field_width", pa.int32()),
            ("stride_y", pa.int32()),
            ("stride_x", pa.int32()),
            ("activation", pa.string()),
            ("order", pa.int32()),
        ]
    ),
    "images": pa.schema(
        [
            ("image", pa.int64()),
            ("key", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("label", pa.string()),
            ("content", pa.uint64()),
        ]
    ),
    "labels": pa.schema([("label", pa.string()), ("images", pa.int64())]),
    "peaks": pa.schema(
        [
            *_PLACE,
            ("rank", pa.int16()),
            ("value", pa.float32()),
            *_CELL,
            *((side, pa.int32()) for side in _SIDES),
            *((f"source_{side}", pa.float32()) for side in _SIDES),
        ]
    ),
    "units": pa.schema(
        [
            *_PLACE,
            ("images", pa.int64()),
            ("activation_rate", pa.float64()),
            ("mean", pa.float64()),
            ("std", pa.float64()),
            ("lowest", pa.float32()),
            ("highest", pa.float32()),
            ("nan_images", pa.int64()),
            ("dead", pa.bool_()),
            ("tied", pa.int64()),
        ]
    ),
    "sample": pa.schema([*_PLACE, _CELL[0], ("value", pa.float32()), *_CELL[1:], *((side, pa.int32()) for side in _SIDES)]),
    "skipped": pa.schema([("key", pa.string()), ("reason", pa.string())]),
}

PLACES = pa.schema(_PLACE)
PROJECTIONS = pa.schema(
    [*_PLACE, ("rank", pa.int16()), *((side, pa.int32()) for side in _SIDES), ("scale", pa.float32()), ("image", pa.binary())]
)
"""The columns of `attributions/METHOD.parquet`, which a method adds to an atlas."""
