"""The settings as JSON schema."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from scheduler.config_settings import Settings
from scheduler.config_types import PolicyUse

# A JSON schema is JSON: its values have no narrower type than this.
Json = dict[str, Any]


def build_schema(policy_kinds: dict[str, type[msgspec.Struct]]) -> dict[str, object]:
    """Describe the file.

    Args:
        policy_kinds: per score policy, its arguments and weight as one type.
    """
    (root,), parts = msgspec.json.schema_components(
        [Settings], schema_hook=_leaf_schema, ref_template="#/$defs/{name}"
    )
    _, policy_parts = msgspec.json.schema_components(
        list(policy_kinds.values()), schema_hook=_leaf_schema, ref_template="#/$defs/{name}"
    )
    structs = structs_below(Settings)
    for name, part in parts.items():
        if name in structs:
            _fill_defaults(part, structs[name])
        policies = part.get("properties", {}).get("policies")
        if policies is not None:
            # The names are known here, as they are to the loader.
            policies["properties"] = {
                name: {"$ref": f"#/$defs/{kind.__name__}"} for name, kind in policy_kinds.items()
            }
            policies["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Wattbalance configuration",
        **root,
        "$defs": parts | policy_parts,
    }


def _leaf_schema(kind: type) -> Json:
    if kind is PolicyUse:
        return {"type": "object"}
    return {"type": "string", "examples": list(getattr(kind, "EXAMPLES", []))}


def structs_below(root: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """Give a struct and all that its fields hold, by name."""
    found: dict[str, type[msgspec.Struct]] = {}
    waiting: list[msgspec.inspect.Type] = [msgspec.inspect.type_info(root)]
    while waiting:
        info = waiting.pop()
        if isinstance(info, msgspec.inspect.StructType):
            found[info.cls.__name__] = info.cls
            waiting += [field.type for field in info.fields]
        waiting += [
            cast("msgspec.inspect.Type", getattr(info, name))
            for name in ("type", "item_type", "value_type")
            if hasattr(info, name)
        ]
        waiting += getattr(info, "types", ())
    return found


def _fill_defaults(part: Json, struct: type[msgspec.Struct]) -> None:
    """Add the defaults that msgspec leaves out: those that a factory makes."""
    for field in msgspec.structs.fields(struct):
        if field.default_factory is not msgspec.NODEFAULT:
            value = field.default_factory()
            part["properties"][field.encode_name]["default"] = msgspec.to_builtins(value, enc_hook=_plain)


def _plain(value: object) -> object:
    if isinstance(value, PolicyUse):
        return {"weight": value.weight, **value.options}
    return str(value)
