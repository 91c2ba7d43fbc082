"""Says what is wrong with a configuration in one line, and which valid key was probably meant."""

import difflib
import inspect
import re
from collections.abc import Iterable
from importlib import import_module

_UNKNOWN_KEY = re.compile(r"does not accept option '([^']+)'|unrecognized arguments: --([\w.]+)")
_KEY = re.compile(r"""(?:Parser key|Key) "([^"]+)":""")
_CLASS_PROBLEM = re.compile(r"Problem with given class_path '([^']+)':\n((?:\s{8,}.*\n?)+)")
_UNKNOWN_OPTION = re.compile(r"Option '([^']+)' is not accepted")


def explain(message: str, keys: Iterable[str]) -> str:
    """Shorten a parser's error message and add the closest valid key.

    Args:
        message: error message of jsonargparse.
        keys: keys that the command accepts, such as `trainer.max_steps`.

    Returns:
        The message to show.
    """
    if unknown := _UNKNOWN_KEY.search(message):
        key = unknown[1] or unknown[2]
        return f"there is no key {key!r}{_meant(key, list(keys))}"
    if problem := _CLASS_PROBLEM.search(message):
        where = _KEY.match(message)
        place = f"{where[1]} ({problem[1]})" if where else problem[1]
        detail = " ".join(line.strip() for line in problem[2].splitlines())
        if option := _UNKNOWN_OPTION.search(detail):
            name = option[1].split(".")[0]
            return f"{place}: there is no option {name!r}{_meant(name, _options(problem[1]))}"
        return f"{place}: {_KEY.sub(lambda found: found[1] + ':', detail)}"
    return message


def _meant(key: str, valid: list[str]) -> str:
    heads = sorted({name.split(".")[0] for name in valid})
    if key.split(".")[0] not in heads:
        key, valid = key.split(".")[0], heads
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(sorted(valid))}"


def _options(class_path: str) -> list[str]:
    module, name = class_path.rsplit(".", 1)
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    return [*parameters, "init_args", "class_path"]
