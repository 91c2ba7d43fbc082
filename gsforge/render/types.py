"""What every backend takes and gives: the inputs, the settings of the image formation, and the images."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians

Mode = Literal["classic", "antialiased"]
PixelLoss = Literal["l1", "l2"]
Estimate = Literal["exact", "first_order"]


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

    Raises:
        ValueError: for a setting that makes no sense; says which, and what it may be.
    """

    mode: Mode = "classic"
    eps2d: float = 0.3
    near: float = 0.01
    far: float = 1e10
    radius_clip: float = 0.0
    transmittance_stop: float = 1e-4

    def __post_init__(self) -> None:
        _check_choice("settings.mode", self.mode, get_args(Mode))
        # Written so that nan fails as well.
        for name, valid, expected in (
            ("eps2d", 0 <= self.eps2d < float("inf"), "a finite variance >= 0 in px^2"),
            ("near", 0 <= self.near < float("inf"), "a finite distance >= 0"),
            ("far", self.far > self.near, f"a distance beyond near={self.near}"),
            ("radius_clip", self.radius_clip >= 0, "a radius >= 0 in pixels"),
            ("transmittance_stop", 0 <= self.transmittance_stop < 1, "a value in [0, 1)"),
        ):
            if not valid:
                raise ValueError(f"settings.{name}: expected {expected}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Contribution:
    """Asks for the loss per pixel, and for what each Gaussian contributes to it, as the gradient of `tokens`.

    With an incoming gradient v_p at every pixel p, the gradient of token j is sum_p v_p (L_p - L_p without Gaussian j),
    summed over the views: negative for a Gaussian that lowers the loss.

    Attributes:
        target: [..., C, 3, H, W] images that the rendered colour is compared with.
        tokens: [..., N] one number for each Gaussian, of any value; only their gradient matters.
        loss: per pixel, `l1` is sum |rgb - target| over the colours, `l2` is sum (rgb - target)^2.
        estimate: `exact` is the difference that leaving one Gaussian out makes; `first_order` its linearisation,
            sum_p v_p alpha_j dL_p/dalpha_j, which vanishes where opacities have converged.

    Raises:
        ValueError: for an unknown loss or estimate.

    Source:
        DeG (2605.16355): the difference reward of the density; here with the background counted in.
    """

    target: Tensor
    tokens: Tensor
    loss: PixelLoss = "l1"
    estimate: Estimate = "exact"

    def __post_init__(self) -> None:
        _check_choice("contribution.loss", self.loss, get_args(PixelLoss))
        _check_choice("contribution.estimate", self.estimate, get_args(Estimate))


@dataclass(frozen=True)
class RenderInputs:
    """All arguments of a backend, their shapes checked and nothing left to default.

    Attributes:
        gaussians: batch shape [...].
        cameras: batch shape [...].
        backgrounds: [..., C, 3] colours behind everything.
        colors: [..., N, 3] or [..., C, N, 3] colours used as they are, or None for the spherical harmonics.
        features: [..., N, F] or [..., C, N, F] extra channels, or None.
        contribution: the loss asked for, or None.
        settings: constants of the image formation.
    """

    gaussians: Gaussians
    cameras: Cameras
    backgrounds: Tensor
    colors: Tensor | None
    features: Tensor | None
    contribution: Contribution | None
    settings: RenderSettings

    def per_view(self, values: Tensor) -> Tensor:
        """Give `colors` or `features` the dimension of the views, if they lack it.

        Args:
            values: [..., N, D] or [..., C, N, D].

        Returns:
            [..., C, N, D], a view of the same memory.
        """
        batch = self.cameras.batch_shape
        if values.dim() == len(batch) + 2:
            values = values.unsqueeze(-3)
        return values.expand(*batch, self.cameras.count, *values.shape[-2:])


@dataclass(frozen=True)
class RenderOutput:
    """Images of C cameras for each scene.

    Attributes:
        rgb: [..., C, 3, H, W] colour over the background; not clamped.
        alpha: [..., C, 1, H, W] accumulated opacity, 1 - final transmittance.
        depth: [..., C, 1, H, W] accumulated depth, sum of weight * z, world units.
        features: [..., C, F, H, W] feature channels composited over zero, or None.
        normals: [..., C, 3, H, W] normals in the world frame composited over zero, of length <= 1, or None.
        loss: [..., C, 1, H, W] loss per pixel, differentiable to the tokens of the contribution alone, or None.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    features: Tensor | None = None
    normals: Tensor | None = None
    loss: Tensor | None = None

    @property
    def expected_depth(self) -> Tensor:
        """[..., C, 1, H, W] mean depth of what is seen: accumulated depth / alpha; 0 where nothing is seen."""
        return self.depth / self.alpha.clamp_min(1e-10)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(choices)}, got {value!r}")
