"""Build model and data of a configuration for `gsforge plan`: without weights, without a trainer, without a run."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import WeightAveraging

from gsforge.cli.explain import explain
from gsforge.cli.run import RunCLI
from gsforge.nn.features import DiffusersVAEFeatures, FeatureExtractor, TimmFeatures
from gsforge.training.averaging import EMA
from gsforge.training.errors import ConfigError
from gsforge.training.rank_memory import Average, legal_ranks
from gsforge.training.step_cost import lay_out

_AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
_WEIGHTS = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
_SHORT = {"16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}


class EmptyTimmFeatures(TimmFeatures):
    """The network of `TimmFeatures` without its weights, which need not be there."""

    def __init__(self, name_or_path: str, image_size: int, weights: str | None = None) -> None:
        import timm

        FeatureExtractor.__init__(self)
        self.network = timm.create_model(name_or_path, pretrained=False, num_classes=0).requires_grad_(False)
        self.image_size, self.channels = image_size, self.network.num_features
        self.register_buffer("mean", torch.zeros(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(3, 1, 1), persistent=False)
        self.eval()


class EmptyVAEFeatures(DiffusersVAEFeatures):
    """The network of `DiffusersVAEFeatures` without its weights, which need not be there."""

    def __init__(self, name_or_path: str, subfolder: str | None, image_size: int) -> None:
        from diffusers import AutoencoderKL, AutoencoderKLFlux2

        FeatureExtractor.__init__(self)
        if "FLUX.2" in name_or_path:  # diffusers' defaults are its sizes; the repository asks for a licence
            network: Any = AutoencoderKLFlux2()
        else:
            options = AutoencoderKL.load_config(name_or_path, subfolder=subfolder)
            kinds: dict[str, Any] = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderKLFlux2)}
            network = kinds[options["_class_name"]].from_config(options)
        del network.decoder, network.post_quant_conv
        self.network = network.requires_grad_(False)
        self.image_size, self.channels = image_size, network.config.latent_channels
        self.eval()


_WITHOUT_WEIGHTS = {TimmFeatures: EmptyTimmFeatures, DiffusersVAEFeatures: EmptyVAEFeatures}


class PlannedRun(RunCLI):
    """A run's model, laid out without contents, and its data, from the arguments of `gsforge fit`.

    Nothing is written, no weights are read, and the machine need not have the run's GPUs.

    Args:
        arguments: those of `gsforge fit`.
    """

    model: LightningModule
    datamodule: LightningDataModule | None

    def __init__(self, arguments: Sequence[str]):
        super().__init__(arguments, run=False)

    def before_instantiate_classes(self) -> None:
        """Leave the run directory alone."""

    def instantiate_classes(self) -> None:
        """Build model and data.

        Raises:
            ConfigError: when one of them refuses its options.
        """
        config = self.config.clone()
        optimizing = {key: config[key] for key in ("optimizer", "lr_scheduler") if key in config}
        _leave_out_weights(config.model)
        try:
            self.config_init = lay_out(lambda: self.parser.instantiate(Namespace(model=config.model)))
            self.config_init.update(self.parser.instantiate(Namespace(**optimizing)))
            self.model = self.config_init.model
            data = self.parser.instantiate(Namespace(data=config.data)) if "data" in config else {}
        except ValueError as error:
            raise ConfigError(explain(str(error), ())) from error
        self.datamodule = data.get("data")

    def add_optimizers(self) -> None:
        """Give the model the optimiser that the configuration names beside it, where there is one."""
        self._add_configure_optimizers_method_to_model(None)

    @property
    def precision(self) -> tuple[torch.dtype | None, torch.dtype | None]:
        """Precision of autocast, and that of all weights; None for their own."""
        name = str(self.config.trainer.precision or "32-true")
        name = _SHORT.get(name, name)
        return _AUTOCAST.get(name), _WEIGHTS.get(name)

    @property
    def average(self) -> Average:
        """Which weights a callback averages."""
        kinds = list(_classes(self.config.trainer.callbacks))
        if any(issubclass(kind, WeightAveraging) for kind in kinds):
            return "all"
        return "trained" if any(issubclass(kind, EMA) for kind in kinds) else "none"

    @property
    def batch_size(self) -> int | None:
        """Samples of a batch over all ranks, where the data have such an option."""
        size = self._data_options.get("batch_size")
        return size if isinstance(size, int) and size > 0 else None

    @property
    def step_samples(self) -> int | None:
        """Samples of a step of the optimiser, where known."""
        if self.batch_size is None or "rank_batch_size" in self._data_options:
            return self.batch_size  # which is that of a step, whatever it is divided into
        return self.batch_size * self.config.trainer.accumulate_grad_batches

    def batches_of_step(self, ranks: int) -> tuple[int, int]:
        """What a rank computes in a step.

        Args:
            ranks: how many share the batch.

        Returns:
            Samples of a batch on one rank, 1 where that is not known, and batches whose gradients are accumulated.
        """
        accumulated = self.config.trainer.accumulate_grad_batches
        if self.batch_size is None:
            return 1, accumulated
        share = self.batch_size // ranks
        most = self._data_options.get("rank_batch_size")
        if most is None:
            return share, accumulated
        samples = max(number for number in legal_ranks(share) if number <= max(1, most))
        return samples, share // samples

    @property
    def _data_options(self) -> dict[str, Any]:
        data = self.config.get("data")
        return vars(data.get("init_args") or Namespace()) if data is not None else {}

    @property
    def ranks(self) -> int | None:
        """Number of ranks, where the configuration says it in full."""
        devices = self.config.trainer.devices
        count = int(devices) if str(devices).isdigit() and int(devices) > 0 else None
        return None if count is None else count * int(self.config.trainer.num_nodes or 1)


def _classes(configured: Any) -> Iterator[type]:
    for entry in configured if isinstance(configured, list) else [configured]:
        if entry is not None:
            yield _class(entry.class_path)


def _class(path: str) -> type:
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)


def _leave_out_weights(config: Namespace) -> None:
    """Replace what would read weights, by the model's own word and wherever a known extractor stands."""
    for key, value in getattr(_class(config.class_path), "example_options", {}).items():
        config.init_args[key] = value
    _empty_extractors(config)


def _empty_extractors(value: Any) -> None:
    if isinstance(value, list):
        for entry in value:
            _empty_extractors(entry)
    if not isinstance(value, Namespace):
        return
    if isinstance(path := value.get("class_path"), str) and (kind := _WITHOUT_WEIGHTS.get(_class(path))):
        value.class_path = f"{kind.__module__}.{kind.__qualname__}"
    for entry in vars(value).values():
        _empty_extractors(entry)
