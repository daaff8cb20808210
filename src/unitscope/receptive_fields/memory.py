"""What lies in memory: planes in the order of its bytes, whichever tensors look into it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unitscope.receptive_fields.bounds import Planes, no_planes


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """Where the elements of a tensor lie. Strides and offset count in elements."""

    storage: int
    storage_bytes: int
    element_size: int
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int

    def overlaps(self) -> bool:
        """True where two elements may lie in the same bytes."""
        extent = 1
        for step, count in sorted((s, n) for s, n in zip(self.strides, self.shape, strict=True) if n > 1):
            if step < extent:
                return True
            extent += (count - 1) * step
        return False

    def fills_memory(self) -> bool:
        return self.shape.numel() * self.element_size == self.storage_bytes and not self.overlaps()


def memory_layout(tensor: Tensor) -> MemoryLayout:
    """How the tensor lies in memory now; `x.data = y` changes it without an operator."""
    storage = tensor.untyped_storage()
    return MemoryLayout(
        storage._cdata, storage.nbytes(), tensor.element_size(), tensor.shape, tensor.stride(), int(tensor.storage_offset())
    )


class Contents:
    """What one storage holds: what is known of the tensors in it since the last write and, once that is needed, of its bytes.

    Tensors of several types may look into a storage, as the real part of complex numbers does. So its planes have an element for
    as many bytes as the smallest of their elements have; a larger one sees what all of its parts see.
    """

    def __init__(self, storage: Any) -> None:
        self.writes = 0
        self._storage = storage  # kept alive, or its number would be given to another
        self._known: list[tuple[MemoryLayout, Planes]] = []
        self._planes: Planes | None = None
        self._part_bytes = 0

    def add(self, layout: MemoryLayout, planes: Planes) -> None:
        """Note what a tensor in this storage sees."""
        self._known.append((layout, planes))

    def write(self, layout: MemoryLayout, planes: Planes) -> None:
        """Note that an operation wrote into a tensor. Where that is all of the memory, nothing else is left there."""
        if self._planes is not None or not layout.fills_memory():
            self._lay(layout, planes)
        self.writes += 1
        self._known = []

    def read(self, layout: MemoryLayout) -> Planes:
        """What a tensor of that layout sees; dimensions along which nothing varies get stride 0."""
        return [_flattened(_parts_united(p, layout, self._part_bytes)).expand(layout.shape) for p in self._laid_for(layout)]

    def _lay(self, layout: MemoryLayout, planes: Planes) -> None:
        overlapping = layout.overlaps()
        for memory, plane in zip(self._laid_for(layout), planes, strict=True):
            parts = _parts(memory, layout, self._part_bytes)
            values = plane[..., None].expand(parts.shape)
            if overlapping:
                index = _parts(torch.arange(len(memory)), layout, self._part_bytes)
                memory.scatter_reduce_(0, index.flatten(), values.flatten(), "amax")
            else:
                parts.copy_(values)

    def _laid_for(self, layout: MemoryLayout) -> Planes:
        """Planes in the order of memory, with parts no larger than that layout's elements, as long as the storage is now."""
        if self._planes is None:
            self._part_bytes = layout.element_size
            self._planes = [p.clone() for p in no_planes(torch.Size([0]))]
            for known in self._known:
                self._lay(*known)
        if self._part_bytes > layout.element_size:
            self._planes = [p.repeat_interleave(self._part_bytes // layout.element_size) for p in self._planes]
            self._part_bytes = layout.element_size
        missing = -(-layout.storage_bytes // self._part_bytes) - len(self._planes[0])
        if missing > 0:
            self._planes = [torch.cat(pair) for pair in zip(self._planes, no_planes(torch.Size([missing])), strict=True)]
        return self._planes


def _parts(memory: Tensor, layout: MemoryLayout, part_bytes: int) -> Tensor:
    """The elements of a tensor of that layout, each in its parts along one more dimension."""
    parts = layout.element_size // part_bytes
    return memory.as_strided((*layout.shape, parts), (*(s * parts for s in layout.strides), 1), layout.offset * parts)


def _parts_united(memory: Tensor, layout: MemoryLayout, part_bytes: int) -> Tensor:
    parts = _parts(memory, layout, part_bytes)
    return parts[..., 0] if parts.shape[-1] == 1 else parts.amax(-1)


def _flattened(plane: Tensor) -> Tensor:
    """The plane, copied, with length 1 in the dimensions along which it doesn't vary."""
    for dim in range(plane.dim()):
        first = plane.narrow(dim, 0, min(1, plane.shape[dim]))
        if plane.shape[dim] > 1 and torch.equal(first.expand(plane.shape), plane):
            plane = first
    return plane.clone()
