"""Metrics of generated objects: CLIP similarity to the condition image, Fréchet and kernel distances over the set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gsforge.core.reconstruction import BASELINE
from gsforge.metrics.distances import SetDistances
from gsforge.metrics.inception import InceptionImages
from gsforge.metrics.networks import ClipImages, Dinov2Images, ImageNetwork
from gsforge.metrics.pairs import WrongPairs

_Network = TypeVar("_Network", bound=ImageNetwork)


@dataclass(frozen=True)
class GenerationMetricsConfig:
    """Where the networks of the metrics are: a local path or an id on the Hugging Face hub; None asks for none.

    Attributes:
        clip: of CLIP, for `clip_similarity`. Papers: openai/clip-vit-large-patch14.
        inception: of Inception-v3, for `fd_inception` and `kd_inception`. Papers: a local copy of
            pt_inception-2015-12-05-6726825d.pth; torchvision's is measured as `fd_inception_tv`.
        dinov2: of DINOv2, for `fd_dinov2` and `kd_dinov2`. Papers: facebook/dinov2-large.
    """

    clip: str | None = None
    inception: str | None = None
    dinov2: str | None = None


class GenerationMetrics(nn.Module):
    """Measures rendered views of generated objects, batch by batch, and the whole set at the end.

    It adds nothing to a checkpoint. Names tell the network: `clip_similarity` is of ViT-L/14 alone, and
    `clip_similarity_d768x12p32_224px` of a ViT of width 768, 12 blocks, patches of 32 px and images of 224 px.

    Args:
        clip: network of the similarity, or None.
        networks: networks of the distances.

    Source: Stein et al., Exposing flaws of generative model evaluation metrics, section 3 (distances by network).
    """

    def __init__(self, clip: ClipImages | None, networks: Sequence[ImageNetwork]) -> None:
        super().__init__()
        self.clip = clip
        self.wrong_pairs = None if clip is None else WrongPairs(clip.channels)
        self.networks = nn.ModuleList(networks)
        self.distances = nn.ModuleList(SetDistances(network.channels) for network in networks)

    def update(
        self, rendered: Tensor, true: Tensor, condition: Tensor, counted: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Measure a batch, and keep it for the set.

        All images are sRGB in [0, 1] on one background colour; rendered ones are clamped.

        Args:
            rendered: [B, V, 3, H, W] views of the generated objects.
            true: [B, W, 3, H, W] views of the true objects.
            condition: [B, 3, H, W] images that the objects were generated from.
            counted: [B] which objects belong to the set; an object that only fills a batch does not. Default: all.

        Returns:
            `clip_similarity`, [B]: cosine x 100 of the embeddings of view and condition image, averaged over the views.
            Empty without CLIP.

        Raises:
            ValueError: if the shapes do not fit.
        """
        _check(rendered, true, condition)
        counted = torch.ones(len(rendered), dtype=torch.bool) if counted is None else counted
        counted = counted.to(rendered.device)
        for network, distances in self._sets():
            distances.update(*(network(images[counted].flatten(0, 1)) for images in (rendered, true)))
        if self.clip is None or self.wrong_pairs is None:
            return {}
        views = self.clip(rendered.flatten(0, 1)).view(*rendered.shape[:2], self.clip.channels).mean(1)
        targets = self.clip(condition)
        self.wrong_pairs.update(views[counted], targets[counted])
        return {_similarity(self.clip): 100 * (views * targets).sum(-1)}

    def compute(self) -> dict[str, float]:
        """Measure the set: all objects of all batches and ranks. Every rank must call it.

        Returns:
            `fd_<network>` and `kd_<network>`, as defined, without a factor; `clip_similarity_baseline`: mean similarity
            to the condition images of all other objects. NaN where there are too few objects.
        """
        values: dict[str, float] = {}
        for network, distances in self._sets():
            frechet, kernel = distances.compute()
            values |= {f"fd_{network.name}": float(frechet), f"kd_{network.name}": float(kernel)}
        if self.clip is not None and self.wrong_pairs is not None:
            values[_similarity(self.clip) + BASELINE] = 100 * float(self.wrong_pairs.compute())
        return values

    def reset(self) -> None:
        """Forget all objects."""
        for _, distances in self._sets():
            distances.reset()
        if self.wrong_pairs is not None:
            self.wrong_pairs.reset()

    def _sets(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.networks, self.distances, strict=True)


def build_generation_metrics(config: GenerationMetricsConfig) -> tuple[GenerationMetrics, dict[str, str]]:
    """Load the networks that were asked for and can be had.

    Args:
        config: where they are.

    Returns:
        The metrics of the networks that were found, on the CPU; and, for each metric that was asked for and cannot be
        measured, the reason and what to do, in one line.

    Raises:
        ValueError: if a file holds another network than it should.
    """
    unavailable: dict[str, str] = {}
    clip = _load(ClipImages, config.clip, ("clip_similarity",), unavailable)
    inception = _load(InceptionImages, config.inception, ("fd_inception", "kd_inception"), unavailable)
    dinov2 = _load(Dinov2Images, config.dinov2, ("fd_dinov2", "kd_dinov2"), unavailable)
    return GenerationMetrics(clip, [network for network in (inception, dinov2) if network is not None]), unavailable


def _load(
    network: Callable[[str], _Network], source: str | None, metrics: tuple[str, ...], unavailable: dict[str, str]
) -> _Network | None:
    if source is None:
        return None
    try:
        return network(source)
    except (ImportError, FileNotFoundError) as error:
        unavailable.update(dict.fromkeys(metrics, str(error)))
        return None


def _similarity(clip: ClipImages) -> str:
    return "clip_similarity" + clip.name.removeprefix("clip")


def _check(rendered: Tensor, true: Tensor, condition: Tensor) -> None:
    shapes = [list(images.shape) for images in (rendered, true, condition)]
    fits = [len(shape) for shape in shapes] == [5, 5, 4] and len({(shape[0], shape[-3]) for shape in shapes}) == 1
    if not fits or shapes[0][2] != 3:
        raise ValueError(
            "expected rendered [B, V, 3, H, W], true [B, W, 3, H, W] and condition [B, 3, H, W], "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
