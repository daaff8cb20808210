"""Effects: what units do to a class, against closed forms, autograd and real knock-outs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import write_photographs
from torch import Tensor, nn

import unitscope
from unitscope.atlas import Atlas
from unitscope.effects import find_circuits, knock_out, measure_effects
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
    from PIL import Image

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
    rows = knock_out(atlas, layer, groups, network, replacement=replacement).to_pylist()
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


def test_more_knock_outs_stand_beside_the_others(atlas: Atlas) -> None:
    network = classifier()
    measure_effects(atlas, network)
    knock_out(atlas, "1", [0], network)
    first = atlas.table("knockouts")
    knock_out(atlas, "4", [1], network, replacement="zero")
    knock_out(atlas, "1", [0], network)  # again: in place of the first
    table = atlas.table("knockouts")
    assert len(table) == 2 * len(first)
    knock_out(atlas, "1", [2], network, by="prediction")  # another question: the table is about that alone
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
    from PIL import Image

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
