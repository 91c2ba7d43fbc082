"""What a method hands to callbacks, files and reports about one batch of scenes."""

from dataclasses import dataclass, field

from torch import Tensor

from gsforge.core.gaussians import Gaussians

BASELINE = "_baseline"
"""Ending of a metric's name that marks what a trivial method would score."""


TRUTH, RENDER = "ground truth", "render"
"""Pictures that are shown side by side."""

GIVEN = "input image"
"""Picture that the method made an object of."""

AT = "@"
"""Between the name of a metric and the number of Gaussians of another budget that it was measured at."""


@dataclass(frozen=True)
class Reconstruction:
    """Result of a validation, test or prediction step; callbacks draw and save it without knowing the method.

    Attributes:
        keys: names of the B scenes.
        gaussians: batch shape [B], or None where the method has none yet (a density alone, for example).
        images: picture name -> [B, V, 3, H, W] sRGB in [0, 1].
        metrics: metric name -> [B] values; `<metric>_baseline` holds the baseline of `<metric>`, and
            `<metric>@<number>` the metric with this number of Gaussians.
    """

    keys: list[str]
    gaussians: Gaussians | None = None
    images: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
