"""Sizes of the networks: the defaults are the published ones, and what cannot be built is refused."""

from pathlib import Path

import pytest

from gsforge.cli import main
from gsforge.methods.deg.config import NetworkConfig


def test_defaults_are_published() -> None:
    config = NetworkConfig()
    assert (config.width, config.heads, config.latent_channels) == (1024, 16, 16)
    assert (config.encoder_blocks, config.density_blocks, config.decoder_blocks) == (16, 4, 16)
    assert (config.octree_depth, config.gaussians_per_anchor, config.embedding_octaves) == (8, 32, 10)
    assert (config.expansion, config.initial_scale, config.minimum_scale) == (0.05, 0.004, 9e-4)
    assert (config.initial_opacity, config.initial_gate, config.initial_log_variance) == (0.1, 0, 0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 10, "heads": 4}, "network.heads: 4 does not divide network.width 10"),
        ({"octree_depth": 0}, "network.octree_depth: expected 1 to 20"),
        ({"octree_depth": 21}, "got 21"),
        ({"initial_scale": 9e-4}, "network.initial_scale 0.0009 must exceed network.minimum_scale"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(sizes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**sizes)


@pytest.mark.parametrize(
    ("option", "message", "code"),
    [
        ("network.widht=8", "there is no option 'network.widht'; did you mean 'network.width'?", 2),
        ("semantic_features.init_args.scals=[1]", "there is no option 'scals'; did you mean 'scales'?", 2),
        ("optimizer.init_args.lrr=1", "model (torch.optim.AdamW): there is no option 'lrr'; did you mean 'lr'?", 2),
        ("stage=appearence", "stage: Expected a typing.Literal['structure', 'appearance', 'refinement']", 2),
        ("network.heads=5", "error: network.heads: 5 does not divide network.width 96", 2),
        ("stage=appearance", "error: stage 'appearance' needs appearance_features", 2),
        ("sampling.tokens=[5000]", "error: sampling.tokens: 5000 query points cannot be chosen from", 2),
    ],
)
def test_a_mistake_in_the_configuration_is_one_message(
    option: str, message: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = Path(__file__).resolve().parents[4] / "configs" / "deg" / "vae_toy.yaml"
    run_dir = tmp_path / "run"
    assert main(["fit", "--config", str(config), f"--run_dir={run_dir}", f"--model.init_args.{option}"]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 2
    assert not run_dir.exists()


def test_a_mistake_in_a_file_names_group_and_key(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = Path(__file__).resolve().parents[4] / "configs" / "deg" / "vae_toy.yaml"
    mistake = tmp_path / "mistake.yaml"
    mistake.write_text("model: {init_args: {sampling: {contxt_points: 3}}}")
    assert main(["fit", "--config", str(config), "--config", str(mistake), f"--run_dir={tmp_path / 'run'}"]) == 2
    assert "no option 'sampling.contxt_points'; did you mean 'sampling.context_points'?" in capsys.readouterr().err
