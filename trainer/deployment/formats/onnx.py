"""ONNX: ``model.onnx``, with the contract in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embae.trainer.deployment.formats.format import READ_IMAGE, ExportFormat, Program, fill_template

if TYPE_CHECKING:
    from torch import Tensor

    from embae.trainer.deployment.deployed_model import Deployed
    from embae.trainer.model.saved import SavedModel

FILE = "model.onnx"
_OPSET = 18
_EXAMPLE = "import numpy as np\nimport onnxruntime\nfrom PIL import Image\n" + READ_IMAGE + (
    'session = onnxruntime.InferenceSession("model.onnx")\n'
    'embedding = session.run(["embedding"], {{"images": images{camera}}})[0]')


class Onnx(ExportFormat):
    """ONNX, read back with onnxruntime on the CPU."""

    name = "onnx"
    library = "onnx"
    requires = ("onnx", "onnxruntime", "onnxscript")

    def write(self, folder: Path, export: SavedModel, deployed: Deployed, about: dict[str, Any]) -> Program:
        """See `ExportFormat`."""
        import onnx

        from embae.trainer.deployment.deployed_model import CAMERA, IMAGES
        path, inputs = folder / FILE, deployed.inputs(export, 2)
        names = [IMAGES, CAMERA][:len(inputs)]
        _export(path, deployed, inputs, names)
        model = onnx.load(str(path))
        for key, value in about.items():
            model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return _read(path, names)

    def example(self, about: dict[str, Any]) -> str:
        """See `ExportFormat`."""
        return fill_template(_EXAMPLE, about, camera=', "camera": np.array([-1])' if about["camera"] else "")


def _export(path: Path, deployed: Deployed, inputs: tuple[Tensor, ...], names: list[str]) -> None:
    import logging
    import warnings

    import torch

    from embae.trainer.deployment.deployed_model import OUTPUT
    from embae.trainer.deployment.formats.graph import free_batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what the exporter itself calls deprecated
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(deployed, inputs, dynamo=True, verbose=False, input_names=names,
                                    output_names=[OUTPUT], dynamic_shapes=free_batch(inputs), opset_version=_OPSET)
    assert program is not None
    program.save(str(path), external_data=False)


def _read(path: Path, names: list[str]) -> Program:
    import onnxruntime
    import torch

    from embae.trainer.deployment.deployed_model import OUTPUT
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], arrays)[0])

    return run
