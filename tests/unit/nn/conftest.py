"""A vision transformer of a published layout, small and random."""

import pytest
from torch import nn


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module]:
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("vit")
    arguments = {"depth": 2, "embed_dim": 48, "num_heads": 2, "init_values": 1.0}
    model = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **arguments).eval()
    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    return str(folder), model
