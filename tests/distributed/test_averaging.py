"""The averaged weights are those of the formula, and what is validated and saved, divided among ranks or not."""

from pathlib import Path

import pytest
import torch

from tests.distributed.test_resume import fit, state

DECAY = 0.9


@pytest.mark.parametrize(("strategy", "ranks"), [("one", 1), ("sharded", 2)])
def test_the_average_is_validated_and_saved(toy_objects: Path, tmp_path: Path, strategy: str, ranks: int) -> None:
    path = tmp_path / "seen.pt"
    witness = f"--trainer.callbacks+={{class_path: witness.Witness, init_args: {{path: {path}}}}}"
    done = fit(tmp_path / "run", toy_objects, ranks, witness, strategy=strategy)
    assert done.codes == [0] * ranks, done.output
    seen = torch.load(path, weights_only=True)
    assert list(seen["trained"]) == list(range(1, 13))
    assert list(seen["validated"]) == [4, 8, 12]
    average = dict(seen["trained"][1])
    for step, weights in seen["trained"].items():
        average = {name: DECAY * average[name] + (1 - DECAY) * weight for name, weight in weights.items()}
        if step in seen["validated"]:
            torch.testing.assert_close(seen["validated"][step], average)
            assert any(not torch.allclose(average[name], weights[name], rtol=1e-3) for name in average)
    saved = state(tmp_path / "run")
    torch.testing.assert_close({name: saved["state_dict"][name] for name in average}, average)
    last = {name: saved["current_model_state"][name] for name in average}
    torch.testing.assert_close(last, seen["trained"][12], rtol=0, atol=0)
