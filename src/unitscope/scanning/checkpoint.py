"""What a scan has so far, on the disk, so that one that was stopped or killed goes on where it was.

It lies in a folder beside the atlas to be: `plan.json` says what is scanned, `checkpoint` holds the merged part, whole or not at
all, and `lock` belongs to the scan that runs. The folder goes when the atlas is there.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unitscope.atlas.schema import MANIFEST
from unitscope.errors import AtlasError
from unitscope.files import atomic_write
from unitscope.images import contradictions
from unitscope.records import ImageNote
from unitscope.scanning.partial_results import Extremes, MeanVariance, PartialResult, RunningStatistics, Sample
from unitscope.topk import TopK

EVERY_S = 60.0
MOST_SHARE = 0.01
STAGES = ("checkpoint", "screened")


def checkpoint_folder(place: Path) -> Path:
    """Where an unfinished scan to that place keeps what it has."""
    return place.parent / f".{place.name}.scan"


def clear_finished(place: Path) -> None:
    """Remove what a scan left that was killed after its atlas was in its place."""
    folder = checkpoint_folder(place)
    if (place / MANIFEST).exists() and folder.exists():
        with suppress(Timeout), FileLock(folder / "lock", timeout=0):
            _remove(folder)


class Checkpoint:
    """The folder of one scan, held for as long as `held` lasts."""

    def __init__(self, place: Path, plan: Mapping[str, Any], name: str = "checkpoint") -> None:
        self.folder, self._name = checkpoint_folder(place), name
        self._place = place
        self._plan = json.loads(json.dumps(plan, default=str))
        self._due = monotonic() + EVERY_S

    def named(self, name: str) -> "Checkpoint":
        """One more in the same folder, for another stage of the scan."""
        return Checkpoint(self._place, self._plan, name)

    @contextmanager
    def held(self) -> Iterator["Checkpoint"]:
        """The folder belongs to this scan for as long as the block lasts; nothing of it stays but what a later scan can use.

        Raises `AtlasError` where another scan holds it, or where it belongs to a scan of another plan.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise AtlasError(f"another scan is writing to {str(self._place)!r} right now; give another --out") from error
        try:
            self._check_plan()
            yield self
        finally:
            if not self._begun:
                self.drop()
            lock.release()

    def load(self) -> PartialResult | None:
        """What an earlier scan of the same plan had; None where there was none.

        Raises `AtlasError` where it is damaged.
        """
        path = self.folder / self._name
        if not path.exists():
            return None
        digest, _, content = path.read_bytes().partition(b"\n")
        try:
            if sha256(content).hexdigest().encode() != digest:
                raise ValueError("its bytes have changed")
            return _unpacked(load(content))
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise AtlasError(
                f"the checkpoint {str(path)!r} is damaged ({error}); remove the folder {str(self.folder)!r} to scan from the beginning"
            ) from error

    def offer(self, part: PartialResult) -> None:
        """Save the part if the last time is a minute ago, and long enough for saving to cost less than a hundredth."""
        if monotonic() >= self._due:
            started = monotonic()
            self.save(part)
            self._due = monotonic() + max(EVERY_S, (monotonic() - started) / MOST_SHARE if EVERY_S else 0)

    def save(self, part: PartialResult) -> None:
        part.forget()
        content = save(_packed(part))
        self._write("plan.json", json.dumps(self._plan, indent=2, sort_keys=True).encode())
        self._write(self._name, sha256(content).hexdigest().encode() + b"\n" + content)

    def drop(self) -> None:
        """Remove the folder."""
        _remove(self.folder)

    @property
    def _begun(self) -> bool:
        """True where there is something to go on from."""
        return any((self.folder / name).exists() for name in STAGES)

    def _check_plan(self) -> None:
        path = self.folder / "plan.json"
        if not self._begun:
            return
        with suppress(ValueError, TypeError, OSError):
            found = _with_same_unknowns(dict(json.loads(path.read_text(encoding="utf-8"))), self._plan)
            differing = [
                _difference(name, found.get(name), value) for name, value in self._plan.items() if found.get(name) != value
            ]
            if not differing:
                return
            raise AtlasError(
                f"an unfinished scan to {str(self._place)!r} was of another plan: {'; '.join(differing)}. Start that one again, give another "
                f"--out, or remove the folder {str(self.folder)!r}"
            )
        raise AtlasError(f"{str(path)!r} is damaged; remove the folder {str(self.folder)!r} to scan from the beginning")

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        with atomic_write(path, f"the checkpoint {str(path)!r}") as aside:
            aside.write_bytes(content)


def _remove(folder: Path) -> None:
    for name in STAGES:  # first, or a kill in the middle may leave one without its plan
        with suppress(OSError):
            (folder / name).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _with_same_unknowns(found: dict[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as it was found, with the fingerprint and the labels of the one asked for where the two don't contradict each other:
    an image that couldn't be read then, or can't be now, proves nothing."""
    was, asked = (dict(one.get("images") or {}) for one in (found, plan))
    agreed = {name: asked[name] for name in ("fingerprint", "labels") if name in was and name in asked}
    agreed = {name: said for name, said in agreed.items() if not contradictions(was[name], said)}
    return found | {"images": was | agreed} if agreed else found


def _difference(name: str, was: Any, asked: Any) -> str:
    if name == "images.fingerprint" and was and asked:
        others = contradictions(was, asked)
        return f"the images are others: image {', '.join(others[:3])} {'holds' if len(others) == 1 else 'hold'} other content than then"
    if name == "images.labels" and was and asked:
        image = contradictions(was, asked)[0]
        return f"labels are others: that of image {image} was {was[image]!r} and is {asked[image]!r}"
    if isinstance(was, dict) and isinstance(asked, dict):
        inner = [key for key in {**was, **asked} if was.get(key) != asked.get(key)]
        return ", ".join(_difference(f"{name}.{key}", was.get(key), asked.get(key)) for key in inner)
    return f"{name} was {_short(was)} and is {_short(asked)}"


def _short(value: Any) -> str:
    said = json.dumps(value)
    return said if len(said) < 60 else f"{said[:56]} …"


# ── a part as tensors and text ──────────────────────────────────────────────────────────────────────────────────────


def _packed(part: PartialResult) -> dict[str, Tensor]:
    groups: dict[str, Any] = {"best": part.best, "sample": part.sample, "extremes": part.moments.extremes}
    groups |= {f"block {level} {number}": block for (level, number), block in part.moments.blocks.items()}
    held = {f"{group}/{name}": getattr(of, name) for group, of in groups.items() if of for name in of.__slots__}
    tensors = {path: value.contiguous() for path, value in held.items() if isinstance(value, Tensor)}
    words = {
        "notes": {image: asdict(note) for image, note in part.notes.items()},
        "labels": part.labels,
        "skipped": part.skipped,
        "read": part.read,
        "contents": part.contents,
        "images": part.moments.images,
        "sample": part.sample.size,
    }
    return tensors | {"words": _as_tensor(json.dumps(words))}


def _unpacked(tensors: Mapping[str, Tensor]) -> PartialResult:
    groups: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        group, _, name = path.partition("/")
        groups.setdefault(group, {})[name] = tensor
    words = json.loads(bytes(tensors["words"].numpy()).decode())
    blocks = {
        (int(level), int(number)): MeanVariance(**held)
        for group, held in groups.items()
        if group.startswith("block")
        for _, level, number in [group.split()]
    }
    extremes = Extremes(**groups["extremes"]) if "extremes" in groups else None
    return PartialResult(
        TopK(**groups["best"]),
        RunningStatistics(blocks, words["images"], extremes),
        Sample(**groups["sample"], size=words["sample"]),
        {int(image): ImageNote(**note) for image, note in words["notes"].items()},
        Counter(words["labels"]),
        {int(image): tuple(why) for image, why in words["skipped"].items()},
        words["read"],
        words["contents"],
    )


def _as_tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
