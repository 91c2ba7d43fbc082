"""Says what is wrong with a configuration in one line, and which valid key was probably meant."""

import difflib
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from importlib import import_module

_UNKNOWN_KEY = re.compile(r"does not accept option '([^']+)'|unrecognized arguments: --([\w.]+)")
_KEY = re.compile(r"""(?:Parser key|Key) "([^"]+)":""")
_CLASS_PROBLEM = re.compile(r"Problem with given class_path '([^']+)':\n((?:\s{8,}.*\n?)+)")
_CLASS_PATH = re.compile(r"class_path[ =]'([^']+)'")
# The three ways to say it: an option of a class, one of a group in a file, one of a group on the command line.
_UNKNOWN_OPTION = re.compile(
    r"Option '([^']+)' is not accepted|Group '([^']+)' does not accept option '([^']+)'"
    r"|unrecognized arguments: --([\w.]+)"
)
# A class refused its options where the configuration might also have held nothing.
_REFUSED = re.compile(r"Errors:\n\s+- (.+?)\n\s+- Expected a <class 'NoneType'>", re.DOTALL)


def explain(message: str, keys: Iterable[str]) -> str:
    """Shorten a parser's error message and add the closest valid key.

    Args:
        message: error message of jsonargparse.
        keys: keys that the command accepts, such as `trainer.max_steps`.

    Returns:
        The message to show.
    """
    if problem := _CLASS_PROBLEM.search(message):
        where = _KEY.match(message)
        key = f"{where[1]} " if where else ""
        detail = " ".join(line.strip() for line in problem[2].splitlines())
        if option := _UNKNOWN_OPTION.search(detail):
            owner = _CLASS_PATH.findall(problem[0])[-1]
            name = ".".join(part for part in option.groups() if part)
            return f"{key}({owner}): there is no option {name!r}{_meant(name, _options(owner))}"
        return f"{key}({problem[1]}): {_KEY.sub(lambda found: found[1] + ':', detail)}"
    if unknown := _UNKNOWN_KEY.search(message):
        name = unknown[1] or unknown[2]
        return f"there is no key {name!r}{_meant(name, list(keys))}"
    refused = _REFUSED.search(message)
    return refused[1] if refused else message


def _meant(key: str, valid: list[str]) -> str:
    heads = sorted({name.split(".")[0] for name in valid})
    if key.split(".")[0] not in heads:
        key, valid = key.split(".")[0], heads
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(sorted(valid))}"


def _options(class_path: str) -> list[str]:
    """Options of a class, those of its groups under their full names."""
    module, name = class_path.rsplit(".", 1)
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    groups = {key: parameter.annotation for key, parameter in parameters.items() if is_dataclass(parameter.annotation)}
    nested = [f"{key}.{field.name}" for key, group in groups.items() for field in fields(group)]
    return [*parameters, *nested, "init_args", "class_path"]
