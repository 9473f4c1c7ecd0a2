"""A schema's fields as a table: name, type with its bounds, default, and what each means."""

import ast
import inspect
import json
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

__all__ = ["default_of", "field_rows", "model_text", "type_of", "unexplained"]


def field_rows(model: type[BaseModel], schema: dict[str, Any]) -> Iterator[str]:
    """A row a field of a model's JSON schema; the column of meanings has what stands below a field in the code."""
    meanings = _meanings(model)
    for name, field in schema.get("properties", {}).items():
        default = default_of(field, is_required=name in schema.get("required", ()))
        yield f"| `{name}` | {type_of(field)} | {default} | {meanings.get(name, '')} |"


def default_of(field: dict[str, Any], *, is_required: bool) -> str:
    if is_required:
        return "required"
    made: Any = {} if "$ref" in field else {"array": [], "object": {}}.get(field.get("type", ""))
    return f"`{json.dumps(field.get('default', made))}`"


def model_text(model: type[BaseModel]) -> str:
    """What a model's docstring says, and then those of the models that it is made of."""
    return " ".join(" ".join(inspect.cleandoc(each.__doc__ or "").split()) for each in _own(model) if each.__doc__)


def unexplained(model: type[BaseModel], schema: dict[str, Any]) -> set[str]:
    """Fields of which neither a text below nor the model's own says what they are."""
    text = model_text(model)
    told = {name for name in schema.get("properties", {}) if f"`{name}`" in text}
    return set(schema.get("properties", {})) - told - _meanings(model).keys()


def type_of(field: dict[str, Any]) -> str:
    """A field's JSON schema in a few words; another schema is a link to its heading."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(type_of(option) for option in options))
    if "const" in field or "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        each = [type_of(item) for item in field.get("prefixItems", ())]
        return f"[{', '.join(each)}]" if each else f"list{_bounds(field, 'Items')} of {type_of(field.get('items', {}))}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"by name: {type_of(values)}" if isinstance(values, dict) and values else "object"
    pattern = f" `{field['pattern']}`" if "pattern" in field else ""
    above = f" (above {field['exclusiveMinimum']:g})" if "exclusiveMinimum" in field else ""
    below = f" (below {field['exclusiveMaximum']:g})" if "exclusiveMaximum" in field else ""
    bounds = f"{_bounds(field, 'Length')}{_bounds(field, 'imum')}{above}{below}"
    return f"{field.get('type', 'anything')}{pattern}{bounds}".replace("|", "\\|")


def _bounds(field: dict[str, Any], end: str) -> str:
    """In brackets: how many items or characters, or how great a number."""
    least, most = field.get(f"min{end}"), field.get(f"max{end}")
    if least is None or most is None:
        return f" (at least {_number(least)})" if least is not None else f" (at most {_number(most)})" if most else ""
    return f" ({_number(least)} to {_number(most)})"


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def _own(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and its bases of ours."""
    return [each for each in model.__mro__ if each.__module__.startswith("kvblend") and issubclass(each, BaseModel)]


@cache
def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """What stands below each field, by the name that it has in JSON; a base's where a model has none of its own."""
    found: dict[str, str] = {}
    for each in reversed(_own(model)):
        (body,) = ast.parse(inspect.getsource(each)).body
        assert isinstance(body, ast.ClassDef)
        for field, below in pairwise(body.body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                name = model.model_fields[field.target.id].alias or field.target.id
                found[name] = " ".join(str(below.value.value).split()).replace("|", "\\|")
    return found
