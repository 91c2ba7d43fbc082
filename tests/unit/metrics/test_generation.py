"""Metrics of generated objects against brute force, and the libraries that published the networks."""

import json
import multiprocessing
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import Inception3, inception_v3
from torchvision.transforms.functional import normalize, to_pil_image

import gsforge.metrics.distances
import gsforge.metrics.inception
from gsforge.metrics.distances import SetDistances
from gsforge.metrics.generation import GenerationMetrics, GenerationMetricsConfig, build_generation_metrics
from gsforge.metrics.inception import InceptionImages
from gsforge.metrics.networks import ClipImages, Dinov2Images
from gsforge.metrics.pairs import WrongPairs

transformers = pytest.importorskip("transformers")
needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork processes"
)
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_CLIP, TINY_DINOV2 = "_d32x2p14_28px", "_d32x2p14_224px"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP as published on the hub, text half included."""
    parts = TINY | {"intermediate_size": 64}
    vision = parts | {"image_size": 28, "patch_size": 14, "projection_dim": 24}
    text = parts | {"vocab_size": 9, "bos_token_id": 7, "eos_token_id": 8}
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(image_size=56, patch_size=14, **TINY)).save_pretrained(folder)
    return folder


def object_views(objects: int, views: int = 2, size: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(objects * views, 3, 5, 5, generator=generator)
    return interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1).unflatten(0, (objects, views))


def activate(network: nn.Module) -> None:
    """Batch norms as after training: drawn anew, the activations of deep layers vanish."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias, std=0.2)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.15, 0.25)


def test_parts_give_what_the_whole_gives(clip_folder: Path, dinov2_folder: Path) -> None:
    metrics, missing = build_generation_metrics(
        GenerationMetricsConfig(clip=str(clip_folder), dinov2=str(dinov2_folder))
    )
    assert not missing
    rendered, true = object_views(5, seed=1), object_views(5, views=3, seed=2)
    at_once = metrics.update(rendered, true, true[:, 0])
    whole = metrics.compute()
    metrics.reset()
    # The last object of the last batch only fills it.
    order, counted = [[0], [1, 2, 3], [4, 0]], [[True], [True] * 3, [True, False]]
    parts = [
        metrics.update(rendered[batch], true[batch], true[batch, 0], torch.tensor(flags))
        for batch, flags in zip(order, counted, strict=True)
    ]
    assert metrics.compute() == pytest.approx(whole, rel=1e-5)
    (name,) = at_once
    torch.testing.assert_close(torch.cat([part[name] for part in parts])[:5], at_once[name])
    assert set(whole) == {f"fd_dinov2{TINY_DINOV2}", f"kd_dinov2{TINY_DINOV2}", f"clip_similarity{TINY_CLIP}_baseline"}
    # Nothing of it goes into a checkpoint, and no parameter is trained.
    assert not metrics.state_dict()
    assert not any(parameter.requires_grad for parameter in metrics.parameters())


def measured(batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    distances, pairs = SetDistances(6), WrongPairs(6)
    for generated, real in batches:
        distances.update(generated, real)
        pairs.update(generated, real)
    return [float(value) for value in (*distances.compute(), pairs.compute())]


def measure_on_a_rank(rank: int, folder: Path, batches: list[tuple[Tensor, Tensor]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(measured(batches)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@needs_fork
@pytest.mark.parametrize("shares", [(2, 1), (3, 0)], ids=["uneven", "one rank without images"])
def test_two_ranks_measure_what_one_does(shares: tuple[int, int], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [tuple(torch.randn(2, size, 6, generator=generator)) for size in (4, 3, 5)]
    context = multiprocessing.get_context("fork")
    parts = [batches[: shares[0]], batches[shares[0] :]]
    ranks = [context.Process(target=measure_on_a_rank, args=(rank, tmp_path, parts[rank])) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    assert found[0] == pytest.approx(measured(batches), rel=1e-9)


@pytest.mark.parametrize("shape", [(512, 512), (300, 260), (100, 128)])
def test_clip_images_are_prepared_as_published(clip_folder: Path, shape: tuple[int, int]) -> None:
    network = ClipImages(str(clip_folder))
    network.side = 224
    image = interpolate(object_views(1)[0], shape, mode="bicubic").clamp(0, 1)
    pixels = (image * 255).round().byte()
    pictures = [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in pixels]
    expected = transformers.CLIPImageProcessor()(pictures, return_tensors="pt").pixel_values
    levels = (network.preprocess(pixels) - expected).abs() * network.std * 255
    # The two may round to neighbouring levels of 8 bits, which resizing works with.
    assert levels.max() < 1.01
    assert levels.mean() < 0.25


def test_clip_similarity_is_the_cosine_to_the_condition(clip_folder: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(clip_folder)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    rendered, condition = object_views(3, seed=1), object_views(3, views=1, seed=2)[:, 0]

    def embedded(images: Tensor) -> Tensor:
        pixels = processor([to_pil_image(image) for image in images], return_tensors="pt").pixel_values
        with torch.no_grad():
            vectors = model.visual_projection(model.vision_model(pixels).pooler_output)
        return vectors / vectors.norm(dim=-1, keepdim=True)

    views, targets = embedded(rendered.flatten(0, 1)).unflatten(0, (3, 2)), embedded(condition)
    cosines = 100 * torch.einsum("ivc,jc->ij", views, targets) / 2
    metrics, _ = build_generation_metrics(GenerationMetricsConfig(clip=str(clip_folder)))
    # Autocast, as in a test under mixed precision, changes nothing.
    with torch.autocast("cpu", torch.bfloat16):
        found = metrics.update(rendered, rendered, condition)
    name = f"clip_similarity{TINY_CLIP}"
    torch.testing.assert_close(found[name], cosines.diagonal(), rtol=0, atol=0.1)
    wrong = cosines[~torch.eye(3, dtype=torch.bool)].mean().item()
    assert metrics.compute() == {name + "_baseline": pytest.approx(wrong, abs=0.1)}
    assert abs(wrong - cosines.diagonal().mean()) > 0.5
    same = metrics.update(condition[:, None], rendered, condition)
    torch.testing.assert_close(same[name], torch.full((3,), 100.0))


def test_dinov2_is_the_class_token_at_224_px(dinov2_folder: Path) -> None:
    images = object_views(2, size=300)[:, 0]
    pictures = [to_pil_image(image).resize((224, 224), Image.Resampling.BICUBIC) for image in images]
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures])
    model = transformers.Dinov2Model.from_pretrained(dinov2_folder)
    with torch.no_grad():
        expected = model(normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).last_hidden_state[:, 0]
    network = Dinov2Images(str(dinov2_folder))
    torch.testing.assert_close(network(images), expected, rtol=0, atol=0.05)
    assert network(images[:0]).shape == (0, network.channels)
    with pytest.raises(ValueError, match="merge batch and views"):
        network(images[None])


def test_torchvision_inception_is_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsforge.metrics.inception, "_SIDE", 107)  # a tenth of the time of 299 px
    torch.manual_seed(0)
    model = inception_v3(weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    activate(model)
    torch.save(model.state_dict(), tmp_path / "inception_v3_google.pth")
    metrics, missing = build_generation_metrics(
        GenerationMetricsConfig(inception=f"{tmp_path}/inception_v3_google.pth")
    )
    assert not missing
    pixels = (object_views(1, views=1, size=107)[0] * 255).round() / 255
    model.fc = nn.Identity()
    with torch.no_grad():
        expected = model(normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    (network,) = metrics.networks
    torch.testing.assert_close(network(pixels), expected, rtol=0, atol=1e-4 * expected.std().item())
    assert network.name == "inception_tv"


def test_fid_inception_pools_as_its_weights_expect(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    activate(model)
    torch.save(model.state_dict(), tmp_path / "pt_inception-2015-12-05.pth")
    network = InceptionImages(str(tmp_path / "pt_inception-2015-12-05.pth"))
    assert network.name == "inception"
    sides: list[torch.Size] = []
    network.network.register_forward_pre_hook(lambda _, images: sides.append(images[0].shape[-2:]))
    assert network(object_views(1)[0, :1]).shape == (1, 2048)
    assert sides == [(299, 299)]
    # A mean over the pixels inside a constant map is the same everywhere; torchvision's counts zeros at the border.
    for name, channels in (("Mixed_5b", 192), ("Mixed_5d", 288), ("Mixed_6e", 768), ("Mixed_7b", 1280)):
        constant = torch.rand(1, channels, 1, 1).expand(-1, -1, 7, 7)
        with torch.no_grad():
            ours, theirs = (net.get_submodule(name).eval()(constant)[:, -32:] for net in (network.network, model))
        assert ours.std((-2, -1)).max() < 1e-6 < 1e-4 < theirs.std((-2, -1)).max(), name
        torch.testing.assert_close(ours[..., 3, 3], theirs[..., 3, 3])
    # A maximum spreads one bright pixel evenly over its neighbours.
    spot = torch.zeros(1, 2048, 7, 7)
    spot[..., 3, 3] = torch.rand(2048)
    with torch.no_grad():
        spread = network.network.Mixed_7c(spot)[:, -192:] - network.network.Mixed_7c(torch.zeros_like(spot))[:, -192:]
        pooled = (
            network.network.Mixed_7c.branch_pool(spot)[..., 3, 3]
            - network.network.Mixed_7c.branch_pool(torch.zeros_like(spot))[..., 3, 3]
        )
    torch.testing.assert_close(spread[..., 2:5, 2:5], pooled[..., None, None].expand(-1, -1, 3, 3))


def test_what_cannot_be_measured_has_a_reason(
    clip_folder: Path, dinov2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = GenerationMetricsConfig(
        clip="openai/clip-vit-large-patch14", inception="/nowhere/pt_inception.pth", dinov2=str(tmp_path)
    )
    metrics, missing = build_generation_metrics(config)
    assert set(missing) == {"clip_similarity", "fd_inception", "kd_inception", "fd_dinov2", "kd_dinov2"}
    assert "'openai/clip-vit-large-patch14'" in missing["clip_similarity"]
    assert "pt_inception-2015-12-05-6726825d.pth" in missing["kd_inception"]
    assert all("give the local copy" in reason and "\n" not in reason for reason in missing.values())
    views = object_views(2)
    assert metrics.update(views, views, views[:, 0]) == {}
    assert metrics.compute() == {}
    assert build_generation_metrics(GenerationMetricsConfig())[1] == {}
    # Another network than asked for is a mistake, not a lack.
    with pytest.raises(ValueError, match="expected a model of type clip, got dinov2"):
        build_generation_metrics(GenerationMetricsConfig(clip=str(dinov2_folder)))
    with pytest.raises(ValueError, match="expected a model of type dinov2, got clip"):
        build_generation_metrics(GenerationMetricsConfig(dinov2=str(clip_folder)))
    with pytest.raises(ValueError, match="expected Inception-v3 as ported for FID"):
        build_generation_metrics(GenerationMetricsConfig(inception=str(clip_folder)))


def test_shapes_are_checked() -> None:
    metrics, views = GenerationMetrics(None, []), object_views(2)
    for condition in (views, views[:1, 0], views[:, 0, :1]):
        with pytest.raises(ValueError, match="expected rendered"):
            metrics.update(views, views, condition)


def published_names(block: str, layers: int, inner: list[str], outer: list[str]) -> set[str]:
    return {block.format(layer, name) for layer in range(layers) for name in inner} | set(outer)


def both(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def test_published_clip_and_dinov2_layouts_load(clip_folder: Path, dinov2_folder: Path) -> None:
    # Names in the files of openai/clip-vit-large-patch14 and facebook/dinov2-large on the hub.
    attention = [f"self_attn.{name}_proj" for name in "kvqo"[:3]] + ["self_attn.out_proj"]
    clip = published_names(
        "vision_model.encoder.layers.{}.{}",
        2,
        both(*attention, "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
        [
            "visual_projection.weight",
            "vision_model.embeddings.class_embedding",
            "vision_model.embeddings.patch_embedding.weight",
            "vision_model.embeddings.position_embedding.weight",
            *both("vision_model.pre_layrnorm", "vision_model.post_layernorm"),
        ],
    )
    attention = [f"attention.attention.{name}" for name in ("query", "key", "value")] + ["attention.output.dense"]
    scales = ["layer_scale1.lambda1", "layer_scale2.lambda1"]
    dinov2 = published_names(
        "encoder.layer.{}.{}",
        2,
        [*both(*attention, "norm1", "norm2", "mlp.fc1", "mlp.fc2"), *scales],
        [
            *(f"embeddings.{name}" for name in ("cls_token", "mask_token", "position_embeddings")),
            *both("embeddings.patch_embeddings.projection", "layernorm"),
        ],
    )
    # The tiny files that the other tests load have these names.
    in_clip = set(load_file(clip_folder / "model.safetensors"))
    assert {name for name in in_clip if name.startswith("vis")} == clip
    assert any(name.startswith("text_model.") for name in in_clip)
    assert set(load_file(dinov2_folder / "model.safetensors")) == dinov2
    # At their published sizes they have the published numbers of parameters: 427,616,513 less the text half, and 304 M.
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        clip_config = transformers.CLIPVisionConfig(
            **large, intermediate_size=4096, patch_size=14, image_size=224, projection_dim=768
        )
        networks = [
            transformers.CLIPVisionModelWithProjection(clip_config),
            transformers.Dinov2Model(transformers.Dinov2Config(**large, image_size=518, patch_size=14)),
        ]
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert sizes == [427_616_513 - 123_650_305, 304_368_640]
