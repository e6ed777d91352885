"""The model: backbone F, embedding head E, nuisance heads N, decoder D (arXiv 1807.10591 §3.2 and §4).

F computes pooled features. E maps them to z (who the person is), N maps them to v (camera, pose, light), and D
reconstructs the features from both. The autoencoder is truncated: it reconstructs features, not pixels. Without E the
features are z, and without N the decoder receives z alone. E may also be a single batch norm (BNNeck, arXiv 1903.07071
§III-E). Two more parts serve other methods: a classifier of identities on z, and a discriminator that tells codes
[z, v] from noise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embae.datasets.loading.batch import Batch
from embae.datasets.loading.to_device import to_device
from embae.datasets.sampling.view import View
from embae.trainer.losses.parts import PARTS, PartName, Use
from embae.trainer.model.backbone import build_backbone, width
from embae.trainer.model.camera_tables import COMMON, MEAN, SCALE, SHIFT, VAR, apply_camera_affine, using_cameras
from embae.trainer.model.domain import ModelDomain
from embae.trainer.model.heads import Decoder, Discriminator, NuisanceHeads, bnneck, head
from embae.trainer.model.known_cameras import Camera
from embae.trainer.recipe.model import Model


class EmbAE(nn.Module):
    """The parts of the model and how they are used.

    Args:
        keys: Sizes and backbone.
        uses: The use of each part; absent parts are not built. Frozen parts stay in eval mode whatever `train()` says,
            so their batch-norm statistics are frozen too.
        domain: The heads, identities and cameras that the model is built for.
        running: Trained parts whose batch norms use their running statistics and leave them unchanged.
        size: Height and width of the images.

    Attributes:
        features, z: Widths of the outputs of the backbone and of the embedding.
        heads: The images that each nuisance head serves; none without a nuisance part.
        classes: Number of identities that the classifier tells apart.
        known_cameras: The cameras that the model is calibrated on, in the order of its tables.
        neck: Whether the triplet loss uses the input of the embedding.
        unit: Whether the embeddings of `forward` have length 1.
        last_stride: Of the backbone; the weights do not tell it.

    Raises:
        RecipeError: timm has no such backbone, or not in this form.
    """

    def __init__(self, keys: Model, uses: Mapping[PartName, Use], domain: ModelDomain | None = None, *,
                 running: Collection[PartName] = (), size: tuple[int, int] = (256, 128)):
        super().__init__()
        domain = domain or ModelDomain()
        self.uses: dict[PartName, Use] = {part: uses.get(part, "absent") for part in PARTS}
        self._running, self.classes, self.known_cameras = frozenset(running), domain.classes, domain.known_cameras
        self.heads = list(domain.heads) if self.uses["nuisance"] != "absent" else []
        self.backbone = build_backbone(keys, size)
        self.features = width(self.backbone, size)
        self.neck, self.unit, self.last_stride = keys.head == "bnneck", keys.unit, keys.last_stride
        self.z = self.features
        if self.uses["embedding"] != "absent" and self.neck:
            self.embedding: nn.Module = bnneck(self.features)
        elif self.uses["embedding"] != "absent":
            self.embedding, self.z = head(self.features, keys.hidden, keys.embedding), keys.embedding
        latent = self.z
        if self.uses["nuisance"] != "absent":
            latent += keys.nuisance.dim
            self.nuisance = NuisanceHeads(self.features, keys.hidden, keys.nuisance.dim, self.heads)
        if self.uses["decoder"] != "absent":
            self.decoder = Decoder(latent, keys.hidden, self.features)
        if self.uses["classifier"] != "absent":
            self.classifier = nn.Linear(self.z, self.classes, bias=not self.neck)
            if self.neck:  # initialised as in the authors' code
                nn.init.normal_(self.classifier.weight, std=0.001)
        if self.uses["discriminator"] != "absent":
            self.discriminator = Discriminator(latent, keys.hidden)
        for name, part in self.parts().items():
            part.requires_grad_(self.uses[name] == "train")

    @property
    def cameras(self) -> list[Camera]:
        """(dataset, camid) of the cameras that the model is calibrated on, in the order of its tables."""
        return list(self.known_cameras.cameras)

    @property
    def domain(self) -> ModelDomain:
        """The heads, identities and cameras that the model is built for; to build another one like it."""
        return ModelDomain(self.heads, self.classes, self.known_cameras)

    def parts(self) -> dict[PartName, nn.Module]:
        """The parts that are not absent."""
        return {name: getattr(self, name) for name in PARTS if self.uses[name] != "absent"}

    def train(self, mode: bool = True) -> EmbAE:
        super().train(mode)
        for name, part in self.parts().items():
            if self.uses[name] != "train":
                part.eval()
            elif name in self._running:
                for module in part.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def forward(self, images: Tensor, cameras: Tensor | None = None) -> Tensor:
        """Embeddings to search by: `(B, 3, H, W)` to `(B, Z)`.

        Args:
            images: Normalised.
            cameras: `(B,)`, the index of the camera of each image in the tables of a calibrated model, see
                `image_cameras`.
        """
        return self.for_search(self.encode(images, cameras))

    def for_search(self, z: Tensor) -> Tensor:
        """Embeddings as they leave the model, `(B, Z)`: of length 1 if the recipe says so, so that a Euclidean ranking
        is a ranking by cosine. Losses and the decoder use z unchanged."""
        return F.normalize(z, dim=1) if self.unit else z

    def encode(self, images: Tensor, cameras: Tensor | None = None) -> Tensor:
        """Embeddings z of images, as the other parts use them: `(B, 3, H, W)` to `(B, Z)`."""
        return self.embed(self.extract(images, cameras), cameras)

    def extract(self, images: Tensor, cameras: Tensor | None = None) -> Tensor:
        """Backbone features of images: `(B, 3, H, W)` to `(B, F)`."""
        with using_cameras(cameras):
            return apply_camera_affine(self.backbone, self.backbone(images), cameras)

    def embed(self, features: Tensor, cameras: Tensor | None = None) -> Tensor:
        """Embeddings z of features: `(B, F)` to `(B, Z)`."""
        if self.uses["embedding"] == "absent":
            return features
        with using_cameras(cameras):
            return apply_camera_affine(self.embedding, self.embedding(features), cameras)

    def image_cameras(self, batch: Batch) -> Tensor | None:
        """The index of each image's camera in the model's tables: `(N,)` on the model's device, −1 for a camera without
        one; None if the model is calibrated on no cameras."""
        cameras = self.row_cameras(batch.view, batch.rows)
        return None if cameras is None else to_device(cameras, batch.inputs.device)

    def batch_cameras(self, batch: Batch) -> Tensor | None:
        """The cameras with images in the *global* batch, by their index in the model's tables, ascending: `(K,)`; None
        if the model is calibrated on no cameras."""
        cameras = self.row_cameras(batch.view, batch.plan)
        return None if cameras is None else to_device(np.unique(cameras), batch.inputs.device)

    def row_cameras(self, view: View, rows: np.ndarray) -> np.ndarray | None:
        """`image_cameras` for rows of a view: `(N,)` int64."""
        return self.known_cameras.indices(view, rows) if self.known_cameras.cameras else None


def camera_table_shape(model: EmbAE, key: str) -> tuple[int, int] | None:
    """The shape that a table by camera must have, given its name in a state dict; None if the model has no place for a
    table of that name. `camera_tables.py` lists the tables.
    """
    path, _, name = key.rpartition(".")
    owner = dict(model.named_modules()).get(path)
    if name in (MEAN, VAR) and isinstance(owner, _BatchNorm):
        return len(model.known_cameras.cameras), owner.num_features
    if name == COMMON and path == "backbone":
        return 2, model.features
    if name in (SHIFT, SCALE) and path in ("backbone", "embedding") and owner is not None:
        return len(model.known_cameras.cameras), model.features if path == "backbone" else model.z
    return None
