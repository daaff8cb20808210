"""A data set that only one thread at a time may read, in a module of its own, so that other processes can have a copy of it."""

import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 14


class Seeking:
    """Pictures one after the other in one file that stays open; a read is a seek, a pause and a read, as in many formats.

    `readers` are the threads that have asked, `clashes` counts those that came while another was reading.
    """

    def __init__(self, path: Path, lazily: bool = False) -> None:
        self.path, self.lazily = path, lazily
        self.readers: set[int] = set()
        self.clashes = 0
        self._reading = False
        self._file = path.open("rb")

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._file = self.path.open("rb")

    def __del__(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self.path.stat().st_size // (SIDE * SIDE * 3)

    def __getitem__(self, image: int) -> Image.Image:
        self.readers.add(threading.get_ident())
        self.clashes += self._reading
        self._reading = True
        self._file.seek(image * SIDE * SIDE * 3)
        time.sleep(0.0005)  # another thread may come
        content = self._file.read(SIDE * SIDE * 3)
        self._reading = False
        return Image.frombytes("RGB", (SIDE, SIDE), content)


def pictures(count: int) -> np.ndarray:
    """The same noise every time, of shape (image, y, x, channel)."""
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def seeking(folder: Path, count: int = 120) -> Seeking:
    (folder / "pictures.bin").write_bytes(pictures(count).tobytes())
    return Seeking(folder / "pictures.bin")
