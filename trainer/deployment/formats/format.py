"""What the program asks of an export format. Importing a format is cheap: its methods import what they need."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from embae.trainer.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from embae.trainer.deployment.deployed_model import Deployed
    from embae.trainer.model.saved import SavedModel

Program = Callable[..., "Tensor"]
"""A model read back from its files: images, and cameras if it takes them, to embeddings `(B, Z)`."""

READ_IMAGE = """
image = Image.open("person.jpg").convert("RGB").resize(({width}, {height}), Image.Resampling.BILINEAR)
images = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
"""
"""Code of a model card that reads an image, a template of the input's ``width`` and ``height``."""


class ExportFormat(ABC):
    """A format of exported models.

    Attributes:
        name: Its name on the command line.
        library: The library that loads it, by the name that the Hugging Face hub gives it.
        requires: Modules that the extra ``embae[export]`` installs.
        uses_camera_statistics: Whether the loaded program uses the statistics of each camera, for a model that has
            them; otherwise it uses those that all cameras share.
        card_note: A sentence of the model card on a model that is calibrated by camera.
    """

    name: ClassVar[str]
    library: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    uses_camera_statistics: ClassVar[bool] = True
    card_note: ClassVar[str] = ""

    def check_installed(self) -> None:
        """Checks that the modules that the format needs are installed.

        Raises:
            WeightsError: One is missing; the message says how to install it.
        """
        missing = [module for module in self.requires if importlib.util.find_spec(module) is None]
        if missing:
            raise WeightsError(f"--format {self.name}: needs {', '.join(missing)}; install with: "
                               "pip install 'embae[export]'")

    def describe(self, contract: dict[str, Any], export: SavedModel, deployed: Deployed) -> dict[str, Any]:
        """Entries of a model's contract that differ in this format, or that it adds; JSON-ready.

        Args:
            contract: See `deployed_model.contract`.
            export: The model on disk.
            deployed: The same model as it is used.
        """
        return {}

    @abstractmethod
    def write(self, folder: Path, export: SavedModel, deployed: Deployed, about: dict[str, Any]) -> Program:
        """Writes the files, and reads them back with the library that loads them.

        Args:
            folder: An existing folder.
            export: The model on disk.
            deployed: The same model as it is used.
            about: What the files say about the model where the format has a place for it, JSON-ready.
        """

    @abstractmethod
    def example(self, about: dict[str, Any]) -> str:
        """Code of the model card that computes an embedding.

        Args:
            about: What the files say about the model; it has a ``camera`` if the program takes cameras.
        """


def fill_template(template: str, about: dict[str, Any], **values: Any) -> str:
    """Example code with the size of the input filled in."""
    height, width = about["input"]["shape"][2:]
    return template.format(height=height, width=width, **values)
