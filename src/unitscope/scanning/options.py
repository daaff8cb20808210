"""The rarer options of a scan."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from unitscope.arguments import shortened, whole_number
from unitscope.atlas.schema import MAX_RANK
from unitscope.errors import UnitscopeError
from unitscope.runners import Runner


class ScanOptions(TypedDict, total=False):
    """What `scan` takes by name beside layers and k; see there."""

    preprocess: Any
    device: str
    runner: Runner | None
    batch_size: int
    workers: int | str
    precision: str
    per_image: int
    inner: bool
    sample: int
    candidates: int | None
    labels: Any
    classes: Any
    tuning: bool
    troughs: bool | None
    limit: int | None
    checkpoint_every_s: float
    on_images: Callable[[int], None] | None


@dataclass(frozen=True, slots=True)
class Options:
    """The same with their defaults."""

    preprocess: Any = None
    device: str = "auto"
    runner: Runner | None = None
    batch_size: int = 32
    workers: int | str = "auto"
    precision: str = "fp32"
    per_image: int = 1
    inner: bool = False
    sample: int = 200
    candidates: int | None = None
    labels: Any = None
    classes: Any = None
    tuning: bool = True
    troughs: bool | None = None
    limit: int | None = None
    checkpoint_every_s: float = 60
    on_images: Callable[[int], None] | None = None


def options_of(scan_options: ScanOptions) -> Options:
    """The options, completed. Raises `TypeError` for a name that is none, as Python does for arguments, and `UnitscopeError` for counts
    that are no whole numbers or below 1."""
    unknown = next((name for name in scan_options if name not in Options.__slots__), None)
    if unknown is not None:
        raise TypeError(f"scan() got an unexpected keyword argument {unknown!r}; it takes {', '.join(Options.__slots__)}")
    options = Options(**scan_options)
    if isinstance(options.checkpoint_every_s, bool) or not isinstance(options.checkpoint_every_s, (int, float)):
        raise UnitscopeError(f"checkpoint_every_s is a number of seconds, not {shortened(options.checkpoint_every_s)}")
    return replace(
        options,
        batch_size=whole_number("batch_size", options.batch_size),
        per_image=whole_number("per_image", options.per_image),
        sample=whole_number("sample", options.sample),
        candidates=None if options.candidates is None else whole_number("candidates", options.candidates, maximum=MAX_RANK),
        inner=bool(options.inner),
        tuning=bool(options.tuning),
        troughs=None if options.troughs is None else bool(options.troughs),
        limit=None if options.limit is None else whole_number("limit", options.limit),
    )
