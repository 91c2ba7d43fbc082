"""One page about objects that were generated from pictures."""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from gsforge.viewer.pictures import turntable_sheet, webp_uri
from gsforge.viewer.report import page_template


@dataclass(frozen=True)
class GeneratedObject:
    """An object beside the picture that it was made from.

    Attributes:
        name: of the picture.
        pictures: [V, 3, S, S] in [0, 1]: the picture as the model saw it, and the object seen from there.
        frames: of a turntable.
        gaussians: number of Gaussians.
    """

    name: str
    pictures: Tensor
    frames: list[Image.Image]
    gaussians: int


def generated_page(objects: list[GeneratedObject], run: Path) -> str:
    """Make the page.

    Args:
        objects: at least one.
        run: directory of the run that made them, for the headline.

    Returns:
        HTML that loads nothing from elsewhere.
    """
    cards = []
    for index, made in enumerate(objects):
        strip = to_pil_image(torch.cat(list(made.pictures.float()), dim=-1).clamp(0, 1))
        picture = {"uri": webp_uri(strip), "width": strip.width, "height": strip.height}
        sheet = turntable_sheet(made.name, made.frames, made.gaussians)
        cards.append({"index": index, "key": made.name, "turntable": sheet, "picture": picture})
    return page_template("generated.html.j2").render(
        run=str(run),
        objects=cards,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=[("gsforge", version("gsforge")), ("torch", torch.__version__)],
    )
