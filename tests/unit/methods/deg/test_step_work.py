"""What the modules say of the work in a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gsforge.methods.deg.flow import DeGFlow
from gsforge.methods.deg.flow_config import FlowNetworkConfig, FlowTrainingConfig
from gsforge.methods.deg.module import DeGVAE
from gsforge.nn.features import FilterBankFeatures
from gsforge.nn.tokens import PatchTokens

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # steps are called without a trainer
OBJECTS, TOKENS, IMAGE_TOKENS = 2, 96, 64


@pytest.mark.parametrize("camera_token", [True, False])
def test_the_flow_model_counts_its_flops_as_torch_does(camera_token: bool) -> None:
    sizes = {"width": 96, "heads": 2, "blocks": 3, "refiner_blocks": 1, "latent_channels": 4}
    model = DeGFlow(
        PatchTokens(FilterBankFeatures([1.0], stride=8), octaves=1),
        PatchTokens(FilterBankFeatures([2.0], stride=8), octaves=2),
        network=FlowNetworkConfig(camera_token=camera_token, **sizes),  # type: ignore[arg-type]
        training=FlowTrainingConfig(tokens=TOKENS, image_size=64),
    )
    batch = {"latent": torch.randn(OBJECTS, TOKENS, 4), "camera": torch.randn(OBJECTS, 5)}
    batch["image"] = torch.rand(OBJECTS, 3, 64, 64)
    work = model.step_work(batch)
    assert work["tokens"] == OBJECTS * (TOKENS + IMAGE_TOKENS + camera_token)
    conditions = model.conditions(batch["image"])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        predicted = model.predict_velocity((batch["latent"], batch["camera"]), torch.rand(OBJECTS), conditions)
        sum(part.square().mean() for part in predicted if part is not None).backward()
    assert work["flops"] == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_vae_counts_points_and_the_tokens_of_the_step(
    build: Callable[..., DeGVAE], batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("structure", sampling={"tokens": [4, 6]})
    encode, seen = model.encode, []

    def encode_and_note(batch: dict[str, Any], tokens: int) -> Any:
        seen.append(tokens)
        return encode(batch, tokens)

    monkeypatch.setattr(model, "encode", encode_and_note)
    for step in range(4):
        monkeypatch.setattr(DeGVAE, "global_step", step)
        model.training_step(batch, 0)
        assert model.step_work(batch) == {"points": 2 * 48, "tokens": 2 * seen[-1]}
    assert set(seen) == {4, 6}
