"""Models that join pictures and texts: what is alike lies near, whichever it is."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unitscope.errors import NetworkError
from unitscope.networks import build_with_factory, is_factory, network_from_module, open_clip_model
from unitscope.records import Preprocessing

TEXTS_AT_ONCE = 256


@runtime_checkable
class TextEmbedder(Protocol):
    """What gives vectors of pictures and of texts in one space. `name` stands wherever a name by it does, `weights_hash` tells it from the
    scanned network, `size` is the height and the width in pixels of the pictures that it takes."""

    @property
    def name(self) -> str: ...

    @property
    def weights_hash(self) -> str: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def embed_images(self, pictures: UInt8[Tensor, "image y x colour"]) -> Float[Tensor, "image number"]: ...

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "text number"]: ...


@dataclass(frozen=True, slots=True)
class OpenClipEmbedder:
    """A model of open_clip (Radford et al. 2021)."""

    name: str
    weights_hash: str
    model: Any
    tokenizer: Any
    preprocessing: Preprocessing

    @classmethod
    def of(cls, name: str) -> "OpenClipEmbedder":
        """Raises `NetworkError` where the package, the model or its weights are missing."""
        model, preprocessing = open_clip_model(name)
        if preprocessing is None:
            raise NetworkError(f"{name!r} can't be an embedder: how it takes pictures isn't known here")
        model.eval()
        tokenizer = importlib.import_module("open_clip").get_tokenizer(name.partition(":")[2].partition("/")[0])
        return cls(name, network_from_module(model.visual).hash(), model, tokenizer, preprocessing)

    @property
    def size(self) -> tuple[int, int]:
        return self.preprocessing.crop

    def embed_images(self, pictures: UInt8[Tensor, "image y x colour"]) -> Float[Tensor, "image number"]:
        mean, std = (torch.tensor(values) for values in (self.preprocessing.mean, self.preprocessing.std))
        with torch.no_grad():
            vectors: Tensor = self.model.encode_image(((pictures / 255 - mean) / std).permute(0, 3, 1, 2))
        return vectors.float()

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "text number"]:
        with torch.no_grad():
            pieces = [
                self.model.encode_text(self.tokenizer(list(texts[start : start + TEXTS_AT_ONCE])))
                for start in range(0, len(texts), TEXTS_AT_ONCE)
            ]
        return torch.cat(pieces).float()


def open_text_embedder(embedder: "TextEmbedder | str") -> TextEmbedder:
    """The embedder of `open_clip:NAME/PRETRAINED`, or of `PATH.py:FACTORY` where the function gives one that joins pictures and texts.

    Raises `NetworkError` for others.
    """
    if not isinstance(embedder, str):
        return embedder
    if embedder.startswith("open_clip:"):
        return OpenClipEmbedder.of(embedder)
    built = build_with_factory(embedder) if is_factory(embedder) else None
    if not isinstance(built, TextEmbedder):
        raise NetworkError(
            f"{embedder!r} doesn't join images and texts; give open_clip:NAME/PRETRAINED, or PATH.py:FACTORY of a TextEmbedder"
        )
    return built
