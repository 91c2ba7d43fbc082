"""The published configurations: every key is known, the networks have the published size, the stages fit together."""

import itertools
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
from gsforge.methods.deg.flow_config import FlowNetworkConfig
from gsforge.methods.deg.transformer import FlowTransformer

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
TOY = ("vae_toy.yaml", "vae_toy_stage2.yaml", "vae_toy_stage3.yaml")
BASE = ("vae_base.yaml", "vae_base_stage2.yaml", "vae_base_stage3.yaml")
PAIRS = [*itertools.pairwise(TOY), *itertools.pairwise(BASE)]
RATES = dict(zip(BASE, (1e-4, 1e-4, 2e-5), strict=True))
FLOWS = ("flow_base.yaml", *(f"flow_base_stage{stage}.yaml" for stage in (2, 3, 4, 5)))
# Tokens, image size, steps, learning rate, batch of 32 GPUs, mean of the times.
PUBLISHED_FLOWS = [
    (1024, 512, 300_000, 1e-4, 384, 0.0),
    (2048, 512, 50_000, 5e-5, 256, 0.3),
    (4096, 512, 50_000, 2e-5, 128, 0.6),
    (8192, 512, 100_000, 2e-5, 64, 1.0),
    (8192, 1024, 150_000, 1e-5, 64, 1.0),
]


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
    networks = [options(name)["network"] | {"checkpoint_blocks": True} for name in (first, second)]
    assert networks[0] == networks[1]
    assert options(first)["semantic_features"] == options(second)["semantic_features"]
    assert read(second)["init_from"] == read(first)["run_dir"]


@pytest.mark.parametrize("name", [*TOY, *BASE])
def test_points_views_and_schedule_fit_the_sampling(name: str) -> None:
    config, model = read(name), options(name)
    data, sampling = config["data"]["init_args"], model["sampling"]
    assert data["points"] >= 2 * sampling["context_points"]
    assert min(data["views"], data["eval_views"]) > sampling["feature_views"]
    assert max(*sampling["tokens"], sampling["target_points"]) <= sampling["context_points"]
    assert model["lr_scheduler"]["init_args"]["total_steps"] == config["trainer"]["max_steps"]


def rates_of(name: str, steps: list[int]) -> list[float]:
    """Learning rates of a few steps; the rate is a function of the step alone."""
    model = options(name)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], **model["optimizer"]["init_args"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, **model["lr_scheduler"]["init_args"])
    optimizer.step()
    rates = []
    for step in steps:
        schedule.last_epoch = step - 1
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    return rates


@pytest.mark.parametrize("name", [*BASE, *FLOWS])
def test_the_schedule_warms_up_for_200_steps_and_then_falls_as_a_cosine(name: str) -> None:
    total, most = read(name)["trainer"]["max_steps"], options(name)["optimizer"]["init_args"]["lr"]
    last = 0.1 if name in FLOWS else 0.01
    rates = rates_of(name, [1, 100, 199, 201, total // 2, total - 1])
    assert rates[0] < 0.03 * most
    assert rates[1] == pytest.approx(most / 2, rel=0.03)
    assert rates[2:4] == pytest.approx([most, most], rel=1e-3)
    assert rates[4] == pytest.approx(most * (1 + last) / 2, rel=0.02)
    assert rates[5] == pytest.approx(last * most, rel=1e-2)
    assert most == pytest.approx(RATES.get(name, most))


# --- the flow model


@pytest.mark.parametrize(("name", "published"), zip(FLOWS, PUBLISHED_FLOWS, strict=True))
def test_the_stages_of_the_flow_model_are_the_published_ones(name: str, published: Any, tmp_path: Path) -> None:
    config = parse(name, "gpu.yaml", tmp_path)
    model, data = config.model.init_args, config.data.init_args
    training, rate = model.training, model.optimizer.init_args.lr
    steps = config.trainer.max_steps
    found = (training.tokens, training.image_size, steps, rate, data.batch_size, training.time_mean)
    assert found == published
    assert (data.tokens, data.condition_size) == (training.tokens, training.image_size)
    assert model.lr_scheduler.init_args.total_steps == steps
    assert model.semantic_tokens.init_args.network.init_args.image_size == training.image_size
    assert model.network.as_dict() | {"checkpoint_blocks": False, "compile_blocks": False} == vars(FlowNetworkConfig())
    assert training.condition_dropout == 0.1


@pytest.mark.parametrize(("first", "second"), itertools.pairwise(FLOWS))
def test_each_stage_of_the_flow_model_begins_with_the_weights_of_the_one_before(first: str, second: str) -> None:
    assert read(second)["init_from"] == read(first)["run_dir"]
    assert options(first)["network"] | {"checkpoint_blocks": True} == options(second)["network"] | {
        "checkpoint_blocks": True
    }


def test_the_flow_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = FlowTransformer(FlowNetworkConfig(**options(FLOWS[0])["network"]), 1280, 128)
    assert parameters(network) == 370_526_101
