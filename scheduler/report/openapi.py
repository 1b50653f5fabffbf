"""The description of the JSON API, made from the same structs that it sends."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from scheduler.decision.record import DecisionRecord
from scheduler.report.views import NodeView, PodView

Schema = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListAbout:
    """One list: what it holds and what may be asked of it."""

    text: str
    item: type
    parameters: tuple[tuple[str, str], ...]


_PAGING = (
    ("limit", "how many items at most"),
    ("continue", "where the page before ended: the value that came with it"),
)
LISTS = {
    "nodes": ListAbout(
        text="GPU nodes by name: pool, load, power, GPUs by state.",
        item=NodeView,
        parameters=(("pool", "only nodes of this pool"), *_PAGING),
    ),
    "pods": ListAbout(
        text="Pods that ask for GPUs, by namespace and name: profile, where they are bound or promised.",
        item=PodView,
        parameters=(
            ("namespace", "only pods of this namespace"),
            ("node", "only pods bound to this node"),
            *_PAGING,
        ),
    ),
    "decisions": ListAbout(
        text="The last decisions, newest first, each with its reasons.",
        item=DecisionRecord,
        parameters=(
            ("namespace", "only decisions for this namespace"),
            ("pod", "only decisions for pods of this name"),
            ("uid", "only decisions for this pod"),
            ("result", "only decisions that ended so"),
            *_PAGING,
        ),
    ),
}


def openapi(version: str) -> Schema:
    """Return the OpenAPI 3.1 document."""
    items, components = msgspec.json.schema_components(
        [about.item for about in LISTS.values()], ref_template="#/components/schemas/{name}"
    )
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Wattbalance", "version": version},
        "paths": {
            f"/api/v1/{name}": {"get": _operation(name, about, item)}
            for (name, about), item in zip(LISTS.items(), items, strict=True)
        },
        "components": {"schemas": {**components, "Error": error}},
    }


def _operation(name: str, about: ListAbout, item: Schema) -> Schema:
    # A decision is kept under its pod's name, so that every item has one.
    named: Schema = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    answer: Schema = {
        "type": "object",
        "required": ["items"],
        "properties": {
            "items": {"type": "array", "items": {"allOf": [named, item]}},
            "continue": {"type": "string", "description": "present if there may be more"},
        },
    }
    errors = {"400": "A bad query."} | (
        {"410": "`continue` is no longer kept."} if name == "decisions" else {}
    )
    return {
        "operationId": f"list_{name}",
        "summary": about.text,
        "parameters": [
            {"name": parameter, "in": "query", "description": text, "schema": _schema(parameter)}
            for parameter, text in about.parameters
        ],
        "responses": {
            "200": {"description": "One page.", "content": _json(answer)},
            **{
                code: {"description": text, "content": _json({"$ref": "#/components/schemas/Error"})}
                for code, text in errors.items()
            },
        },
    }


def _schema(parameter: str) -> Schema:
    return {"type": "integer", "minimum": 1} if parameter == "limit" else {"type": "string"}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
