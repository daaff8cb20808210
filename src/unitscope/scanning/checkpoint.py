"""What a scan has so far, on the disk, so that one that was stopped or killed can be resumed.

It lies in a folder beside the atlas that is to be written: `plan.json` says what is scanned, `checkpoint` holds the merged partial results, whole or not at
all, and `lock` belongs to the scan that runs. The folder goes when the atlas is there.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unitscope.atlas.schema import MANIFEST
from unitscope.errors import AtlasError
from unitscope.files import atomic_write
from unitscope.images import contradictions
from unitscope.records import ImageRecord
from unitscope.scanning.partial_results import PartialResult
from unitscope.scanning.running_statistics import Extremes, ImageGroup, Moments, RunningStatistics
from unitscope.scanning.sample import Sample
from unitscope.scanning.tuning import Tuning
from unitscope.topk import TopK

MAX_TIME_SHARE = 0.01
"""Of a scan, for saving."""
STAGES = ("checkpoint", "screened")
LENGTH_BYTES, DIGEST_BYTES, READ_BYTES = 8, 32, 1 << 20


def checkpoint_folder(out: Path) -> Path:
    """Where an unfinished scan to that folder keeps what it has."""
    return out.parent / f".{out.name}.scan"


def clear_finished(out: Path) -> None:
    """Remove the checkpoint of a scan that was killed after its atlas was written."""
    folder = checkpoint_folder(out)
    if (out / MANIFEST).exists() and folder.exists():
        with suppress(Timeout), FileLock(folder / "lock", timeout=0):
            _remove_folder(folder)


class Checkpoint:
    """The folder of one scan, locked for as long as `locked` lasts."""

    def __init__(
        self,
        out: Path,
        plan: Mapping[str, Any],
        save_every_s: float = 60,
        stage: str = "checkpoint",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.folder, self._path = checkpoint_folder(out), checkpoint_folder(out) / stage
        self._out = out
        self._plan = json.loads(json.dumps(plan, default=str))
        self._save_every_s, self._clock = save_every_s, clock
        self._next_save = clock() + save_every_s

    def for_stage(self, stage: str) -> "Checkpoint":
        """One more in the same folder, for another stage of the scan."""
        return Checkpoint(self._out, self._plan, self._save_every_s, stage, self._clock)

    @contextmanager
    def locked(self) -> Iterator["Checkpoint"]:
        """The folder belongs to this scan for as long as the block lasts; nothing of it stays but what a later scan can resume.

        Raises `AtlasError` where another scan has locked it, or where it belongs to a scan of another plan.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise AtlasError(f"another scan is writing to {str(self._out)!r} right now; give another --out") from error
        try:
            self._check_plan()
            yield self
        finally:
            if not self._has_stages():
                self.remove()
            lock.release()

    def load(self) -> PartialResult | None:
        """What an earlier scan of the same plan had; None where there was none.

        Raises `AtlasError` where it is damaged.
        """
        if not self._path.exists():
            return None
        try:
            with self._path.open("rb") as file:
                _check_digest(file)
                return _read_result(file)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise AtlasError(
                f"the checkpoint {str(self._path)!r} is damaged ({error}); remove the folder {str(self.folder)!r} to scan from the beginning"
            ) from error

    def offer(self, result: PartialResult) -> None:
        """Save the result if the last time is a minute ago, and long enough for saving to cost less than a hundredth."""
        if self._clock() >= self._next_save:
            started = self._clock()
            self.save(result)
            saving_s = self._clock() - started
            self._next_save = self._clock() + max(self._save_every_s, saving_s / MAX_TIME_SHARE if self._save_every_s else 0)

    def save(self, result: PartialResult) -> None:
        """Write the result. It is left as it is."""
        self._write(self.folder / "plan.json", [json.dumps(self._plan, indent=2, sort_keys=True).encode()])
        self._write(self._path, _with_digest(_chunks(result)))

    def remove(self) -> None:
        """Remove the folder."""
        _remove_folder(self.folder)

    def _has_stages(self) -> bool:
        """True where there is something to resume."""
        return any((self.folder / stage).exists() for stage in STAGES)

    def _check_plan(self) -> None:
        path = self.folder / "plan.json"
        if not self._has_stages():
            return
        with suppress(ValueError, TypeError, OSError):
            stored_plan = _agreed_where_unknown(dict(json.loads(path.read_text(encoding="utf-8"))), self._plan)
            differences = [
                _difference(name, stored_plan.get(name), value)
                for name, value in self._plan.items()
                if stored_plan.get(name) != value
            ]
            if not differences:
                return
            raise AtlasError(
                f"an unfinished scan to {str(self._out)!r} was of another plan: {'; '.join(differences)}. Start that one again, give another "
                f"--out, or remove the folder {str(self.folder)!r}"
            )
        raise AtlasError(f"{str(path)!r} is damaged; remove the folder {str(self.folder)!r} to scan from the beginning")

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        with atomic_write(path, f"the checkpoint {str(path)!r}") as aside, aside.open("wb") as file:
            file.writelines(chunks)


def _remove_folder(folder: Path) -> None:
    for stage in STAGES:  # first, or a kill in the middle may leave one without its plan
        with suppress(OSError):
            (folder / stage).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _agreed_where_unknown(stored: dict[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """A stored plan, with the fingerprint and the labels of the present one where the two don't contradict each other: an image that
    couldn't be read then, or can't be now, proves nothing."""
    stored_images, images = (dict(of_plan.get("images") or {}) for of_plan in (stored, plan))
    shared_names = [name for name in ("fingerprint", "labels") if name in stored_images and name in images]
    agreed = {name: images[name] for name in shared_names if not contradictions(stored_images[name], images[name])}
    return stored | {"images": stored_images | agreed} if agreed else stored


def _difference(name: str, stored: Any, present: Any) -> str:
    """What differs between two plans under one name, as an error says it."""
    if name == "images.fingerprint" and stored and present:
        images = contradictions(stored, present)
        return f"the images are others: image {', '.join(images[:3])} {'holds' if len(images) == 1 else 'hold'} other content than then"
    if name == "images.labels" and stored and present:
        image = contradictions(stored, present)[0]
        return f"labels are others: that of image {image} was {stored[image]!r} and is {present[image]!r}"
    if isinstance(stored, dict) and isinstance(present, dict):
        differing = [key for key in {**stored, **present} if stored.get(key) != present.get(key)]
        return ", ".join(_difference(f"{name}.{key}", stored.get(key), present.get(key)) for key in differing)
    return f"{name} was {_shortened_json(stored)} and is {_shortened_json(present)}"


def _shortened_json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:56]} …"


# ── a partial result as bytes ───────────────────────────────────────────────────────────────────────────────────────
# The length of what follows, tensors and text, the rows of the tuning one by one since they may fill hundreds of megabytes, a digest.


def _with_digest(chunks: Iterable[bytes]) -> Iterator[bytes]:
    digest = sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    yield digest.digest()


def _check_digest(file: BinaryIO) -> None:
    """Raises `ValueError` where the bytes aren't those that were written; else the file is at its start."""
    remaining, digest = file.seek(0, os.SEEK_END) - DIGEST_BYTES, sha256()
    if remaining < 0:
        raise ValueError("it is too short")
    file.seek(0)
    while remaining:
        chunk = file.read(min(remaining, READ_BYTES))
        digest.update(chunk)
        remaining -= len(chunk)
    if file.read() != digest.digest():
        raise ValueError("its bytes have changed")
    file.seek(0)


def _chunks(result: PartialResult) -> Iterator[bytes]:
    content = save(_packed(result))
    yield len(content).to_bytes(LENGTH_BYTES, "big")
    yield content
    for key in result.tuning.images:
        yield result.tuning.sums[key].numpy().tobytes()
        yield from (row.numpy().tobytes() for row in result.tuning.missing.get(key, ()))


def _read_result(file: BinaryIO) -> PartialResult:
    tensors = load(file.read(int.from_bytes(file.read(LENGTH_BYTES), "big")))
    texts = json.loads(bytes(tensors["texts"].numpy()).decode())
    result = _unpacked(tensors, texts)
    unit_count, tuning = len(result.top_k.tied), result.tuning
    for label, half, images, missing_units in texts["tuning"]:
        key = label, ImageGroup(half)
        tuning.images[key] = images
        tuning.sums[key] = _read_row(file, unit_count, torch.int64)
        if missing_units:
            tuning.missing[key] = _read_row(file, missing_units, torch.int32), _read_row(file, missing_units, torch.int64)
    return result


def _read_row(file: BinaryIO, length: int, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(file.read(length * dtype.itemsize)), dtype=dtype)


def _packed(result: PartialResult) -> dict[str, Tensor]:
    groups: dict[str, Any] = {
        "top_k": result.top_k,
        "troughs": result.troughs,
        "sample": result.sample,
        "extremes": result.statistics.extremes,
    }
    groups |= {f"block {level} {number}": block for (level, number), block in result.statistics.blocks.items()}
    fields = {f"{group}/{name}": getattr(of, name) for group, of in groups.items() if of for name in of.__slots__}
    tensors = {path: value.contiguous() for path, value in fields.items() if isinstance(value, Tensor)}
    texts = {
        "image_records": [asdict(record) for record in result.mentioned_records().values()],
        "labels": result.labels,
        "skipped": result.skipped,
        "read": result.read,
        "contents": result.contents,
        "images": result.statistics.images,
        "sample_size": result.sample.size,
        "tuning": [(*key, images, len(result.tuning.missing.get(key, ((),))[0])) for key, images in result.tuning.images.items()],
        "tuning_is_full": result.tuning.is_full,
    }
    return tensors | {"texts": _as_tensor(json.dumps(texts))}


def _unpacked(tensors: Mapping[str, Tensor], texts: Mapping[str, Any]) -> PartialResult:
    """All but the rows of the tuning."""
    groups: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        group, _, name = path.partition("/")
        groups.setdefault(group, {})[name] = tensor
    blocks = {
        (int(level), int(number)): Moments(**columns)
        for group, columns in groups.items()
        if group.startswith("block")
        for _, level, number in [group.split()]
    }
    extremes = Extremes(**groups["extremes"]) if "extremes" in groups else None
    return PartialResult(
        TopK(**groups["top_k"]),
        RunningStatistics(blocks, texts["images"], extremes),
        Sample(**groups["sample"], size=texts["sample_size"]),
        TopK(**groups["troughs"]),
        {record["image"]: ImageRecord(**record) for record in texts["image_records"]},
        Counter(texts["labels"]),
        Tuning(is_full=texts["tuning_is_full"]),
        {int(image): tuple(reason) for image, reason in texts["skipped"].items()},
        texts["read"],
        texts["contents"],
    )


def _as_tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
