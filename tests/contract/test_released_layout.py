"""A trained VAE goes out in the layout of the released weights, in half precision, and comes back from it."""

from pathlib import Path

import torch

from gsforge.cli import main
from tests.contract.conftest import ROOT, ToyRun


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_starts_from_exported_weights_in_the_released_layout(small_set: Path, tmp_path: Path) -> None:
    vae = ToyRun(ROOT / "configs" / "deg" / "vae_toy_stage2.yaml", small_set)
    first, second, released = tmp_path / "first", tmp_path / "second", tmp_path / "released"
    assert main(["fit", *vae.options(first, steps=2)]) == 0
    assert main(["export", str(first), "--weights", str(released), "--layout", "released"]) == 0
    assert {path.name for path in released.glob("*.safetensors")} == {
        "triposplat_vae_encoder_fp16.safetensors", "triposplat_vae_decoder_fp16.safetensors"
    }  # fmt: skip
    still = ["--model.optimizer.init_args.lr=0.0", f"--init_from={released}"]
    assert main(["fit", *vae.options(second, steps=1), *still]) == 0
    expected, found = weights(first), weights(second)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.half().float()), name
