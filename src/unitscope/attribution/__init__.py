"""attribute(): what in each patch excites the unit, as a table beside the peaks. How, is `methods`'; in which batches, `batches`'."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from torch import nn

from unitscope.arguments import unit_numbers
from unitscope.atlas import Atlas
from unitscope.attribution.backward import LayerAttribution
from unitscope.attribution.gradient_checkpoints import keep_checkpoint_graphs
from unitscope.attribution.methods import METHODS, ActivationMethod, Method
from unitscope.attribution.store import AttributionStore
from unitscope.errors import AtlasError, suggestion
from unitscope.layers import TracedLayer
from unitscope.networks import Network
from unitscope.records import Layer, Peak
from unitscope.session.stored import layer_tolerance, open_atlas_session

__all__ = ["METHODS", "attribute"]


def attribute(
    atlas: Atlas,
    method: str,
    network: "nn.Module | Network | None" = None,
    *,
    layers: Sequence[str] | None = None,
    units: Sequence[int] | None = None,
    device: str = "auto",
    on_peaks: Callable[[int], None] | None = None,
) -> int:
    """Bring the peaks of an atlas down to pixels, and keep an image for each in `tables/METHOD.parquet`. How many were done.

    `method` is `activation` (the unit's activation map itself), `deconvnet` (Zeiler & Fergus 2014, section 2.1), `guided_backprop` (Springenberg et al. 2014), `gradient`, `integrated_gradients`
    (Sundararajan et al. 2017) or `occlusion`. `layers` are glob patterns, `units` numbers; without them all peaks are taken.
    `network` is needed where the atlas was made from a module in memory, or names code to build it with. `on_peaks` is told how many peaks are through.

    At smooth activations (GELU, SiLU and their like) `deconvnet` rectifies the signal as at a ReLU, whose place they take;
    `guided_backprop` lets through what is positive on both sides of them. Activations written out in arithmetic are no rectifiers to either.

    Peaks that have their image already are left alone, so a call that was stopped goes on where it was. Raises `AtlasError` where
    there is nothing to do it for, or where an image is gone or doesn't give the stored value any more; `NetworkError` where no
    gradient comes down. The table is then as it was.
    """
    chosen_method = _method(method)
    peaks_by_layer = _peaks_by_layer(atlas, layers, unit_numbers(units))
    on_peaks = (lambda _: None) if on_peaks is None else on_peaks
    with (
        AttributionStore(atlas, method).locked() as store,
        open_atlas_session(atlas, network, device, list(peaks_by_layer)) as session,
        keep_checkpoint_graphs(),
    ):
        _ = atlas.source  # found once, before threads ask for it
        done = 0
        for traced in session.layers:
            remaining = store.missing(traced.name, peaks_by_layer[traced.name])
            on_peaks(len(peaks_by_layer[traced.name]) - len(remaining))
            method_of_layer = _placed(chosen_method, traced)
            attribution = LayerAttribution(session, method_of_layer, traced, layer_tolerance(atlas, traced.name))
            with closing(attribution.attributions(remaining)) as attributions:
                for attribution_image in attributions:
                    store.add(attribution_image)
                    done += 1
                    on_peaks(1)
        store.finish()
    return done


def _method(name: str) -> Method:
    if name not in METHODS:
        raise AtlasError(f"method is one of {', '.join(METHODS)}, not {name!r}.{suggestion(name, METHODS)}")
    return METHODS[name]


def _placed(method: Method, traced: TracedLayer) -> Method:
    """The method, which knows where a layer's cells lie if it has to."""
    fields = traced.receptive_fields
    return replace(method, centres=(fields.centres_y, fields.centres_x)) if isinstance(method, ActivationMethod) else method


def _peaks_by_layer(atlas: Atlas, layers: Sequence[str] | str | None, units: Sequence[int] | None) -> dict[str, list[Peak]]:
    """The peaks asked for, layer by layer. Raises `AtlasError` where there are none."""
    peaks_by_layer = {layer.name: _peaks(atlas, layer, units) for layer in atlas.layers_matching(layers)}
    if not any(peaks_by_layer.values()):
        chosen = "the chosen units" if units is not None else "the units of the chosen layers"
        raise AtlasError(f"{chosen} have no peaks in the atlas {str(atlas.folder)!r}: they are dead")
    return peaks_by_layer


def _peaks(atlas: Atlas, layer: Layer, units: Sequence[int] | None) -> list[Peak]:
    layer.check_units(units or ())
    unit_set = None if units is None else set(units)
    return [Peak(**row) for row in atlas.peaks(layer.name).to_pylist() if unit_set is None or row["unit"] in unit_set]
