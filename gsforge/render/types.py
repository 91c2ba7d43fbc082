"""What every backend takes and gives: the settings of the image formation, and the images."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Mode = Literal["classic", "antialiased"]


@dataclass(frozen=True)
class RenderSettings:
    """Constants of the image formation, gsplat's defaults.

    Attributes:
        mode: `antialiased` multiplies opacities by sqrt(det(cov2d) / det(cov2d + eps2d I)), after Mip-Splatting.
        eps2d: variance in px^2 added to the projected covariance.
        near: Gaussians with z < near are not drawn, world units.
        far: Gaussians with z > far are not drawn, world units.
        radius_clip: Gaussians whose radius in pixels is <= this are not drawn.
        transmittance_stop: a Gaussian that would bring the transmittance of a pixel to this or below is not drawn, nor
            any behind it.
    """

    mode: Mode = "classic"
    eps2d: float = 0.3
    near: float = 0.01
    far: float = 1e10
    radius_clip: float = 0.0
    transmittance_stop: float = 1e-4


@dataclass(frozen=True)
class RenderOutput:
    """Images of C cameras for each scene.

    Attributes:
        rgb: [..., C, 3, H, W] colour over the background; not clamped.
        alpha: [..., C, 1, H, W] accumulated opacity, 1 - final transmittance.
        depth: [..., C, 1, H, W] accumulated depth, sum of weight * z, world units.
        features: [..., C, F, H, W] feature channels composited over zero, or None.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    features: Tensor | None = None

    @property
    def expected_depth(self) -> Tensor:
        """[..., C, 1, H, W] mean depth of what is seen: accumulated depth / alpha; 0 where nothing is seen."""
        return self.depth / self.alpha.clamp_min(1e-10)
