"""The model: backbone F, embedding head E, nuisance heads N, decoder D (arXiv 1807.10591 §3.2 and §4).

F gives pooled features; E and N map them to z (who it is) and v (camera, pose, light); D rebuilds the features
from both. The autoencoder is truncated: it rebuilds features, not pixels. Without E the features are z, and without N
the decoder has z alone. E may also be a batch norm alone (BNNeck, arXiv 1903.07071 §III-E). Two more parts serve other
methods: a classifier of identities over z, and a discriminator that tells codes [z, v] from noise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embae.datasets.loading.batch import Batch
from embae.datasets.loading.to_device import to_device
from embae.datasets.sampling.view import View
from embae.trainer.losses.parts import PARTS, PartName, Use
from embae.trainer.model.backbone import build_backbone, width
from embae.trainer.model.camera_tables import COMMON, MEAN, SCALE, SHIFT, VAR, by_camera_affine, using_cameras
from embae.trainer.model.heads import Decoder, Discriminator, Head, NuisanceHeads, bnneck, head
from embae.trainer.model.known_cameras import Camera, KnownCameras
from embae.trainer.recipe.model import Model


class EmbAE(nn.Module):
    """The model's parts and how they are used.

    Args:
        keys: Sizes and backbone.
        heads: Whom each nuisance head serves.
        uses: What each part does; absent parts are not built. Frozen parts stay in eval mode whatever `train()` says,
            so their batch-norm statistics are frozen too.
        running: Trained parts whose batch norms keep to their running statistics.
        classes: Identities that the classifier tells apart.
        known: The cameras that the model is calibrated on, in the order of its tables.
        size: Height and width of its images.

    Attributes:
        features, z: Widths of what the backbone and the embedding put out.
        neck: Whether the triplet loss looks at what goes into the embedding.
        unit: Whether embeddings to search by have length 1.
        last_stride: Of the backbone; its weights do not tell.
        known: As above.

    Raises:
        RecipeError: timm has no such backbone, or not in this form.
    """

    def __init__(self, keys: Model, heads: Sequence[Head], uses: Mapping[PartName, Use], *,
                 running: Collection[PartName] = (), classes: int = 0, known: KnownCameras | None = None,
                 size: tuple[int, int] = (256, 128)):
        super().__init__()
        self.uses: dict[PartName, Use] = {part: uses.get(part, "absent") for part in PARTS}
        self._running, self.classes, self.known = frozenset(running), classes, known or KnownCameras()
        self.heads = list(heads) if self.uses["nuisance"] != "absent" else []
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
            self.nuisance = NuisanceHeads(self.features, keys.hidden, keys.nuisance.dim, heads)
        if self.uses["decoder"] != "absent":
            self.decoder = Decoder(latent, keys.hidden, self.features)
        if self.uses["classifier"] != "absent":
            self.classifier = nn.Linear(self.z, classes, bias=not self.neck)
            if self.neck:  # as its authors start it
                nn.init.normal_(self.classifier.weight, std=0.001)
        if self.uses["discriminator"] != "absent":
            self.discriminator = Discriminator(latent, keys.hidden)
        for name, part in self.parts().items():
            part.requires_grad_(self.uses[name] == "train")

    @property
    def cameras(self) -> list[Camera]:
        """(dataset, camid) of the cameras that the model is calibrated on, in the order of its tables."""
        return list(self.known.cameras)

    def parts(self) -> dict[PartName, nn.Module]:
        """The parts that are there."""
        return {name: getattr(self, name) for name in PARTS if self.uses[name] != "absent"}

    def train(self, mode: bool = True) -> EmbAE:
        super().train(mode)
        for name, part in self.parts().items():
            if self.uses[name] != "train":
                part.eval()
            elif name in self._running:
                for module in part.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    def forward(self, images: Tensor, which: Tensor | None = None) -> Tensor:
        """Embeddings of images to search by: `(B, 3, H, W)` to `(B, Z)`.

        Args:
            images: Normalised.
            which: `(B,)` the camera of each in a calibrated model's list, see `cameras_of`.
        """
        return self.for_search(self.encode(images, which))

    def for_search(self, z: Tensor) -> Tensor:
        """Embeddings as they leave the model, `(B, Z)`: of length 1 if the recipe wants that, so that a Euclidean
        ranking is one by cosine. Losses and the decoder see z as it is."""
        return F.normalize(z, dim=1) if self.unit else z

    def encode(self, images: Tensor, which: Tensor | None = None) -> Tensor:
        """Embeddings z of images as the other parts see them: `(B, 3, H, W)` to `(B, Z)`."""
        return self.embed(self.extract(images, which), which)

    def extract(self, images: Tensor, which: Tensor | None = None) -> Tensor:
        """Backbone features of images: `(B, 3, H, W)` to `(B, F)`."""
        with using_cameras(which):
            return by_camera_affine(self.backbone, self.backbone(images), which)

    def embed(self, features: Tensor, which: Tensor | None = None) -> Tensor:
        """Embeddings z of features: `(B, F)` to `(B, Z)`."""
        if self.uses["embedding"] == "absent":
            return features
        with using_cameras(which):
            return by_camera_affine(self.embedding, self.embedding(features), which)

    def cameras_of(self, batch: Batch) -> Tensor | None:
        """The camera of each image of a batch in the model's list: `(N,)` on its device; None where it has no list."""
        found = self.numbers(batch.view, batch.rows)
        return None if found is None else to_device(found, batch.inputs.device)

    def cameras_among(self, batch: Batch) -> Tensor | None:
        """The cameras of the model's list that the *global* batch has images of, rising: `(K,)`; None as above."""
        found = self.numbers(batch.view, batch.plan)
        return None if found is None else to_device(np.unique(found), batch.inputs.device)

    def numbers(self, view: View, rows: np.ndarray) -> np.ndarray | None:
        """As `cameras_of`, of a view's rows: `(N,)` int64."""
        return self.known.numbers(view, rows) if self.known.cameras else None


def table_shape(model: EmbAE, key: str) -> tuple[int, int] | None:
    """The shape of a model's table by camera, by its name in a state; None where it has no place for one of that name.

    `cameras.py` says what tables there are.
    """
    path, _, name = key.rpartition(".")
    owner = dict(model.named_modules()).get(path)
    if name in (MEAN, VAR) and isinstance(owner, _BatchNorm):
        return len(model.known.cameras), owner.num_features
    if name == COMMON and path == "backbone":
        return 2, model.features
    if name in (SHIFT, SCALE) and path in ("backbone", "embedding") and owner is not None:
        return len(model.known.cameras), model.features if path == "backbone" else model.z
    return None
