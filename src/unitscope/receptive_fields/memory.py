"""What lies in memory: the dependency bounds of a storage's elements, whichever tensors look into it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import DependencyBounds, no_dependencies, without_copies
from unitscope.receptive_fields.operators import storage_id


@dataclass(frozen=True, slots=True)
class StorageView:
    """Where the elements of a tensor lie in its storage. Strides and offset count in elements."""

    storage_id: int
    storage_bytes: int
    element_bytes: int
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int

    def overlaps_itself(self) -> bool:
        """True where two elements may lie in the same bytes."""
        extent = 1
        for stride, length in sorted((s, n) for s, n in zip(self.strides, self.shape, strict=True) if n > 1):
            if stride < extent:
                return True
            extent += (length - 1) * stride
        return False

    def fills_storage(self) -> bool:
        """True where the elements are all that the storage holds."""
        return self.shape.numel() * self.element_bytes == self.storage_bytes and not self.overlaps_itself()


def storage_view(tensor: Tensor) -> StorageView:
    """How the tensor lies in memory now; `x.data = y` changes it without an operator."""
    return StorageView(
        storage_id(tensor),
        tensor.untyped_storage().nbytes(),
        tensor.element_size(),
        tensor.shape,
        tensor.stride(),
        int(tensor.storage_offset()),
    )


class StorageBounds:
    """The bounds of what one storage holds: those of the tensors in it since the last write and, once that is needed, of its bytes.

    Tensors of several types may look into a storage, as the real part of complex numbers does. So there are bounds for every part of
    as many bytes as the smallest of their elements have; a larger element sees what all of its parts see.
    """

    def __init__(self, storage: Any) -> None:
        self.writes = 0
        self._storage = storage  # kept alive, or its number would be given to another
        self._since_write: list[tuple[StorageView, DependencyBounds]] = []
        self._parts: DependencyBounds | None = None
        self._part_bytes = 0

    def add(self, view: StorageView, bounds: DependencyBounds) -> None:
        """Note what a tensor in this storage sees."""
        self._since_write.append((view, bounds))

    def write(self, view: StorageView, bounds: DependencyBounds) -> None:
        """Note that an operator wrote into a tensor. Where that is all of the storage, nothing else is left there."""
        if self._parts is not None or not view.fills_storage():
            self._write_parts(view, bounds)
        self.writes += 1
        self._since_write = []

    def read(self, view: StorageView) -> DependencyBounds:
        """What a tensor of that view sees; dimensions along which nothing varies get stride 0."""
        parts = self._parts_for(view)
        return parts.map(lambda flat: without_copies(_unite_parts(flat, view, self._part_bytes)).clone().expand(view.shape))

    def _write_parts(self, view: StorageView, bounds: DependencyBounds) -> None:
        overlaps = view.overlaps_itself()
        for flat, tensor in zip(self._parts_for(view).tensors(), bounds.tensors(), strict=True):
            parts = _viewed_parts(flat, view, self._part_bytes)
            values = tensor[..., None].expand(parts.shape)
            if overlaps:
                indices = _viewed_parts(torch.arange(len(flat)), view, self._part_bytes)
                flat.scatter_reduce_(0, indices.flatten(), values.flatten(), "amax")
            else:
                parts.copy_(values)

    def _parts_for(self, view: StorageView) -> DependencyBounds:
        """The bounds of the storage, flat, with parts no larger than that view's elements, as long as the storage is now."""
        if self._parts is None:
            self._part_bytes = view.element_bytes
            self._parts = no_dependencies([0]).map(torch.clone)
            for earlier_view, bounds in self._since_write:
                self._write_parts(earlier_view, bounds)
        if self._part_bytes > view.element_bytes:
            ratio = self._part_bytes // view.element_bytes
            self._parts = self._parts.map(lambda flat: flat.repeat_interleave(ratio))
            self._part_bytes = view.element_bytes
        missing = -(-view.storage_bytes // self._part_bytes) - len(self._parts.unit_number)
        if missing > 0:
            self._parts = self._parts.map(lambda *flat: torch.cat(flat), no_dependencies([missing]))
        return self._parts


def _viewed_parts(flat: Tensor, view: StorageView, part_bytes: int) -> Tensor:
    """The elements of a tensor of that view, each in its parts along one more dimension."""
    parts = view.element_bytes // part_bytes
    return flat.as_strided((*view.shape, parts), (*(s * parts for s in view.strides), 1), view.offset * parts)


def _unite_parts(flat: Tensor, view: StorageView, part_bytes: int) -> Tensor:
    parts = _viewed_parts(flat, view, part_bytes)
    return parts[..., 0] if parts.shape[-1] == 1 else parts.amax(-1)
