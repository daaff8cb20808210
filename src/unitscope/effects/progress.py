"""What a long run has so far, on the disk: numbers by name, saved once in a while, for the next run of the same kind to go on from."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from unitscope.atlas import Atlas
from unitscope.atlas.tables import ADDED_FOLDER
from unitscope.atlas.writing import locked_pieces
from unitscope.files import atomic_write

SAVE_EVERY_S = 60
MAX_TIME_SHARE = 0.02
"""Of a run, for saving."""

State = Mapping[str, Any]
"""Arrays of numbers, and plain data under the name `plain`."""


@dataclass
class Progress:
    """The file of one run. `parameters` say what run it is: the state of another one is not taken."""

    path: Path
    parameters: Mapping[str, Any]
    _next_save: float = field(default_factory=lambda: monotonic() + SAVE_EVERY_S)

    def load(self) -> State | None:
        """What an earlier run has left; None where there is nothing, or what was left is of other parameters or can't be read."""
        try:
            with np.load(self.path, allow_pickle=False) as saved:
                state = {name: saved[name] for name in saved.files}
            plain = json.loads(state.pop("plain").item())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        return state | {"plain": plain["state"]} if plain["parameters"] == self._plain_parameters() else None

    def is_due(self) -> bool:
        """True where it is time to save."""
        return monotonic() >= self._next_save

    def save(self, state: State) -> None:
        """Keep the state in place of the one before."""
        start = monotonic()
        plain = {"parameters": self._plain_parameters(), "state": state["plain"]}
        with atomic_write(self.path, f"the unfinished run {str(self.path)!r}") as unfinished, unfinished.open("wb") as file:
            np.savez(file, plain=np.array(json.dumps(plain)), **{name: array for name, array in state.items() if name != "plain"})
        now = monotonic()
        self._next_save = now + max(SAVE_EVERY_S, (now - start) / MAX_TIME_SHARE)

    def _plain_parameters(self) -> Any:
        return json.loads(json.dumps(dict(self.parameters)))


@contextmanager
def progress_of(atlas: Atlas, name: str, parameters: Mapping[str, Any]) -> Iterator[Progress]:
    """The progress of the run that makes a table of that name; gone once the block has come to its end.

    Raises `AtlasError` where another run is at work on it, or where nothing can be written.
    """
    folder = atlas.folder / ADDED_FOLDER / f".{name}"
    with locked_pieces(folder, name, atlas):
        progress = Progress(folder / "progress.npz", parameters)
        yield progress
        with suppress(OSError):
            progress.path.unlink(missing_ok=True)
