"""The set of Gaussians that every method produces and every renderer draws."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gsforge.core.rotations import matrix_to_quaternion, multiply_quaternions
from gsforge.core.sh import rotate_sh


@dataclass(frozen=True)
class Gaussians:
    """3D Gaussians with activated attributes (nothing here is a logit or a logarithm).

    Attributes:
        means: [..., N, 3] centres in world units.
        quats: [..., N, 4] unit quaternions (w, x, y, z).
        scales: [..., N, 3] standard deviations along the rotated axes, >= 0, world units.
        opacities: [..., N] in [0, 1].
        sh: [..., N, K, 3] spherical-harmonic coefficients, K = (degree + 1)^2; the colour seen is 0.5 + sum_k Y_k sh_k.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh: Tensor

    @property
    def count(self) -> int:
        """Number N of Gaussians in each scene."""
        return self.means.shape[-2]

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions shared by all attributes."""
        return self.means.shape[:-2]

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics."""
        return math.isqrt(self.sh.shape[-2]) - 1

    def map(self, function: Callable[[Tensor], Tensor]) -> "Gaussians":
        """Apply a function to every attribute tensor.

        Args:
            function: what it does to the batch dimensions and N must be the same for all attributes.

        Returns:
            The Gaussians with its results.
        """
        return Gaussians(**{field.name: function(getattr(self, field.name)) for field in fields(self)})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Gaussians":
        """Move or cast every attribute.

        Args:
            device: where the tensors go; None leaves them where they are.
            dtype: their new type; None keeps it.

        Returns:
            The Gaussians with the moved or cast attributes.
        """
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def detach(self) -> "Gaussians":
        """Cut every attribute from the autograd graph.

        Returns:
            Gaussians that share the memory of these, without gradients.
        """
        return self.map(Tensor.detach)

    def __getitem__(self, index: int | slice) -> "Gaussians":
        """Select scenes along the first batch dimension."""
        if not self.batch_shape:
            raise IndexError("these Gaussians are a single scene without batch dimension; index their tensors instead")
        return self.map(lambda tensor: tensor[index])

    def rotated(self, rotation: Tensor) -> "Gaussians":
        """Rotate the scenes about the origin, their spherical harmonics included.

        Args:
            rotation: [3, 3] rotation matrix.

        Returns:
            The turned Gaussians.
        """
        rotation = rotation.to(self.means)
        return Gaussians(
            means=self.means @ rotation.T,
            quats=multiply_quaternions(matrix_to_quaternion(rotation), self.quats),
            scales=self.scales,
            opacities=self.opacities,
            sh=rotate_sh(self.sh, rotation),
        )

    @staticmethod
    def stack(scenes: Sequence["Gaussians"]) -> "Gaussians":
        """Batch scenes of different size; the shorter ones are padded with Gaussians of zero opacity, which are culled.

        Args:
            scenes: unbatched scenes of one SH degree, device and dtype.

        Returns:
            Gaussians of batch shape [len(scenes)].
        """
        most = max(scene.count for scene in scenes)
        return Gaussians(
            *(
                torch.stack([_padded(getattr(scene, field.name), most, field.name) for scene in scenes])
                for field in fields(Gaussians)
            )
        )


def _padded(rows: Tensor, count: int, name: str) -> Tensor:
    padding = rows.new_zeros(count - rows.shape[0], *rows.shape[1:])
    if name == "quats":
        padding[..., 0] = 1
    return torch.cat([rows, padding])
