"""The released weights of TripoSplat: names and shapes of their files, and what their networks give for known weights.

The listings are those of the published files. The expected numbers are what the released inference code gives for the
same weights and inputs, which both are waves of sines.
"""

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gsforge.core.octree import encode_points
from gsforge.core.sampling import farthest_points
from gsforge.core.vecseq import sobol_anchors
from gsforge.methods.deg.config import NetworkConfig
from gsforge.methods.deg.decoder import AttributeDecoder
from gsforge.methods.deg.density import OctreeDensity
from gsforge.methods.deg.encoder import SetEncoder
from gsforge.methods.deg.flow_config import FlowNetworkConfig
from gsforge.methods.deg.released import DECODER, DENSITY, ENCODER, TRANSFORMER, Rules, load_released, to_released
from gsforge.methods.deg.transformer import FlowTransformer

D = 1024


def linear(name: str, out: int, width: int = D, bias: bool = True) -> dict[str, list[int]]:
    return {f"{name}.weight": [out, width]} | ({f"{name}.bias": [out]} if bias else {})


def norm(name: str) -> dict[str, list[int]]:
    return {f"{name}.weight": [D], f"{name}.bias": [D]}


def mlp(name: str) -> dict[str, list[int]]:
    return linear(f"{name}.mlp.mlp.0", 4 * D) | linear(f"{name}.mlp.mlp.2", D, 4 * D)


def gains(name: str, q: str, k: str) -> dict[str, list[int]]:
    return {f"{name}.{q}.gamma": [16, 64], f"{name}.{k}.gamma": [16, 64]}


def self_attention(name: str) -> dict[str, list[int]]:
    return linear(f"{name}.to_qkv", 3 * D) | linear(f"{name}.to_out", D) | gains(name, "q_rms_norm", "k_rms_norm")


def cross_attention(name: str, context: int) -> dict[str, list[int]]:
    layers = linear(f"{name}.to_q", D) | linear(f"{name}.to_kv", 2 * D, context) | linear(f"{name}.to_out", D)
    return layers | gains(name, "q_rms_norm", "k_rms_norm")


def encoder_layout() -> dict[str, list[int]]:
    layout = linear("in_proj", D, 3) | linear("input_layer", D)
    layout |= linear("cond_pcd_proj", D, 1280) | linear("cond_pcd_proj2", D, 32)
    layout |= linear("mean_out", 16) | linear("logvar_out", 16)
    for block in (f"blocks.{i}" for i in range(16)):
        layout |= self_attention(f"{block}.self_attn") | mlp(block) | norm(f"{block}.norm2") | norm(f"{block}.norm2_1")
        layout |= cross_attention(f"{block}.cross_attn", D) | cross_attention(f"{block}.cross_attn2", D)
    return layout


def density_layout() -> dict[str, list[int]]:
    layout = linear("octree.in_proj", D, 3) | linear("octree.input_layer", D) | linear("octree.out_proj", 8)
    layout |= linear("octree.l_embedder.mlp.0", D, 256) | linear("octree.l_embedder.mlp.2", D)
    layout |= linear("octree.adaLN_modulation.1", 6 * D)
    for block in (f"octree.blocks.{i}" for i in range(4)):
        layout |= cross_attention(f"{block}.cross_attn", 16) | mlp(block)
    return layout


def decoder_layout() -> dict[str, list[int]]:
    layout = linear("gs.in_proj", D, 3) | linear("gs.input_layer", D) | linear("gs.out_proj", 480)
    layout |= {"gs.points_offset_perturbation": [32, 3], "gs.base_offset_scale": []}
    for block in (f"gs.blocks.{i}" for i in range(16)):
        layout |= self_attention(f"{block}.self_attn") | mlp(block) | norm(f"{block}.norm2")
        layout |= cross_attention(f"{block}.cross_attn", 16)
    return layout


def transformer_layout() -> dict[str, list[int]]:
    layout: dict[str, list[int]] = {"shift_table": [1, 2, D]}
    layout |= linear("t_embedder.mlp.0", D, 256) | linear("t_embedder.mlp.2", D) | linear("adaLN_modulation.1", 6 * D)
    layout |= linear("input_layer", D, 16) | linear("cond_embedder", D, 1280) | linear("cond_embedder2", D, 128)
    layout |= linear("cam_refiner.mlp.0", D, 5) | linear("cam_refiner.mlp.2", D)
    layout |= linear("out_layer", 16) | linear("cam_out_layer", 5)
    for blocks, rotary, count in (
        ("noise_refiner", "noise_repo_layers", 2), ("context_refiner", "context_repo_layers", 2),
        ("blocks", "repo_layers", 24),
    ):  # fmt: skip
        for i in range(count):
            block, layer = f"{blocks}.{i}", f"{rotary}.{i}"
            layout |= linear(f"{block}.attn.qkv", 3 * D) | linear(f"{block}.attn.out", D) | mlp(block)
            layout |= gains(f"{block}.attn", "q_norm", "k_norm") | norm(f"{layer}.norm")
            if blocks == "context_refiner":
                layout |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
            else:
                layout[f"{block}.shift_table"] = [1, 6 * D]
            layout |= {f"{layer}.freqs_{axis}": [size] for axis, size in enumerate((10, 10, 12))}
            layout |= linear(f"{layer}.gate_map", 128, bias=False) | linear(f"{layer}.content_map", 128, bias=False)
            layout |= linear(f"{layer}.final_map", 48, 128, bias=False)
    return layout


@pytest.mark.parametrize(
    ("part", "layout", "keys", "parameters"),
    [
        ("encoder", encoder_layout(), 492, 338_418_720),
        ("density", density_layout(), 60, 50_791_432),
        ("decoder", decoder_layout(), 328, 237_262_304 + 97),
        ("transformer", transformer_layout(), 559, 370_526_101),
    ],
)
def test_names_and_shapes_at_the_published_size(
    part: str, layout: dict[str, list[int]], keys: int, parameters: int
) -> None:
    assert len(layout) == keys  # the listing itself
    assert sum(math.prod(shape) for shape in layout.values()) == parameters
    with torch.device("meta"):
        networks: dict[str, tuple[nn.Module, Rules]] = {
            "encoder": (SetEncoder(NetworkConfig(), 1280, 32), ENCODER),
            "density": (OctreeDensity(NetworkConfig()), DENSITY),
            "decoder": (AttributeDecoder(NetworkConfig()), DECODER),
            "transformer": (FlowTransformer(FlowNetworkConfig(), 1280, 128), TRANSFORMER),
        }
        network, rules = networks[part]
        ours = to_released(network, rules)
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == layout
    constants = {"gs.points_offset_perturbation", "gs.base_offset_scale"} if part == "decoder" else set()
    assert len(network.state_dict()) == len(layout) - len(constants)  # no two of ours are one of theirs


# --- numbers

SMALL = NetworkConfig(
    width=96, heads=2, latent_channels=4, encoder_blocks=2, density_blocks=2, decoder_blocks=2, gaussians_per_anchor=8
)


def wave(shape: tuple[int, ...], phase: int, scale: float = 1.0) -> Tensor:
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(0.7 * steps + 1.3 * phase)).float().reshape(shape)


def points(shape: tuple[int, ...], phase: int) -> Tensor:
    return 0.5 + 0.5 * wave(shape, phase)


def with_known_weights(network: nn.Module, rules: Rules, folder: Path) -> nn.Module:
    """Write a file in the released layout whose weights are waves, and load it."""
    tensors = to_released(network, rules)
    learned = sorted(name for name in tensors if not re.search(r"points_offset_perturbation|base_offset_scale", name))
    for phase, name in enumerate(learned):
        old = tensors[name]
        is_gain = name.endswith("gamma") or ("norm" in name and name.endswith("weight") and old.dim() == 1)
        scale = (old.shape[-1] if old.dim() > 1 else 4) ** -0.5
        tensors[name] = is_gain + wave(tuple(old.shape), phase, scale)
    path = folder / "released.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    load_released([(network, rules)], path)
    return network


def assert_reads(tensor: Tensor, expected: list[float], tolerance: float = 2e-5) -> None:
    """Every fifth part of a tensor."""
    read = tensor.flatten()[:: max(tensor.numel() // 5, 1)][:6]
    torch.testing.assert_close(read, torch.tensor(expected), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_the_encoder_gives_what_the_released_one_gives(tmp_path: Path) -> None:
    encoder = with_known_weights(SetEncoder(SMALL, 20, 8), ENCODER, tmp_path)
    semantic, appearance = (points((1, 24, 3), 1), wave((1, 24, 20), 2)), (points((1, 24, 3), 3), wave((1, 24, 8), 4))
    mean, log_variance = encoder(farthest_points(semantic[0], 16), semantic, appearance)
    assert_reads(mean, [2.28764, 2.09134, 2.25999, 2.26715, 2.16903, 2.19421])
    assert_reads(log_variance, [-1.73247, -1.55803, -1.70812, -1.71488, -1.6278, -1.64796])


@torch.no_grad()
def test_the_decoder_gives_what_the_released_one_gives(tmp_path: Path) -> None:
    density = with_known_weights(OctreeDensity(SMALL), DENSITY, tmp_path)
    decoder = with_known_weights(AttributeDecoder(SMALL), DECODER, tmp_path)
    z = wave((1, 16, 4), 5)
    cells = (torch.tensor([[0, 0, 0], [1, 0, 1], [3, 2, 1], [1, 3, 0]]) + 0.5) / 4
    assert isinstance(density, OctreeDensity)
    children = density.child_log_probabilities(encode_points(cells, 2)[None], 2, z)
    assert_reads(children, [-1.44921, -2.33029, -2.41224, -2.50939, -1.4367, -2.31724])
    gaussians, _ = decoder(points((1, 12, 3), 6), z)
    assert_reads(gaussians.means, [0.47603, -0.28189, -0.20337, -0.26383, 0.47953, -0.16619])
    assert_reads(gaussians.scales, [0.00319, 0.00757, 0.00647, 0.00246, 0.00472, 0.0027])
    assert_reads(gaussians.opacities, [0.03753, 0.08032, 0.139, 0.05966, 0.09992, 0.06398])
    assert_reads(gaussians.sh, [0.11837, -0.36341, -1.09126, 0.89918, 0.14875, -0.24559])
    assert_reads(gaussians.quats, [0.99259, 0.99689, 0.99457, 0.99414, 0.99575, 0.99904])


@torch.no_grad()
def test_the_transformer_gives_what_the_released_one_gives(tmp_path: Path) -> None:
    sizes = FlowNetworkConfig(width=128, heads=2, blocks=2, latent_channels=4)
    transformer = with_known_weights(FlowTransformer(sizes, 20, 8), TRANSFORMER, tmp_path)
    camera, image = wave((1, 5), 8), (wave((1, 9, 20), 9), wave((1, 9, 8), 10))
    predicted = transformer(wave((1, 16, 4), 7), camera, torch.tensor([0.625]), sobol_anchors(16), *image)
    # The highest frequencies of the anchors turn by 4e5 radians, which float32 knows to 0.03.
    assert_reads(predicted.latent, [-0.75593, -0.71634, -0.50797, -0.59244, -0.66221, -0.66186], 2e-4)
    assert_reads(predicted.camera, [-1.25772, -4.27762, 2.19608, 4.7622, -2.02198], 2e-4)


@pytest.mark.parametrize("damage", ["truncated", "missing", "unknown", "shape", "constant", "absent"])
def test_files_that_do_not_fit_are_refused(damage: str, tmp_path: Path) -> None:
    decoder, path = AttributeDecoder(SMALL), tmp_path / "decoder.safetensors"
    before = decoder.head.bias.clone()
    tensors = {name: torch.ones_like(tensor) for name, tensor in to_released(decoder, DECODER).items()}
    tensors |= {name: tensor for name, tensor in to_released(decoder, DECODER).items() if name.count(".") == 1}
    if damage == "missing":
        del tensors["gs.blocks.1.norm2.weight"]
    elif damage == "unknown":
        tensors["gs.extra"] = torch.zeros(1)
    elif damage == "shape":
        tensors["gs.out_proj.bias"] = torch.zeros(7)
    elif damage == "constant":
        tensors["gs.base_offset_scale"] = torch.tensor(-1.0)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "absent":
        path.unlink()
    messages = {
        "truncated": "not a complete .safetensors file",
        "missing": r"gs\.blocks\.1\.norm2\.weight is missing",
        "unknown": r"gs\.extra is not known",
        "shape": r"gs\.out_proj\.bias is \[7\], expected \[120\]",
        "constant": r"gs\.base_offset_scale differs",
        "absent": "no released weights at",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=messages[damage]):
        load_released([(decoder, DECODER)], path)
    assert torch.equal(decoder.head.bias, before)  # nothing was loaded
