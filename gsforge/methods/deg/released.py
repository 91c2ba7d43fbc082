"""The released weights of TripoSplat: their names beside ours, reading and writing their files.

Every parameter of ours is one of theirs, of the same shape. Theirs are float16 safetensors files; the decoder's file
holds the density (`octree.`) and the attribute decoder (`gs.`), with two constants of the latter.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gsforge.methods.deg.decoder import AttributeDecoder, inverse_softplus

RELEASED_ENCODER = "triposplat_vae_encoder_fp16.safetensors"
RELEASED_DECODER = "triposplat_vae_decoder_fp16.safetensors"
RELEASED_TRANSFORMER = "triposplat_fp16.safetensors"

Rules = tuple[tuple[str, str], ...]

# Ours -> theirs. All rules of a part are applied to a name, in order.
_ATTENTION: Rules = ((r"\.norm_([qk])\.gain$", r".\1_rms_norm.gamma"), (r"\.perceptron\.", ".mlp.mlp."))
ENCODER: Rules = (
    (r"^query_embedding\.linear\.", "in_proj."),
    (r"^query_embedding\.mix\.", "input_layer."),
    (r"^semantic_set\.features\.", "cond_pcd_proj."),
    (r"^appearance_set\.features\.", "cond_pcd_proj2."),
    (r"^appearance_layers\.(\d+)\.norm\.", r"blocks.\1.norm2_1."),
    (r"^appearance_layers\.(\d+)\.attention\.", r"blocks.\1.cross_attn2."),
    (r"\.self_attention\.", ".self_attn."),
    (r"\.semantic\.norm\.", ".norm2."),
    (r"\.semantic\.attention\.", ".cross_attn."),
    (r"^to_mean\.", "mean_out."),
    (r"^to_log_variance\.", "logvar_out."),
    *_ATTENTION,
)
DENSITY: Rules = (
    (r"^cell_embedding\.linear\.", "in_proj."),
    (r"^cell_embedding\.mix\.", "input_layer."),
    (r"^resolution_embedding\.perceptron\.", "l_embedder.mlp."),
    (r"^to_modulation\.", "adaLN_modulation.1."),
    (r"\.attention\.", ".cross_attn."),
    (r"^head\.", "out_proj."),
    *_ATTENTION,
    (r"^", "octree."),
)
DECODER: Rules = (
    (r"^anchor_embedding\.linear\.", "in_proj."),
    (r"^anchor_embedding\.mix\.", "input_layer."),
    (r"\.self_attention\.", ".self_attn."),
    (r"\.latent_attention\.", ".cross_attn."),
    (r"\.latent_norm\.", ".norm2."),
    (r"^head\.", "out_proj."),
    *_ATTENTION,
    (r"^", "gs."),
)
TRANSFORMER: Rules = (
    (r"^latent_in\.", "input_layer."),
    (r"^time_embedding\.perceptron\.", "t_embedder.mlp."),
    (r"^to_modulation\.", "adaLN_modulation.1."),
    (r"^semantic_in\.", "cond_embedder."),
    (r"^appearance_in\.", "cond_embedder2."),
    (r"^camera_in\.", "cam_refiner.mlp."),
    (r"^final_table$", "shift_table"),
    (r"^latent_out\.", "out_layer."),
    (r"^camera_out\.", "cam_out_layer."),
    (r"^latent_blocks\.(\d+)\.rotary\.", r"noise_repo_layers.\1."),
    (r"^image_blocks\.(\d+)\.rotary\.", r"context_repo_layers.\1."),
    (r"^blocks\.(\d+)\.rotary\.", r"repo_layers.\1."),
    (r"^latent_blocks\.", "noise_refiner."),
    (r"^image_blocks\.", "context_refiner."),
    (r"\.frequencies\.(\d)$", r".freqs_\1"),
    (r"\.(gate|content)\.weight$", r".\1_map.weight"),
    (r"\.to_positions\.", ".final_map."),
    (r"\.table$", ".shift_table"),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.perceptron_norm\.", ".norm2."),
    (r"\.attention\.norm_([qk])\.gain$", r".attn.\1_norm.gamma"),
    (r"\.attention\.to_(qkv|out)\.", r".attn.\1."),
    (r"\.perceptron\.", ".mlp.mlp."),
)


def released_name(name: str, rules: Rules) -> str:
    """Their name of a parameter.

    Args:
        name: ours, within one of the networks.
        rules: ENCODER, DENSITY, DECODER or TRANSFORMER.

    Returns:
        Theirs, with the prefix that it has in its file.
    """
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def to_released(network: nn.Module, rules: Rules) -> dict[str, Tensor]:
    """Parameters of a network by their released names.

    Args:
        network: SetEncoder, OctreeDensity, AttributeDecoder or FlowTransformer.
        rules: those of the network.

    Returns:
        Name -> tensor, with the constants of the attribute decoder.
    """
    tensors = {released_name(name, rules): tensor for name, tensor in network.state_dict().items()}
    if isinstance(network, AttributeDecoder):
        tensors["gs.points_offset_perturbation"] = network.hammersley_logits
        tensors["gs.base_offset_scale"] = torch.tensor(inverse_softplus(network.config.expansion))
    return tensors


def load_released(networks: Iterable[tuple[nn.Module, Rules]], path: Path) -> None:
    """Load one released file into the networks that it holds.

    Args:
        networks: each with its rules; together they must have every tensor of the file.
        path: a .safetensors file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or its names or shapes are not those of the networks; lists the first few.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no released weights at {path}")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete .safetensors file: {error}") from error
    parts = [(network, rules, to_released(network, rules)) for network, rules in networks]
    expected = {name: tensor for _, _, tensors in parts for name, tensor in tensors.items()}
    _check_layout(expected, found, path)
    for network, rules, _ in parts:
        ours = network.state_dict()
        network.load_state_dict({name: found[released_name(name, rules)].to(ours[name].dtype) for name in ours})


def _check_layout(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is not known" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if expected[name].shape != found[name].shape:
            problems.append(f"{name} is {list(found[name].shape)}, expected {list(expected[name].shape)}")
        elif name.startswith("gs.") and name.count(".") == 1 and not _close(expected[name], found[name]):
            problems.append(f"{name} differs: the configuration spreads Gaussians in another way")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{path} does not fit the networks: {'; '.join(problems[:5])}{more}. Set `network` to the sizes of the file"
        )


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether a constant is the same, up to half precision."""
    return torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3)
