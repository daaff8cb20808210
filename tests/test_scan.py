"""The scan from images to tables, against brute force: one test a rule of exactness, and the traps that other tools fall into."""

import math
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from interruptions import bytes_of
from networks import Reused, see_through, small_network
from torch import Tensor, nn
from xxhash import xxh3_64_intdigest

import unitscope
from unitscope.atlas import CORE_TABLES, Atlas
from unitscope.errors import LayerNotFound, LayoutError
from unitscope.records import Shard
from unitscope.runners import ShardWorker

FEW_VALUES = st.sampled_from([math.nan, -math.inf, math.inf, -3.0, -1.0, 0.0, 0.5, 7.0])
IMAGES = st.integers(1, 8).flatmap(lambda count: arrays(np.float32, (count, 2, 2, 3), elements=FEW_VALUES))


def peaks_by_brute_force(maps: Tensor, k: int, rectified: bool) -> list[tuple[float, int, int]]:
    """One unit's k first peaks from its maps of shape (image, y, x), as (value, image, cell): rules 1 to 6, cell by cell.

    The images are those of a data set, whose keys are their numbers.
    """
    actual = []
    for image, values in enumerate(maps.flatten(1).tolist()):
        valid = [(-value, image, cell) for cell, value in enumerate(values) if not math.isnan(value)]
        if valid and not (rectified and -min(valid)[0] <= 0):
            actual.append(min(valid))
    ordered = sorted((value, hash_of_key(str(image)), image, cell) for value, image, cell in actual)
    return [(-value, image, cell) for value, _, image, cell in ordered[:k]]


def hash_of_key(key: str) -> bytes:
    """In the order of this hash stand images that share a value (rule 2)."""
    return blake2b(key.encode(), digest_size=8).digest()


def stored_peaks(atlas: unitscope.Atlas, layer: str, unit: int) -> list[tuple[float, int, int]]:
    width = atlas.layer(layer).map_width
    rows = atlas.peaks(layer, unit=unit).to_pylist()
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    return [(row["value"], row["image"], row["y"] * width + row["x"]) for row in rows]


@pytest.mark.slow
@settings(max_examples=60)
@given(IMAGES, st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_peaks_are_those_of_brute_force(values: np.ndarray, k: int, batch_size: int, rectified: bool) -> None:
    """Rules 1 to 6 at once, on values full of ties, NaN and infinities."""
    images = torch.from_numpy(values)
    network = see_through(2, nn.ReLU()) if rectified else see_through(2)
    with TemporaryDirectory() as folder:
        atlas = unitscope.scan(network, images, Path(folder, "atlas"), k=k, batch_size=batch_size, workers=0)
        layer = atlas.layers[0]
        assert layer.rectified == rectified
        statistics = atlas.units(layer.name).to_pylist()
        for unit in range(2):
            expected = peaks_by_brute_force(images[:, unit], k, rectified)
            assert stored_peaks(atlas, layer.name, unit) == expected
            assert statistics[unit]["nan_images"] == sum(bool(image.isnan().any()) for image in images[:, unit])
            assert statistics[unit]["dead"] == (not expected)


@pytest.mark.parametrize("count", [1, 5, 33, 70])
def test_an_atlas_holds_the_top_nine_of_brute_force(tmp_path: Path, count: int) -> None:
    network, images = small_network(), torch.randn(count, 3, 14, 14)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", workers=1)
    assert [layer.name for layer in atlas.layers] == ["1", "4", "6"]
    maps = maps_of_children(network.eval(), images, {"0": "1", "3": "4", "6": "6"})
    for layer in atlas.layers:
        for unit in range(layer.units):
            expected = peaks_by_brute_force(maps[layer.name][:, unit], 9, layer.rectified)
            assert_same_peaks(stored_peaks(atlas, layer.name, unit), expected)


def maps_of_children(network: nn.Module, images: Tensor, wanted: dict[str, str]) -> dict[str, Tensor]:
    """Outputs of a sequential network's children under the names given for them; copied, since later modules overwrite them."""
    maps, x = {}, images
    with torch.no_grad():
        for name, module in network.named_children():
            x = module(x)
            if name in wanted:
                maps[wanted[name]] = x.clone() if x.dim() == 4 else x.clone()[..., None, None]
    return maps


def assert_same_peaks(actual: Sequence[tuple[float, int, int]], expected: Sequence[tuple[float, int, int]]) -> None:
    assert [place[1:] for place in actual] == [place[1:] for place in expected]
    np.testing.assert_allclose([place[0] for place in actual], [place[0] for place in expected], rtol=1e-4, atol=1e-6)


def test_rule_1_the_value_is_what_goes_into_the_activation(tmp_path: Path) -> None:
    images = torch.tensor([5.0, 9.0, 7.0]).reshape(3, 1, 1, 1)
    atlas = unitscope.scan(see_through(1, nn.ReLU6(inplace=True)), images, tmp_path / "atlas")
    assert atlas.layers[0].activation == "relu6"
    assert [value for value, *_ in stored_peaks(atlas, "1", 0)] == [9.0, 7.0, 5.0]


def test_rule_1_a_float32_value_keeps_all_its_bits(tmp_path: Path) -> None:
    value = np.float32(1.0000001)
    atlas = unitscope.scan(see_through(1), torch.full((1, 1, 1, 1), float(value)), tmp_path / "atlas")
    assert atlas.peaks("0", unit=0)["value"].to_pylist() == [float(value)]


def test_rule_2_equal_values_stand_by_the_hash_of_their_keys_and_equal_cells_keep_the_first(tmp_path: Path) -> None:
    atlas = unitscope.scan(see_through(1), torch.ones(20, 1, 3, 3), tmp_path / "atlas", k=3, batch_size=6)
    first = sorted(range(20), key=lambda image: hash_of_key(str(image)))[:3]
    assert stored_peaks(atlas, "0", 0) == [(1.0, image, 0) for image in first]


@pytest.mark.parametrize("per_image", [1, 2])
def test_images_that_share_the_last_value_are_counted(tmp_path: Path, per_image: int) -> None:
    """A floor that many images reach, a preference with a tied end, one without ties, and a unit that has too few peaks."""
    values = torch.zeros(150, 4, 2, 2)
    values[:, 0] = torch.arange(150)[:, None, None].clamp(max=40)
    values[:5, 1], values[5:12, 1], values[12:, 1] = 9.0, 3.0, 1.0
    values[:, 2] = torch.arange(150)[:, None, None] + 1.0
    values[:4, 3] = 1.0
    options = {"k": 9, "batch_size": 4, "per_image": per_image}
    atlas = unitscope.scan(see_through(4, nn.ReLU()), values, tmp_path / "atlas", **options)
    actual = [row["value"] for row in atlas.peaks("1", unit=0).to_pylist()]
    assert actual == [40.0] * 9
    assert atlas.units("1")["tied"].to_pylist() == ([110, 7, 1, 0] if per_image == 1 else [110, 5, 1, 0])


def test_rule_4_a_unit_that_is_always_negative_has_nine_peaks_below_zero(tmp_path: Path) -> None:
    images = -torch.arange(1.0, 13).reshape(12, 1, 1, 1)
    atlas = unitscope.scan(see_through(1), images, tmp_path / "atlas")
    assert stored_peaks(atlas, "0", 0) == [(-float(i + 1), i, 0) for i in range(9)]
    assert not atlas.units("0")["dead"][0].as_py()


def test_rule_5_a_unit_that_fires_in_three_images_has_three_peaks(tmp_path: Path) -> None:
    images = torch.zeros(12, 2, 2, 2)
    images[[3, 5, 8], 0, 1, 0] = torch.tensor([1.0, 3.0, 2.0])
    atlas = unitscope.scan(see_through(2, nn.ReLU()), images, tmp_path / "atlas")
    assert stored_peaks(atlas, "1", 0) == [(3.0, 5, 2), (2.0, 8, 2), (1.0, 3, 2)]
    assert stored_peaks(atlas, "1", 1) == []
    assert atlas.units("1")["dead"].to_pylist() == [False, True]
    assert atlas.units("1")["activation_rate"].to_pylist() == [0.25, 0.0]


def test_rule_6_several_peaks_of_one_image_are_half_a_field_apart(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 4, stride=1, bias=False))
    nn.init.ones_(network[0].weight)
    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    atlas = unitscope.scan(network, images, tmp_path / "atlas", per_image=3, k=18)
    rows = atlas.peaks("0", unit=0).to_pylist()
    assert len(rows) == 18
    for image in range(6):
        of_image = [row for row in rows if row["image"] == image]
        assert len(of_image) == 3
        assert of_image[0]["value"] == pytest.approx(float(network(images[image : image + 1]).detach().max()))
        for first in of_image:
            for second in of_image:
                if first is not second:
                    apart = max(abs(first["top"] - second["top"]), abs(first["left"] - second["left"]))
                    assert apart >= 2


def test_a_reused_rectifier_gives_a_layer_for_every_call(tmp_path: Path) -> None:
    network, images = Reused().eval(), torch.randn(7, 3, 6, 6)
    atlas = unitscope.scan(network, images, tmp_path / "atlas", batch_size=3)
    named = [(layer.name, layer.activation) for layer in atlas.layers]
    assert named == [("relu", "relu"), ("second", "none"), ("relu#2", "relu"), ("last", "relu")]
    with torch.no_grad():
        into_first = network.norm(network.first(images))
        into_second = network.second(into_first.relu()) + into_first.relu()
        into_third = network.last(into_second.relu())
    for name, maps in (("relu", into_first), ("relu#2", into_second), ("last", into_third)):
        for unit in range(maps.shape[1]):
            assert_same_peaks(stored_peaks(atlas, name, unit), peaks_by_brute_force(maps[:, unit], 9, rectified=True))


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = small_network()
    network[3].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randn(3, 3, 14, 14)
    state = torch.get_rng_state()
    unitscope.scan(network, images, tmp_path / "atlas")
    assert [module.training for module in network] == [True, True, True, False, True, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_statistics_are_those_of_all_images(tmp_path: Path) -> None:
    images = torch.randn(77, 3, 4, 4) * 3
    atlas = unitscope.scan(see_through(3, nn.ReLU()), images, tmp_path / "atlas", batch_size=4)
    highest = images.amax((2, 3)).double().numpy()
    table = atlas.units("1")
    assert table["images"].to_pylist() == [77] * 3
    np.testing.assert_allclose(table["activation_rate"], (highest > 0).mean(0))
    np.testing.assert_allclose(table["mean"], highest.mean(0))
    np.testing.assert_allclose(table["std"], highest.std(0))
    np.testing.assert_array_equal(table["lowest"], highest.min(0))
    np.testing.assert_array_equal(table["highest"], highest.max(0))


def test_the_sample_is_the_same_images_for_every_unit(tmp_path: Path) -> None:
    images = torch.randn(450, 2, 2, 2)
    atlas = unitscope.scan(see_through(2), images, tmp_path / "atlas", batch_size=16)
    rows = atlas.sample("0").to_pylist()
    by_unit = [[row["image"] for row in rows if row["unit"] == unit] for unit in range(2)]
    assert by_unit[0] == by_unit[1] == sorted(by_unit[0])
    assert len(set(by_unit[0])) == 200
    for row in rows:
        maps = images[row["image"], row["unit"]]
        assert row["value"] == maps.max()
        assert maps[row["y"], row["x"]] == maps.max()
    known = set(atlas.table("images")["image"].to_pylist())
    mentioned = {image for name in ("candidates", "troughs") for image in atlas.table(name)["image"].to_pylist()}
    assert known == set(by_unit[0]) | mentioned


@pytest.mark.parametrize("size", [1, 7, 300])
def test_the_sample_has_as_many_images_as_are_asked_for(tmp_path: Path, size: int) -> None:
    images = torch.randn(90, 1, 2, 2)
    atlas = unitscope.scan(see_through(1), images, tmp_path / "atlas", batch_size=8, sample=size)
    first = sorted(range(90), key=lambda image: hash_of_key(str(image)))[:size]
    assert atlas.sample("0")["image"].to_pylist() == sorted(first)
    assert atlas.manifest["sample"] == size


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for name in ("k", "per_image", "batch_size", "sample", "limit"):
        with pytest.raises(unitscope.UnitscopeError, match=f"{name} must be at least 1, not 0"):
            unitscope.scan(see_through(1), torch.ones(2, 1, 1, 1), tmp_path / "atlas", **{name: 0})
    with pytest.raises(TypeError, match=r"scan\(\) got an unexpected keyword argument 'batchsize'"):
        unitscope.scan(see_through(1), torch.ones(2, 1, 1, 1), tmp_path / "atlas", batchsize=3)  # type: ignore[call-arg]


def test_the_sample_depends_on_keys_alone(tmp_path: Path) -> None:
    samples = []
    for name, batch_size in (("one", 7), ("two", 64)):
        atlas = unitscope.scan(see_through(1), torch.randn(300, 1, 1, 1), tmp_path / name, batch_size=batch_size)
        samples.append(atlas.sample("0")["image"].to_pylist())
    assert samples[0] == samples[1]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_total_of_contents_is_the_sum_over_all_images(tmp_path: Path, batch_size: int) -> None:
    atlas = unitscope.scan(see_through(1), torch.randn(90, 1, 2, 2), tmp_path / "atlas", batch_size=batch_size)
    rows = atlas.table("images").to_pylist()
    assert len(rows) == 90  # all are in the sample
    wanted = sum(xxh3_64_intdigest(f"{row['content']:016x} {row['key']}".encode()) for row in rows) % 2**64
    assert atlas.manifest["images"]["contents"] == f"{wanted:016x}"


class Shuffled:
    """A runner whose shards go to three workers, and whose results come in some other order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def map(self, make_worker: Callable[[], ShardWorker[object]], shards: Iterable[Shard]) -> Iterator[object]:
        waiting = list(shards)
        results: list[object] = []
        for start in range(3):
            results += make_worker()(waiting[start::3])
        random.Random(self.seed).shuffle(results)
        yield from results


@pytest.mark.slow
def test_the_bytes_of_an_atlas_do_not_depend_on_who_scanned_which_shard(tmp_path: Path) -> None:
    images = torch.randn(100, 3, 14, 14).round(decimals=1)
    for name, runner, workers in (("here", None, 0), ("again", None, 3), ("one", Shuffled(1), 1), ("two", Shuffled(2), 1)):
        unitscope.scan(small_network(), images, tmp_path / name, batch_size=4, runner=runner, workers=workers)
    first = bytes_of(tmp_path / "here")
    assert set(first) >= {spec.file for spec in CORE_TABLES.values()}
    for name in ("again", "one", "two"):
        assert bytes_of(tmp_path / name) == first


def test_labels_are_counted_for_all_images(tmp_path: Path) -> None:
    class Labelled:
        classes = ("cat", "dog")

        def __len__(self) -> int:
            return 30

        def __getitem__(self, image: int) -> tuple[Tensor, int]:
            return torch.full((1, 1, 1), float(image)), int(image % 3 == 0)

    atlas = unitscope.scan(see_through(1), Labelled(), tmp_path / "atlas", k=2)
    assert atlas.table("labels").to_pylist() == [{"label": "cat", "images": 20}, {"label": "dog", "images": 10}]
    labels = {row["image"]: row["label"] for row in atlas.table("images").to_pylist()}
    assert labels[29] == "cat"
    assert labels[27] == "dog"


def test_limit_scans_the_first_images_only_and_progress_is_told(tmp_path: Path) -> None:
    progress: list[int] = []
    images = torch.arange(10.0).reshape(10, 1, 1, 1)
    atlas = unitscope.scan(see_through(1), images, tmp_path / "atlas", limit=4, batch_size=3, on_images=progress.append)
    assert progress == [4]
    assert stored_peaks(atlas, "0", 0)[0] == (3.0, 3, 0)
    assert atlas.manifest["read"] == 4


def test_a_nan_in_one_image_spoils_no_other(tmp_path: Path) -> None:
    images = torch.ones(5, 1, 2, 2)
    images[2] = torch.nan
    images[3, 0, 0, 0] = torch.nan
    images[3, 0, 1, 1] = 4
    atlas = unitscope.scan(see_through(1), images, tmp_path / "atlas")
    assert sorted(stored_peaks(atlas, "0", 0)) == [(1.0, 0, 0), (1.0, 1, 0), (1.0, 4, 0), (4.0, 3, 3)]
    unit = atlas.units("0").to_pylist()[0]
    assert (unit["nan_images"], unit["highest"], unit["lowest"], unit["mean"]) == (2, 4.0, 1.0, 1.75)


def test_what_a_scan_stored_comes_back(tmp_path: Path) -> None:
    network, images = small_network(), torch.randn(40, 3, 14, 14)
    atlas = unitscope.scan(network, images, tmp_path / "atlas")
    result = unitscope.check(atlas, network, batch_size=7)
    assert result.peaks == atlas.table("peaks").num_rows > 0
    assert result.differences == []
    changed = unitscope.Atlas(tmp_path / "atlas", images=images + 0.1)
    assert unitscope.check(changed, network).differences
    with torch.no_grad():
        network[0].weight += 1
    with pytest.raises(unitscope.UnitscopeError, match="weights"):
        unitscope.check(atlas, network)


def test_what_the_caller_switched_on_rounds_nothing(tmp_path: Path) -> None:
    network, images = small_network(), torch.randn(10, 3, 14, 14)
    plain = unitscope.scan(network, images, tmp_path / "plain")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            other = unitscope.scan(network, images, tmp_path / "other")
            assert torch.get_float32_matmul_precision() == "medium"
            assert unitscope.check(plain, network).differences == []
    finally:
        torch.set_float32_matmul_precision(before)
    assert bytes_of(plain.folder) == bytes_of(other.folder)


def test_infinities_come_back_as_infinities_only(tmp_path: Path) -> None:
    images = torch.tensor([torch.inf, 1.0, 2.0, 3.0]).reshape(4, 1, 1, 1)
    atlas = unitscope.scan(see_through(1), images, tmp_path / "atlas", batch_size=1)
    assert unitscope.check(atlas, see_through(1)).differences == []
    changed = unitscope.Atlas(tmp_path / "atlas", images=torch.tensor([5.0, 100, 2, 3]).reshape(4, 1, 1, 1))
    differences = unitscope.check(changed, see_through(1)).differences
    for is_trough in (False, True):  # each of the four images is both
        assert sorted(found.stored for found in differences if found.is_trough is is_trough) == [1.0, torch.inf]
    assert atlas.units("0")["mean"].to_pylist() == [torch.inf]


def test_values_that_depend_on_the_batch_are_warned_of(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.warns(UserWarning, match="in the same batch, from layer '1' on"):
        atlas = unitscope.scan(network, torch.randn(9, 3, 5, 5), tmp_path / "atlas", batch_size=9)
    assert unitscope.check(atlas, network, batch_size=2).differences  # which is why


class NoWayBack(nn.Module):
    """An operation in place that autograd can't go back through."""

    def forward(self, maps: Tensor) -> Tensor:
        gate = torch.sigmoid(maps)
        return gate.mul_(2)


def test_a_network_without_a_way_back_has_no_effective_fields(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), NoWayBack(), nn.Conv2d(2, 2, 3))
    atlas = unitscope.scan(network, torch.randn(3, 3, 5, 5), tmp_path / "atlas", layers=["1", "2"])
    assert [layer.effective_field_height for layer in atlas.layers] == [1, None]


class Stateful(nn.Conv2d):
    """A module with state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: object) -> None:
        pass


def test_state_that_is_no_tensor_is_in_nobodys_way(tmp_path: Path) -> None:
    atlas = unitscope.scan(nn.Sequential(Stateful(3, 2, 1)), torch.randn(3, 3, 5, 5), tmp_path / "atlas")
    assert len(atlas.manifest["network"]["hash"]) == 64


class NeverRead:
    """A data set that fails the test when it is read."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, image: int) -> torch.Tensor:
        raise AssertionError("an image was read")


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize("name", ["k", "per_image", "batch_size", "sample", "limit", "workers"])
@pytest.mark.parametrize("value", ["3", 3.0, 2.5, True, [3], torch.tensor(2.0)], ids=repr)
def test_counts_that_are_no_whole_numbers_are_named_before_an_image_is_read(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(unitscope.UnitscopeError, match=f"^{name} (must be a whole|is auto or a) number.* not ") as raised:
        unitscope.scan(see_through(1), NeverRead(), tmp_path / "atlas", **{name: value})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "atlas").exists()


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize("layers", [[None], [3], 3, ["0", b"0"]], ids=repr)
def test_layers_that_are_no_text_are_named_before_an_image_is_read(tmp_path: Path, layers: Any) -> None:
    with pytest.raises(LayerNotFound, match="^layers must be names of layers, or globs such as .*, not "):
        unitscope.scan(see_through(1), NeverRead(), tmp_path / "atlas", layers=layers)


def test_more_peaks_than_the_tables_can_hold_are_refused_before_an_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(unitscope.UnitscopeError, match="^k must be at most 32,767, not 32768$"):
        unitscope.scan(see_through(1), NeverRead(), tmp_path / "atlas", k=32_768)
    atlas = unitscope.scan(see_through(1), torch.ones(2, 1, 1, 1), tmp_path / "atlas", k=32_767)
    assert Atlas(atlas.folder).k == 32_767


def test_an_input_too_large_for_an_atlas_is_refused_before_a_network_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unitscope.scanning, "MAX_INPUT_VALUES", 3)
    with pytest.raises(unitscope.UnitscopeError, match=r"an input of \(1, 2, 2\) has more than 3 numbers; give smaller images"):
        unitscope.scan(see_through(1), torch.ones(2, 1, 2, 2), tmp_path / "atlas")


@pytest.mark.usefixtures("wrong_types")
def test_whole_numbers_of_any_type_are_counts(tmp_path: Path) -> None:
    counts = {
        "k": np.int64(2),
        "batch_size": np.int32(1),
        "sample": torch.tensor(2),
        "limit": np.uint8(2),
        "workers": np.int64(0),
    }
    atlas = unitscope.scan(see_through(1), torch.ones(3, 1, 1, 1), tmp_path / "atlas", layers=("0",), **counts)
    assert {name: atlas.manifest[name] for name in ("k", "batch_size", "sample", "read")} == {
        "k": 2, "batch_size": 1, "sample": 2, "read": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["k", "per_image", "batch_size"])
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(unitscope.UnitscopeError, match=f"{name} must be at least 1, not 0"):
        unitscope.scan(see_through(1), torch.ones(1, 1, 1, 1), tmp_path / "atlas", **{name: 0})
    assert not (tmp_path / "atlas").exists()


class PartlyRead(nn.Module):
    """Maps, an operator without a rule, a layer that sees the mean of all images, whose output nobody reads, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.tokens, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4, 6), nn.Linear(16, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps, places = nn.functional.max_pool2d(self.first(images), 2, return_indices=True)
        maps = nn.functional.max_pool2d(nn.functional.max_unpool2d(maps, places, 2), 2)
        self.tokens(maps.flatten(2).mean(0, keepdim=True))
        return self.last(maps.flatten(1))


def test_layers_left_out_and_operators_without_a_rule_stand_in_the_manifest(tmp_path: Path) -> None:
    network, images = PartlyRead(), torch.randn(4, 3, 4, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        atlas = unitscope.scan(network, images, tmp_path / "atlas", k=2)
    messages = [str(warning.message) for warning in caught]
    assert len([text for text in messages if "no rule says what the operators 'max_unpool2d' depend on" in text]) == 1
    assert len([text for text in messages if "layer 'tokens'" in text and "is left out, since it can't be scanned" in text]) == 1
    assert [layer.name for layer in atlas.layers] == ["first", "last"]
    assert atlas.manifest["operators_without_rule"] == ["max_unpool2d"]
    (out,) = atlas.manifest["left_out"]
    assert out["layer"] == "tokens"
    assert "(1, 4, 6)" in out["reason"]
    with pytest.raises(LayoutError, match=f"'tokens'.*{re.escape(out['reason'])}"):
        unitscope.scan(network, images, tmp_path / "other", layers=["tokens"])
    chosen = unitscope.scan(
        network, images, tmp_path / "chosen", layers=["first"]
    )  # without a warning: it lies before that operator
    assert chosen.manifest["operators_without_rule"] == []
    assert chosen.manifest["left_out"] == []
