"""The command itself: help, errors, exit codes."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch._utils import ExceptionWrapper

from gsforge.cli import entry, main
from gsforge.cli.explain import explain
from gsforge.cli.run import set_budget

HEAVY = ("torch", "lightning", "numpy", "webdataset")
TINY = str(Path(__file__).parent / "tiny.yaml")


def test_help_imports_nothing_heavy_and_lists_the_commands() -> None:
    code = (
        f"import sys; from gsforge.cli import main; main(['--help']); sys.exit(any(m in sys.modules for m in {HEAVY}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("fit", "validate", "test", "predict", "export", "report", "data"):
        assert f"\n  {command} " in done.stdout


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gsforge 0.")


def test_unknown_command_suggests_one(capsys: pytest.CaptureFixture) -> None:
    assert main(["fitt"]) == 2
    assert "Did you mean 'fit'?" in capsys.readouterr().err


def test_commands_of_other_packages_run_and_may_fail_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    added = {"count": EntryPoint("count", "builtins:len", entry.GROUP)}
    monkeypatch.setattr(entry, "_added_commands", lambda: added)
    assert main(["count", "a", "b"]) == 2
    added["count"] = EntryPoint("count", "pathlib:Path.read_text", entry.GROUP)
    monkeypatch.setattr(entry, "_load", lambda name: lambda arguments: int(Path(arguments[0]).read_text()))
    assert main(["count", "/no/such/file"]) == 1
    assert "/no/such/file" in capsys.readouterr().err


def test_an_error_in_a_loader_process_is_its_message(capsys: pytest.CaptureFixture) -> None:
    try:
        raise ValueError("sample 'a' is damaged:\n  two: lines")
    except ValueError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ValueError, match="Original Traceback") as raised:
        wrapped.reraise()
    entry._report(raised.value)
    assert capsys.readouterr().err.startswith("error: sample 'a' is damaged:\n  two: lines\n")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="there is no key 'runn_dir'"):
        main(["fit", "--config", TINY, "--runn_dir", "x", "--debug"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runn_dir", "x"], "no key 'runn_dir'; did you mean 'run_dir'?"),
        (["--trainer.max_step", "3"], "did you mean 'trainer.max_steps'?"),
        (["--modle.class_path", "x"], "did you mean 'model'?"),
        (["--model.init_args.widht", "3"], "model (tiny.TinyModel): there is no option 'widht'; did you mean 'width'?"),
        (["--model.init_args.width", "wide"], "Got value: wide"),
        (["--model.class_path", "tiny.TinyModl"], "has no attribute 'TinyModl'"),
        (["--trainer.callbacks=[{class_path: tiny.At, init_args: {stepp: 3}}]"], "did you mean 'step'?"),
        (["--config", "/no/such.yaml"], "'/no/such.yaml'"),
        (["--trainer.max_steps", "many"], "trainer.max_steps"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_message(
    options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["fit", "--config", TINY, *options]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) <= 4
    assert "Traceback" not in errors


def test_run_dir_is_required(capsys: pytest.CaptureFixture) -> None:
    assert main(["fit", "--model", "tiny.TinyModel"]) == 2
    assert "fit.run_dir" in capsys.readouterr().err


def test_a_run_without_seed_is_refused(gsforge: Any, capsys: pytest.CaptureFixture) -> None:
    assert gsforge("fit", "--seed_everything", "false") == 2
    assert "whole number" in capsys.readouterr().err


def test_what_lightning_refuses_is_one_message(gsforge: Any, capsys: pytest.CaptureFixture) -> None:
    assert gsforge("fit", "--trainer.val_check_interval", "0.5") == 2
    errors = capsys.readouterr().err
    assert "val_check_interval" in errors
    assert "Traceback" not in errors


def test_a_stranger_key_lists_the_valid_ones() -> None:
    message = "Subcommand 'fit' does not accept option 'guard.zzz'"
    assert explain(message, ["guard.stop_after", "model"]).endswith("expected one of guard.stop_after, model")


def test_other_messages_stay() -> None:
    message = "the following arguments are required: run_dir"
    assert explain(message, []) == message


@pytest.mark.parametrize(("text", "number"), [("65k", 65000), ("65.5K", 65500), ("1024", 1024), ("2e3", 2000)])
def test_a_number_of_gaussians_is_read_as_people_write_it(text: str, number: int) -> None:
    model: Any = SimpleNamespace(set_budget=lambda gaussians: found.append(gaussians))
    found: list[int] = []
    set_budget(model, text)
    assert found == [number]


def test_a_number_of_gaussians_needs_a_number_and_a_method_with_a_choice(
    gsforge: Any, capfd: pytest.CaptureFixture
) -> None:
    assert gsforge("fit", "--trainer.max_steps", "1") == 0
    assert gsforge("predict", "--gaussians", "many") == 2
    assert "expected a number such as 65536 or 65k, got 'many'" in capfd.readouterr().err
    assert gsforge("predict", "--gaussians", "65k") == 2
    assert "TinyModel has no choice of the number of Gaussians" in capfd.readouterr().err
