"""What one training step costs, without computing it: FLOPs, and the bytes that are alive at each moment.

The model has no contents, and runs on fake tensors, which have shapes alone. A storage is counted from the operation
that makes it until nothing holds it any more, which is how long an allocator has to keep it.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Samples of the made-up batch. It is a prime that no size of a network is a multiple of, so that one run tells what
# grows with the batch: a storage whose size is a multiple of it.
SAMPLES = 1009

_ops = torch.ops.aten
# Of each operation; attention on the CPU has the same.
_FLOPS = flop_registry | {
    _ops._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ops._scaled_dot_product_flash_attention],
    _ops._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ops._scaled_dot_product_flash_attention_backward
    ],
}


class Moment(NamedTuple):
    """Bytes that are alive, besides the weights.

    Attributes:
        fixed: whatever the batch, such as copies of weights in the precision of autocast.
        per_sample: times the samples of the batch.
        gradients: of the weights, as far as they are there.
    """

    fixed: int
    per_sample: int
    gradients: int


@dataclass(frozen=True)
class StepCost:
    """Cost of a forward and a backward pass.

    Attributes:
        flops: of a sample, forward and backward.
        frozen_flops: the part of them in networks that are not trained.
        kept: what the forward pass leaves for the backward pass.
        forward: moments of the forward pass, those with the most bytes.
        backward: moments of the backward pass.
    """

    flops: int
    frozen_flops: int
    kept: Moment
    forward: tuple[Moment, ...]
    backward: tuple[Moment, ...]

    def peak(self, samples: int, gradients: int, accumulated: bool = False) -> int:
        """Most bytes that are alive at a time, besides weights, states of the optimiser and averages.

        Lightning frees the gradients of a step after the next step's forward pass, so all of them are there during it.

        Args:
            samples: of the batch of a rank.
            gradients: bytes of all gradients that the rank keeps.
            accumulated: whether those of the last batch stay through the backward pass too.

        Returns:
            Bytes, gradients included.
        """
        last = max(moment.gradients for moment in self.backward)
        share = gradients / last if last else 0.0

        def at(moment: Moment, all_gradients: bool) -> int:
            kept = gradients if all_gradients else round(moment.gradients * share)
            return moment.fixed + moment.per_sample * samples + kept

        forward = max(at(moment, True) for moment in self.forward)
        return max(forward, max(at(moment, accumulated) for moment in self.backward))


def lay_out(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model of any size, which has names, shapes and precisions, and takes no memory.

    Args:
        build: makes it.

    Returns:
        The model, on the meta device.
    """
    with torch.device("meta"):
        return build()


@contextmanager
def fake_weights(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Let operations with a model work on shapes alone.

    Args:
        model: from `lay_out`; gets new parameters and buffers, which are of use inside this context only.
        dtype: precision of its floating-point weights; their own by default.

    Yields:
        Nothing; every tensor made inside has no contents either.
    """
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:  # a weight that two layers share stays one
            kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            content = torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind, device="cpu")
            made[id(tensor)] = nn.Parameter(content, tensor.requires_grad) if _is_parameter(tensor) else content
        return made[id(tensor)]

    # Compiled functions cannot be traced here, and their operations are the same.
    with FakeTensorMode(), torch.compiler.set_stance("force_eager"):
        for module in model.modules():
            stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for tensors in stores:
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = fake(tensor)
        _update_properties(model, device=torch.device("cpu"))  # `device` of a LightningModule
        yield


def measure_step(
    model: nn.Module,
    step: Callable[[int], Tensor],
    autocast: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
) -> StepCost:
    """Run a training step of a model without contents.

    Args:
        model: from `lay_out`.
        step: takes a number of samples and gives the loss, as `training_step` does.
        autocast: precision of matrix products; that of the weights by default.
        dtype: precision of the weights, see `fake_weights`.

    Returns:
        Its cost.
    """
    with fake_weights(model, dtype), _Trace(model) as trace:
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            loss = step(SAMPLES)
        kept, forward = trace.now(), trace.take_moments()
        loss.backward()
        backward = trace.take_moments()
    return StepCost(trace.flops // SAMPLES, trace.frozen_flops // SAMPLES, kept, _largest(forward), _largest(backward))


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _largest(moments: Iterable[Moment]) -> tuple[Moment, ...]:
    """Those that no other moment exceeds in everything: with some batch each may be the one with the most bytes."""
    kept: list[Moment] = []
    for moment in sorted(set(moments), reverse=True):
        if all(moment.per_sample > other.per_sample or moment.gradients > other.gradients for other in kept):
            kept.append(moment)
    return tuple(kept)


class _Trace(TorchDispatchMode):
    """Counts storages while they are alive, and the FLOPs of all operations."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.flops = self.frozen_flops = 0
        self._inside_frozen = 0
        self._alive: dict[int, weakref.ref] = {}
        self._gradients: set[int] = set()
        self._bytes = {"fixed": 0, "per_sample": 0, "gradients": 0}
        self._moments: list[Moment] = []
        self._weights = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        self._known = {storage._cdata for storage in self._weights}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        frozen = [part for part in model.children() if not any(weight.requires_grad for weight in part.parameters())]
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._move_gradient) for parameter in trained]
        self._hooks += [part.register_forward_pre_hook(partial(self._enter, 1)) for part in frozen]
        self._hooks += [part.register_forward_hook(partial(self._enter, -1)) for part in frozen]

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if formula := _FLOPS.get(func.overloadpacket):
            flops = formula(*args, **(kwargs or {}), out_val=outputs)
            self.flops += flops
            self.frozen_flops += flops if self._inside_frozen else 0
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return outputs

    def now(self) -> Moment:
        """Bytes that are alive."""
        return Moment(**self._bytes)

    def take_moments(self) -> list[Moment]:
        """All since the last call, and the present one."""
        taken, self._moments = [*self._moments, self.now()], []
        return taken

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or key in self._known:
            return
        kind = "fixed" if size % SAMPLES else "per_sample"
        size = size if kind == "fixed" else size // SAMPLES
        self._alive[key] = weakref.ref(storage, partial(self._forget, key, kind, size))
        self._bytes[kind] += size
        self._moments.append(self.now())

    def _forget(self, key: int, kind: str, size: int, _: weakref.ref) -> None:
        del self._alive[key]
        kind = "gradients" if key in self._gradients else kind
        self._gradients.discard(key)
        self._bytes[kind] -= size

    def _move_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        storage = parameter.grad.untyped_storage()
        if storage._cdata in self._gradients:  # of a weight that is used twice
            return
        self._gradients.add(storage._cdata)
        self._bytes["fixed"] -= storage.nbytes()
        self._bytes["gradients"] += storage.nbytes()
        self._moments.append(self.now())

    def _enter(self, change: int, *_: object) -> None:
        self._inside_frozen += change
