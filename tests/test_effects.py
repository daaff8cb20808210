"""Effects: what units do to a class, against closed forms, autograd and real knock-outs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import write_photographs
from PIL import Image
from torch import Tensor, nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.atlas.explanations import draw_explanation
from unitscope.effects import find_circuits, knock_out, measure_effects, progress
from unitscope.effects.explaining import open_explainer
from unitscope.errors import AtlasError, ImagesWarning, UnitscopeError
from unitscope.records import Preprocessing

AS_IT_IS = Preprocessing(None, (16, 16), (0.5,) * 3, (0.25,) * 3)
CLASSES = ("cat", "dog", "fish")


def classifier() -> nn.Sequential:
    """Two convolutions, pooling and a linear layer: of the second one's units only linear operations follow."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, len(CLASSES)),
    ).eval()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), 24, (20, 16), CLASSES)


@pytest.fixture
def atlas(photographs: Path, tmp_path: Path) -> Atlas:
    return unitscope.scan(classifier(), photographs, tmp_path / "atlas", preprocess=AS_IT_IS, classes=list(CLASSES), sample=24)


def inputs(atlas: Atlas) -> tuple[Tensor, list[int]]:
    """All images as the network gets them, and the classes that their labels are, read without the package's loaders."""
    files = sorted(Path(atlas.manifest["images"]["folder"]).rglob("*.png"))
    pixels = [np.asarray(Image.open(file).convert("RGB").crop((0, 2, 16, 18)), dtype=np.float32) / 255 for file in files]
    return (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) - 0.5) / 0.25, [
        CLASSES.index(file.parent.name) for file in files
    ]


def outputs_of(network: nn.Sequential, images: Tensor) -> dict[str, Tensor]:
    """What comes out of every module."""
    maps, outputs = images, {}
    for name, module in network.named_children():
        maps = module(maps.clone())
        outputs[name] = maps
    return outputs


def test_effects_are_deviation_times_gradient(atlas: Atlas) -> None:
    network, (images, classes) = classifier(), inputs(atlas)
    table = measure_effects(atlas, network)
    assert set(table["layer"].to_pylist()) == {"1", "4", "7"}
    assert atlas.table("predictions")["images"].to_numpy().sum() >= len(images)
    for layer in ("1", "4", "7"):
        outputs = outputs_of(network, images)
        outputs[layer].retain_grad()
        outputs["7"][range(len(classes)), classes].sum().backward()
        passed_on, gradient = outputs[layer].detach(), outputs[layer].grad
        assert gradient is not None
        deviation = passed_on - passed_on.mean(0)
        effects = (deviation * gradient).flatten(2).sum(2) if passed_on.dim() == 4 else deviation * gradient
        rows = table.filter(np.array(table["layer"].to_pylist()) == layer)
        for row in rows.to_pylist():
            of_class = effects[[number for number, known in enumerate(classes) if known == row["class"]], row["unit"]]
            assert row["images"] == len(of_class)
            assert row["effect"] == pytest.approx(float(of_class.mean()), abs=1e-5)
            assert row["standard_error"] == pytest.approx(float(of_class.std() / len(of_class) ** 0.5), abs=1e-5)
        shares = {row["class"]: 0.0 for row in rows.to_pylist()}
        for row in rows.to_pylist():
            shares[row["class"]] += row["share"]
        assert all(share == pytest.approx(1, abs=1e-5) or layer == "7" for share in shares.values())


def without(network: nn.Sequential, images: Tensor, layer: str, units: list[int], replacement: str) -> Tensor:
    """The scores of one pass in which a hook takes the units' place."""

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, units] = 0 if replacement == "zero" else means[units]
        return output

    means = outputs_of(network, images)[layer].detach().mean(0)
    handle = network.get_submodule(layer).register_forward_hook(hook)
    try:
        return network(images).detach()
    finally:
        handle.remove()


@pytest.mark.parametrize("replacement", ["mean", "zero"])
@pytest.mark.parametrize(("layer", "groups"), [("1", [[0], [3], [0, 3, 5]]), ("4", [[1], [2, 4]]), ("7", [[0, 1]])])
def test_knock_outs_are_those_of_a_plain_hook(atlas: Atlas, layer: str, groups: list[list[int]], replacement: str) -> None:
    network, (images, classes) = classifier(), inputs(atlas)
    measure_effects(atlas, network)
    rows = knock_out(atlas, {layer: groups}, network, replacement=replacement).to_pylist()
    before = network(images).detach()
    for group in groups:
        after = without(network, images, layer, group, replacement)
        for class_ in range(len(CLASSES)):
            of_class = [number for number, known in enumerate(classes) if known == class_]
            row = next(r for r in rows if r["units"] == " ".join(map(str, group)) and r["class"] == class_)
            drop = (before - after)[of_class, class_]
            assert row["images"] == len(of_class)
            assert row["logit_drop"] == pytest.approx(float(drop.mean()), abs=1e-5)
            assert row["standard_error"] == pytest.approx(float(drop.std() / len(of_class) ** 0.5), abs=1e-5)
            fallen = (before.softmax(1) - after.softmax(1))[of_class, class_]
            assert row["probability_drop"] == pytest.approx(float(fallen.mean()), abs=1e-5)
            assert row["right_before"] == pytest.approx(float((before.argmax(1)[of_class] == class_).double().mean()))
            assert row["right_after"] == pytest.approx(float((after.argmax(1)[of_class] == class_).double().mean()))


def test_batched_knock_outs_are_bit_for_bit_those_of_as_large_a_batch(atlas: Atlas) -> None:
    """Eight images are loaded together, and four groups of units make copies of them: 32 images a pass, here by hand."""
    network, (images, classes) = classifier(), inputs(atlas)
    measure_effects(atlas, network)
    groups = [[0], [1], [2], [3]]
    rows = knock_out(atlas, {"4": groups}, network).to_pylist()
    maps = torch.tensor(atlas.table("mean_maps", "4")["map"].to_pylist()).reshape(5, 6, 6)

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        output = output.clone()
        for copy, group in enumerate(groups):
            output[copy * 8 : copy * 8 + 8, group] = maps[group]
        return output

    drops: dict[tuple[int, int], list[float]] = {}
    for start in range(0, len(images), 8):
        batch = images[start : start + 8]
        with torch.no_grad():
            before = network(batch)
            handle = network[4].register_forward_hook(hook)
            after = network(torch.cat([batch] * len(groups)))
            handle.remove()
        for copy in range(len(groups)):
            for image in range(8):
                class_ = classes[start + image]
                drop = before[image, class_] - after[copy * 8 + image, class_]
                drops.setdefault((copy, class_), []).append(float(drop))
    for row in rows:
        assert row["logit_drop"] == np.mean(drops[int(row["units"]), row["class"]])


def test_more_knock_outs_stand_beside_the_others(atlas: Atlas) -> None:
    network = classifier()
    measure_effects(atlas, network)
    knock_out(atlas, {"1": [0]}, network)
    first = atlas.table("knockouts")
    knock_out(atlas, {"4": [1]}, network, replacement="zero")
    knock_out(atlas, {"1": [0]}, network)  # again: in place of the first
    table = atlas.table("knockouts")
    assert len(table) == 2 * len(first)
    knock_out(atlas, {"1": [2]}, network, by="prediction")  # another question: the table is about that alone
    assert set(atlas.table("knockouts")["units"].to_pylist()) == {"2"}


def test_how_far_first_order_is_believed(atlas: Atlas) -> None:
    """Behind the second rectifier everything is linear: first order is the truth. Before the pooling it is not."""
    measure_effects(atlas, classifier(), verify=2)
    rows = {row["layer"]: row for row in atlas.table("effect_layers").to_pylist()}
    assert {layer: row["exact"] for layer, row in rows.items()} == {"1": False, "4": True, "7": True}
    assert rows["4"]["r"] == pytest.approx(1, abs=1e-6)
    assert rows["4"]["slope"] == pytest.approx(1, abs=1e-4)
    assert rows["4"]["knockouts"] == 4 * 24
    assert 0 < rows["1"]["r"] < 1 - 1e-6
    knockouts = atlas.table("knockouts").to_pylist()
    assert {row["class"] for row in knockouts} == {0, 1, 2}
    assert len(knockouts) == 2 * len(CLASSES)
    assert "7" not in {row["layer"] for row in knockouts}, "a class's own unit says nothing"


class Twice(nn.Module):
    """A hand-made network of one colour: a convolution that is used twice, with a residual sum; all weights are known."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.mix = nn.Conv2d(2, 2, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
            self.first.bias.copy_(torch.tensor([1.0, 0.0]))
            self.mix.weight.copy_(torch.tensor([[2.0, -1.0], [0.5, 3.0]]).reshape(2, 2, 1, 1))
            self.head.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        skip = self.relu(self.first(images))
        maps = self.mix(self.relu(self.mix(skip)))
        maps += skip
        return self.head(self.relu(maps).mean((2, 3)))


def test_circuits_of_a_hand_made_network(tmp_path: Path) -> None:
    """Every image is one grey, so every cell is that number: the sums are worked out by hand."""
    folder = tmp_path / "greys"
    folder.mkdir()
    for number, grey in enumerate((51, 102, 204)):
        Image.new("L", (4, 4), grey).save(folder / f"{number}.png")
    network = Twice().eval()
    atlas = unitscope.scan(
        network, folder, tmp_path / "atlas", preprocess=Preprocessing(None, (4, 4), (0.0,), (1.0,), channels=1)
    )
    table = find_circuits(atlas, network)
    found = {
        (row["layer"], row["unit"], row["source_layer"], row["source_unit"]): row["contribution"] for row in table.to_pylist()
    }
    greys = np.array([51, 102, 204]) / 255
    skip = np.stack([greys + 1, 2 * greys])
    between = np.maximum(np.array([[2, -1], [0.5, 3]]) @ skip, 0)
    assert {layer for layer, *_ in found} == {"relu#2", "mix#2", "relu#3", "head"}
    for unit, weights in enumerate(((2, -1), (0.5, 3))):
        for source, weight in enumerate(weights):
            assert found["relu#2", unit, "relu", source] == pytest.approx(weight * skip[source].mean(), rel=1e-5)
            assert found["mix#2", unit, "relu#2", source] == pytest.approx(weight * between[source].mean(), rel=1e-5)
        assert found["relu#3", unit, "relu", unit] == pytest.approx(skip[unit].mean(), rel=1e-5), "the way past the block"
        second = np.array([[2, -1], [0.5, 3]])[unit] @ between
        assert found["relu#3", unit, "mix#2", unit] == pytest.approx(second.mean(), rel=1e-5)
    assert ("relu#3", 0, "relu#2", 0) not in found, "that way passes mix#2"


def test_contributions_are_weights_times_what_is_passed_on(atlas: Atlas) -> None:
    """Between the two convolutions lies a pooling: the gradient is the weight at the highest cell of each window."""
    network = classifier()
    table = find_circuits(atlas, network, layers=["7"])
    weight = network[7].weight.detach()
    images, _ = inputs(atlas)
    passed_on = outputs_of(network, images)["6"].detach()
    scores = network(images).detach()
    for row in table.to_pylist():
        nine = scores[:, row["unit"]].argsort(descending=True)[:9]
        expected = float((weight[row["unit"], row["source_unit"]] * passed_on[nine, row["source_unit"]]).mean())
        assert row["contribution"] == pytest.approx(expected, abs=1e-5)
    for unit in range(3):
        own = [row for row in table.to_pylist() if row["unit"] == unit]
        assert sum(row["share"] for row in own) == pytest.approx(1)
        nine = scores[:, unit].argsort(descending=True)[:9]
        bias = float(network[7].bias[unit].detach())
        assert sum(row["contribution"] for row in own) + bias == pytest.approx(float(scores[nine, unit].mean()), abs=1e-5)


@pytest.mark.parametrize("pooling", [nn.AvgPool2d(2), nn.Conv2d(7, 7, 3, stride=2, groups=7), nn.Identity()])
def test_contributions_on_linear_ways_are_expanded_weights(photographs: Path, tmp_path: Path, pooling: nn.Module) -> None:
    """From one rectifier to a convolution lie two more, a norm and a pooling, none of them layers of the atlas: one linear map, that autograd's
    Jacobian holds whole."""
    torch.manual_seed(5)
    between = nn.Sequential(nn.Conv2d(6, 7, 1, bias=False), nn.BatchNorm2d(7), pooling, nn.Conv2d(7, 5, 3, padding=1, bias=False))
    with torch.no_grad():
        between[1].running_mean.uniform_(-1, 1)
        between[1].running_var.uniform_(0.5, 2)
        between[1].weight.uniform_(-1, 1)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), between, nn.Flatten(), nn.LazyLinear(2)).eval()
    network(torch.zeros(1, 3, 16, 16))
    atlas = unitscope.scan(network, photographs, tmp_path / "atlas", preprocess=AS_IT_IS, layers=["1", "2.3"])
    rows = find_circuits(atlas, network, layers=["2.3"]).to_pylist()
    images, _ = inputs(atlas)
    passed_on = network[:2](images).detach()
    expanded = torch.func.jacrev(between)(torch.zeros_like(passed_on[0])[None])[0, :, :, :, 0]  # (unit, y, x, source, y, x)
    by_unit: dict[int, list[Tensor]] = {}
    for peak in atlas.peaks("2.3").to_pylist():
        at_cell = expanded[peak["unit"], peak["y"], peak["x"]] * passed_on[peak["image"]]
        by_unit.setdefault(peak["unit"], []).append(at_cell.sum((1, 2)))
    expected = {unit: torch.stack(of_peaks).mean(0).detach() for unit, of_peaks in by_unit.items()}
    assert len(rows) == 5 * 6
    for row in rows:
        assert row["contribution"] == pytest.approx(float(expected[row["unit"]][row["source_unit"]]), abs=1e-5)


class TokensFirst(nn.Module):
    """Tokens come before images in what its module gives."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images).flatten(2).permute(2, 0, 1)


class Windows(nn.Module):
    """Four windows of every image stand one after the other where others have images."""

    def forward(self, maps: Tensor) -> Tensor:
        images, units, height, width = maps.shape
        windows = maps.reshape(images, units, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
        return windows.reshape(images * 4, units, height // 2, width // 2)


class Mixed(nn.Module):
    """A convolution behind tokens and windows, and a classifier; `mixing` says what comes before."""

    def __init__(self, mixing: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.mixing = mixing
        self.tokens, self.windows, self.first = TokensFirst(), Windows(), nn.Conv2d(3, 6, 1)
        self.second, self.relu, self.head = nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(5, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        if self.mixing == "tokens":
            maps = self.tokens(images).permute(1, 2, 0).unflatten(2, (4, 4))
        else:
            maps = self.windows(self.first(images)).unflatten(0, (len(images), 4)).sum(1)
        maps = self.relu(self.second(maps))
        return self.head(torch.relu(maps.mean((2, 3)) - 0.1))


@pytest.mark.parametrize("mixing", ["tokens", "windows"])
def test_copies_begin_at_the_layer_wherever_images_stand(photographs: Path, tmp_path: Path, mixing: str) -> None:
    network = Mixed(mixing).eval()
    atlas = unitscope.scan(network, photographs, tmp_path / "atlas", preprocess=AS_IT_IS, classes=list(CLASSES))
    measure_effects(atlas, network)
    images, classes = inputs(atlas)
    outputs: list[Tensor] = []
    handle = network.relu.register_forward_hook(lambda module, args, output: outputs.append(output.detach().clone()))
    before = network(images).detach()
    handle.remove()
    rows = knock_out(atlas, {"relu": [[1], [0, 4]]}, network).to_pylist()
    for group in ([1], [0, 4]):

        def hook(module: nn.Module, args: object, output: Tensor, group: list[int] = group) -> Tensor:
            output[:, group] = outputs[0].mean(0)[group]
            return output

        handle = network.relu.register_forward_hook(hook)
        after = network(images).detach()
        handle.remove()
        for class_ in range(len(CLASSES)):
            of_class = [number for number, known in enumerate(classes) if known == class_]
            row = next(r for r in rows if r["units"] == " ".join(map(str, group)) and r["class"] == class_)
            assert row["logit_drop"] == pytest.approx(float((before - after)[of_class, class_].mean()), abs=1e-5)


# ── one picture ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "layer", "head"),
    [
        ("torchvision:resnet18", "layer4.1.relu#2", "fc"),
        ("torchvision:alexnet", "classifier.5", "classifier.6"),
        ("demo:efficientnet-lite0", "_swish#2", "_fc"),
    ],
)
def test_what_units_pass_on_and_the_bias_make_the_score(
    photographs: Path, tmp_path: Path, model: str, layer: str, head: str
) -> None:
    preprocess = Preprocessing(None, (96, 96), (0.5,) * 3, (0.25,) * 3)
    network = unitscope.load_network(model, "none")
    atlas = unitscope.scan(network, photographs, tmp_path / "atlas", layers=[layer], preprocess=preprocess, limit=4)
    measure_effects(atlas, network, by="prediction")
    picture = Image.open(next(photographs.rglob("*.png")))
    with open_explainer(atlas, network) as explainer:
        explanation = explainer.explain(picture)
        other = explainer.explain(picture, explained="7", against="3")
    [of_layer] = explanation.layers
    bias = network.module.get_submodule(head).bias.detach()
    assert of_layer.exact
    assert of_layer.rest == pytest.approx(float(bias[explanation.explained.position]), abs=1e-5)
    assert other.layers[0].rest == pytest.approx(float(bias[7] - bias[3]), abs=1e-5)


def test_a_unit_that_is_taken_away_lowers_the_score_by_its_effect(atlas: Atlas) -> None:
    network = classifier()
    measure_effects(atlas, network)
    images, _ = inputs(atlas)
    file = sorted(Path(atlas.manifest["images"]["folder"]).rglob("*.png"))[5]
    with open_explainer(atlas, network) as explainer:
        explanation = explainer.explain(Image.open(file), "dog", "cat")
        scores = network(images[5:6]).detach()[0]
        assert [known.position for known in explanation.top] == scores.argsort(descending=True).tolist()
        assert explanation.score == pytest.approx(float(scores[1] - scores[0]), abs=1e-5)
        assert explanation.changes == []
        of_layer = {found.layer: found for found in explanation.layers}["4"]
        for unit in (*of_layer.raising, *of_layer.lowering):
            without_unit = explainer.explain(Image.open(file), "1", "0", {"4": [unit.unit]})
            assert without_unit.score == pytest.approx(explanation.score - unit.effect, abs=1e-5)
            before, after = (
                {c.position: c for c in (getattr(change, side) for change in without_unit.changes)}
                for side in ("before", "after")
            )
            assert list(before) == list(after) == scores.argsort(descending=True).tolist()
            assert [before[c].score for c in range(3)] == pytest.approx(scores.tolist(), abs=1e-5)
            assert [before[c].probability for c in range(3)] == pytest.approx(scores.softmax(0).tolist(), abs=1e-5)
            assert after[1].score - after[0].score == pytest.approx(without_unit.score, abs=1e-6)
            assert sum(change.after.probability for change in without_unit.changes) == pytest.approx(1)
            assert unit.map is not None
            assert unit.map.sum() == pytest.approx(unit.effect, abs=1e-5)
        drawn = draw_explanation(atlas, Image.open(file), explanation, "4")
        assert drawn.width > drawn.height / 4
        with pytest.raises(AtlasError, match=r"no class 'dgo' among its 3 outputs\. Close: 'dog'"):
            explainer.explain(Image.open(file), "dgo")


# ── what bad input gets ─────────────────────────────────────────────────────────────────────────────────────────────


class NoGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = classifier()

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(images)


class Maps(nn.Module):
    """Returns no class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.network = classifier()[:5]

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


@pytest.mark.parametrize(
    ("network", "classes", "options", "words"),
    [
        (NoGradients(), CLASSES, {}, "no gradient comes down through the network"),
        (Maps(), None, {"by": "prediction"}, r"no class scores of shape .* --output PATH\.py:FUNCTION"),
        (classifier(), None, {"by": "label"}, "3 of 3 labels are none of the network's 3 classes, such as 'cat', 'dog', 'fish'; its outputs have no names"),
        (classifier(), ["cat", "dog", "bird"], {}, "1 of 3 labels are none of the network's 3 classes, such as 'fish'; the outputs are 'cat'"),
        (classifier(), CLASSES, {"classes": ["a", "b"]}, "2 classes are known by name, but the network has 3 outputs"),
        (classifier(), CLASSES, {"by": "chance"}, "by is auto, label, prediction, not 'chance'"),
        (classifier(), CLASSES, {"output": lambda returned: returned.argmax(1)}, "must give a tensor of shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said(
    photographs: Path, tmp_path: Path, network: nn.Module, classes: tuple[str, ...] | None, options: dict[str, Any], words: str
) -> None:
    atlas = unitscope.scan(
        network.eval(), photographs, tmp_path / "atlas", preprocess=AS_IT_IS, classes=None if classes is None else list(classes)
    )
    with pytest.raises(UnitscopeError, match=words):
        measure_effects(atlas, network, **options)
    assert not [table.name for table in atlas.tables() if table.name in ("effects", "mean_maps", "predictions", "effect_layers")]


def test_a_stopped_run_with_other_class_names_is_not_gone_on_with(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SAVE_EVERY_S", 0)

    def stop(images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_effects(atlas, classifier(), on_images=stop)
    counted: list[int] = []
    measure_effects(atlas, classifier(), classes=["dog", "cat", "fish"], on_images=counted.append)
    assert sum(counted) == 48


def test_labels_that_are_about_something_else_leave_it_to_the_predictions(photographs: Path, tmp_path: Path) -> None:
    network = classifier()
    atlas = unitscope.scan(network, photographs, tmp_path / "atlas", preprocess=AS_IT_IS, classes=["crane", "maillot", "tench"])
    with pytest.warns(
        ImagesWarning, match="none of the 3 labels, such as 'cat', is a class of the network, so its own predictions count"
    ):
        measure_effects(atlas, network)
    assert set(atlas.table("predictions")["label_class"].to_pylist()) == {-1}


def test_an_output_of_ones_own(photographs: Path, tmp_path: Path) -> None:
    """Effects on how bright the last map is, summed: each unit's own deviation, which sums to nothing over the images."""
    network = Maps().eval()
    atlas = unitscope.scan(network, photographs, tmp_path / "atlas", preprocess=AS_IT_IS)
    table = measure_effects(atlas, network, output=lambda returned: returned.sum((1, 2, 3)))
    assert set(table["class"].to_pylist()) == {0}
    last = table.filter(np.array(table["layer"].to_pylist()) == "network.4")
    assert np.allclose(last["effect"].to_numpy(), 0, atol=1e-3)
    assert atlas.table("effect_layers").to_pylist()[-1]["exact"]


def test_a_killed_run_goes_on(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of either pass, with everything saved, it gives the same bytes as one that wasn't stopped."""
    network = classifier()
    measure_effects(atlas, network)
    expected = {
        name: (atlas.folder / "tables" / f"{name}.parquet").read_bytes() for name in ("effects", "mean_maps", "predictions")
    }
    for name in expected:
        (atlas.folder / "tables" / f"{name}.parquet").unlink()
    monkeypatch.setattr(progress, "SAVE_EVERY_S", 0)
    for stop_after in (7, 31):
        seen = 0

        def stop(images: int, stop_after: int = stop_after) -> None:
            nonlocal seen
            seen += images
            if seen >= stop_after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure_effects(Atlas(atlas.folder), network, on_images=stop)
    counted: list[int] = []
    measure_effects(Atlas(atlas.folder), network, on_images=counted.append)
    assert 0 < sum(counted) < 48, "what was done isn't done again"
    assert {name: (atlas.folder / "tables" / f"{name}.parquet").read_bytes() for name in expected} == expected
