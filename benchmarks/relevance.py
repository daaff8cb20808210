"""Effects of all units on the predicted class beside zennit-crp's relevance of the same layers on the same images, in turn, in one run.

    python benchmarks/relevance.py [--images N] [--repeats N]

On EfficientNet-Lite0. `measure_effects` starts from a scan's atlas, with its start-up, and goes through the images twice: it needs the units'
means. zennit-crp goes through them once, forward and back, with the rules that its documentation takes, on the convolutions and the linear
layer that the atlas's layers are. Decoding counts for both.
"""

import argparse
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from bench import HERE, SAMPLE, machine
from torch import Tensor, nn
from torch.nn.functional import one_hot
from verbs import interval, link_images
from ways import BATCH, Files, transform_of

import unitscope
from unitscope.atlas import Atlas
from unitscope.demonstration import write_demo_images
from unitscope.effects import measure_effects

sys.path.append(str(HERE.parent / ".bench"))

MODEL = "demo:efficientnet-lite0"


def effects(folder: Path, atlas: Atlas) -> float:
    """Seconds that unitscope takes for the table `effects`."""
    network = unitscope.load_network(MODEL)
    started = perf_counter()
    measure_effects(Atlas(atlas.folder), network, by="prediction")
    return perf_counter() - started


def relevance(folder: Path, atlas: Atlas) -> float:
    """Seconds that zennit-crp takes for the mean relevance of every channel to every predicted class."""
    from crp.attribution import CondAttribution
    from crp.concepts import ChannelConcept
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonPlusFlat

    network = unitscope.load_network(MODEL)
    assert network.preprocessing is not None
    modules = [name for name, module in network.module.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    files = Files(sorted(folder.iterdir()), transform_of(network.preprocessing))
    started = perf_counter()
    attribution, concept = CondAttribution(network.module.eval()), ChannelConcept()
    sums: dict[tuple[str, int], np.ndarray] = {}
    with redirect_stdout(sys.stderr):
        for images, _ in torch.utils.data.DataLoader(files, batch_size=BATCH, num_workers=0):
            composite, conditions = EpsilonPlusFlat([SequentialMergeBatchNorm()]), [{}] * len(images)
            found = attribution(images.requires_grad_(), conditions, composite, record_layer=modules, init_rel=of_predicted)
            predicted = found.prediction.argmax(1).tolist()
            for module in modules:
                of_images = concept.attribute(found.relevances[module], abs_norm=False).cpu().numpy()
                for class_, of_image in zip(predicted, of_images, strict=True):
                    sums[module, class_] = sums.get((module, class_), 0) + of_image
    return perf_counter() - started


def of_predicted(scores: Tensor) -> Tensor:
    """The score of the class that is predicted; zero elsewhere."""
    return scores * one_hot(scores.argmax(1), scores.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    source = SAMPLE if SAMPLE.is_dir() else write_demo_images(Path("demo/images"))
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = link_images(source, Path(temporary, "images"), arguments.images)
        atlas = unitscope.scan(unitscope.load_network(MODEL), folder, Path(temporary, "atlas"))
        for _ in range(arguments.repeats):
            ours.append(effects(folder, atlas))
            theirs.append(relevance(folder, atlas))
            print(f"  effects {ours[-1]:.1f} s, zennit-crp {theirs[-1]:.1f} s", file=sys.stderr, flush=True)
    ratios = [crp / own for crp, own in zip(theirs, ours, strict=True)]
    print(f"{machine()}; {MODEL}, {arguments.images} images, {arguments.repeats} runs in turn.")
    print(f"effects {interval(ours)} s, zennit-crp {interval(theirs)} s: {interval(ratios)} times as long")


if __name__ == "__main__":
    main()
