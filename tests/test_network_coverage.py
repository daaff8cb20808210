"""Networks whose layouts are hard to tell, by what `make coverage` measures: values against hooks, fields against gradients in float64, `check`."""

from pathlib import Path

import pytest
from network_coverage import link_photographs, measured

HARDEST = {
    "transformers:Hiera": "tokens in the order of a space-filling curve, queries pooled in blocks",
    "transformers:PvtV2": "keys and values on a coarser map",
    "transformers:Swinv2": "windows, shifted, heads",
    "transformers:Detr": "queries that stand nowhere, behind tokens",
    "timm:coat_lite_tiny": "class tokens that are padded and put back",
    "torchvision:ssdlite320_mobilenet_v3_large": "a detector, in lists",
}
"""Model strings as `network_families` has them, and what is hard about them."""


@pytest.mark.slow
@pytest.mark.parametrize("model", HARDEST)
def test_a_network_is_read_whole_and_right(tmp_path: Path, model: str) -> None:
    figures = measured(model, link_photographs(tmp_path))
    assert figures["left_out"] == []
    assert figures["values_wrong"] == []
    assert figures["fields_missed"] == []
    assert figures["fields_exact"] >= 15
    assert figures["check_differences"] == 0
    assert figures["figure"]
