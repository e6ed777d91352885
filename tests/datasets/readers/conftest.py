from collections.abc import Callable, Iterable
from pathlib import Path

import PIL.Image
import pytest

Draw = Callable[[Iterable[str]], Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Writes tiny images, in the format of their suffix, below a folder, and returns the folder."""

    def write(names: Iterable[str]) -> Path:
        for number, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (3, 4), (number % 256, 50, 200)).save(path)
        return tmp_path

    return write
