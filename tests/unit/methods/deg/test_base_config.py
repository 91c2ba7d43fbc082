"""The published configurations: every key is known, the networks have the published size, the stages fit together."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from gsforge.cli.run import RunCLI
from gsforge.methods.deg.config import NetworkConfig
from gsforge.methods.deg.decoder import AttributeDecoder
from gsforge.methods.deg.density import OctreeDensity
from gsforge.methods.deg.encoder import SetEncoder

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
PAIRS = [("vae_toy.yaml", "vae_toy_stage2.yaml"), ("vae_base.yaml", "vae_base_stage2.yaml")]
BASE = PAIRS[1]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / "deg" / name).read_text())


def options(name: str) -> dict[str, Any]:
    return read(name)["model"]["init_args"]


class ParsedOnly(RunCLI):
    """Checks all keys and types, and builds nothing: the extractors would load their weights."""

    def instantiate_classes(self) -> None:
        """Stop after parsing."""


def parse(name: str, trainer: str, folder: Path) -> Any:
    files = ["--config", str(CONFIGS / "deg" / name), "--config", str(CONFIGS / "trainer" / trainer)]
    return ParsedOnly([*files, "--run_dir", str(folder)], run=False).config


@pytest.mark.parametrize("name", BASE)
@pytest.mark.parametrize("trainer", ["cpu.yaml", "gpu.yaml"])
def test_every_key_is_known(name: str, trainer: str, tmp_path: Path) -> None:
    config = parse(name, trainer, tmp_path)
    parsed = config.model.init_args
    assert parsed.network.as_dict() == options(name)["network"]
    assert parsed.semantic_features.class_path == "gsforge.nn.features.TimmFeatures"
    assert config.trainer.callbacks[0].init_args.decay == 0.9999


def test_a_key_that_does_not_exist_is_noticed(tmp_path: Path) -> None:
    text = (CONFIGS / "deg" / BASE[0]).read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("context_points:", "contxt_points:"))
    with pytest.raises(Exception, match="contxt_points"):
        parse(str(wrong), "cpu.yaml", tmp_path)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_networks_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        config = NetworkConfig(**options(BASE[1])["network"])
        networks = SetEncoder(config, 1280, 32), OctreeDensity(config), AttributeDecoder(config)
    assert [parameters(network) for network in networks] == [338_418_720, 50_791_432, 237_262_304]


def test_the_written_sizes_are_the_published_defaults() -> None:
    assert options(BASE[0])["network"] == vars(NetworkConfig())


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_both_stages_have_the_same_networks_and_features(first: str, second: str) -> None:
    assert options(first)["network"] == options(second)["network"]
    assert options(first)["semantic_features"] == options(second)["semantic_features"]
    assert read(second)["init_from"] == read(first)["run_dir"]


@pytest.mark.parametrize("name", [name for pair in PAIRS for name in pair])
def test_points_views_and_schedule_fit_the_sampling(name: str) -> None:
    config, model = read(name), options(name)
    data, sampling = config["data"]["init_args"], model["sampling"]
    assert data["points"] >= 2 * sampling["context_points"]
    assert min(data["views"], data["eval_views"]) > sampling["feature_views"]
    assert max(*sampling["tokens"], sampling["target_points"]) <= sampling["context_points"]
    assert model["lr_scheduler"]["init_args"]["total_steps"] == config["trainer"]["max_steps"]


@pytest.mark.parametrize("name", BASE)
def test_the_schedule_warms_up_for_200_steps_and_ends_at_one_percent(name: str) -> None:
    model = options(name)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], **model["optimizer"]["init_args"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, **model["lr_scheduler"]["init_args"])

    def rate(step: int) -> float:
        schedule.last_epoch = step - 1  # the rate is a function of the step alone
        optimizer.step()
        schedule.step()
        return schedule.get_last_lr()[0]

    rates = [rate(step) for step in (1, 100, 199, 201, 50_000, 99_999)]
    assert rates[0] == pytest.approx(1e-6, rel=0.01)
    assert rates[1] == pytest.approx(5e-5, rel=0.03)
    assert rates[2:4] == pytest.approx([1e-4, 1e-4], rel=1e-3)
    assert rates[4] == pytest.approx(5e-5, rel=0.02)
    assert rates[5] == pytest.approx(1e-6, rel=1e-3)
