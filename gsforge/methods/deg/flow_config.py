"""Sizes, training and sampling of the DeG flow model; the defaults are the published ones."""

from dataclasses import dataclass
from typing import Literal

from gsforge.core.flow import Solver


@dataclass
class FlowNetworkConfig:
    """Sizes of the flow-matching transformer (about 370 M parameters with the defaults).

    Attributes:
        width: channels of a token.
        heads: attention heads; divides `width`.
        blocks: blocks over the joint sequence of latent tokens, image tokens and camera.
        refiner_blocks: blocks over the latent tokens alone, and as many over the image tokens alone, before them.
        latent_channels: channels of a latent token, as of the VAE.
        positions: what tells latent tokens apart. `anchors`: sinusoids of the anchor that each is assigned to, as the
            paper describes. `anchors+rotary`: also rotary embeddings with learned positions, as released. `none`.
        camera_token: denoise the camera of the image along with the latent.
        checkpoint_blocks: keep the input of each block alone and compute it again in the backward pass.
        compile_blocks: compile each block with torch.compile on first use, a minute or so; needs a C++ compiler.
    """

    width: int = 1024
    heads: int = 16
    blocks: int = 24
    refiner_blocks: int = 2
    latent_channels: int = 16
    positions: Literal["none", "anchors", "anchors+rotary"] = "anchors+rotary"
    camera_token: bool = True
    checkpoint_blocks: bool = False
    compile_blocks: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if self.width % self.heads or self.width // self.heads % 2 or self.width < 48:
            raise ValueError(
                "network: expected a width of at least 48 that heads divides into even parts, got "
                f"{self.width} and {self.heads}"
            )
        if min(self.blocks, self.latent_channels) < 1 or self.refiner_blocks < 0:
            raise ValueError(
                "network: expected at least 1 block and 1 latent channel, and no negative number of blocks"
            )


@dataclass
class FlowTrainingConfig:
    """What a training step of the flow model draws and weighs.

    Attributes:
        tokens: latent tokens M, as in the data.
        image_size: side of the images in pixels, as in the data.
        time_mean: mean of the normal whose sigmoid is the time; published: 0 at 1024 tokens, 0.3 at 2048, 0.6 at 4096,
            1 at 8192.
        condition_dropout: share of the images that are hidden, so that the model can also do without.
        camera_weight: weight of the camera's error beside that of the latent, each a mean over its numbers. Published:
            every number counts the same, which is 5 / (16 M) here and leaves the camera next to nothing.
        normalize_latents: shift and scale each channel to mean 0 and deviation 1 over the training set, as a fresh run
            measures it. Published: no; the model is then tied to one scale of the VAE's latents.
    """

    tokens: int = 1024
    image_size: int = 512
    time_mean: float = 0.0
    condition_dropout: float = 0.1
    camera_weight: float = 0.1
    normalize_latents: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if min(self.tokens, self.image_size) < 1 or not 0 <= self.condition_dropout < 1 or self.camera_weight < 0:
            raise ValueError(
                "training: expected tokens and image_size >= 1, 0 <= condition_dropout < 1 and camera_weight >= 0, got "
                f"{self.tokens}, {self.image_size}, {self.condition_dropout} and {self.camera_weight}"
            )


@dataclass
class FlowSamplingConfig:
    """How objects are generated.

    Attributes:
        steps: of the sampler.
        guidance: g in g c - (g - 1) u, c with the image and u without; 1 asks the network once a step instead of twice.
        shift: above 1 more of the steps are spent on noisy times.
        solver: `euler`, or `heun` with two predictions a step.
        anchors: density samples P, of K Gaussians each.
    """

    steps: int = 20
    guidance: float = 3.0
    shift: float = 3.0
    solver: Solver = "euler"
    anchors: int = 8192

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if self.steps < 1 or not self.shift > 0 or self.anchors < 1:
            raise ValueError(
                f"sampling: expected steps >= 1, shift > 0 and anchors >= 1, got {self.steps}, {self.shift} and "
                f"{self.anchors}"
            )
