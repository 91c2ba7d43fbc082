"""The hash that ranks compare."""

import pytest
import torch

from gsforge.training.divergence import _CHUNKS, fingerprint

TYPES = ["float32", "float64", "bfloat16", "float16", "int64", "uint8", "bool", "complex64", "complex128"]


@pytest.mark.parametrize("kind", TYPES)
def test_one_changed_bit_anywhere_changes_the_hash(kind: str) -> None:
    tensor = (torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) * 9).to(getattr(torch, kind))
    known = int(fingerprint(tensor))
    assert int(fingerprint(tensor.clone())) == known
    found = {known}
    for place in range(tensor.numel()):
        raw = tensor.clone()
        raw.view(torch.uint8).flatten()[place * tensor.element_size()] ^= 1
        found.add(int(fingerprint(raw)))
    assert len(found) == tensor.numel() + 1


def test_flipped_signs_do_not_cancel() -> None:
    tensor = torch.rand(4, dtype=torch.float64)
    flipped = tensor * torch.tensor([-1.0, 1, -1, 1])
    assert int(fingerprint(tensor)) != int(fingerprint(flipped))


def test_elements_that_change_places_change_the_hash() -> None:
    tensor = torch.arange(6.0)
    assert int(fingerprint(tensor)) != int(fingerprint(tensor.flip(0)))
    assert int(fingerprint(tensor)) != int(fingerprint(tensor.roll(1)))
    assert int(fingerprint(torch.tensor(0.0))) != int(fingerprint(torch.tensor(-0.0)))


def test_a_view_has_the_hash_of_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.rand(40, 30).T
    whole = int(fingerprint(tensor))
    assert int(fingerprint(tensor.contiguous())) == whole
    monkeypatch.setitem(_CHUNKS, "cpu", 7)
    assert int(fingerprint(tensor)) == whole
    assert int(fingerprint(torch.empty(0))) == 0
