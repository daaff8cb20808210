"""The description of `/api` as OpenAPI: what each path gives, from the pages' own dataclasses."""

from importlib.metadata import version
from typing import Any

import msgspec

from unitscope.web.comparison import ComparedLayerPage, ComparedPage
from unitscope.web.page_records import ImagePage, LabelPage, LayerPage, NetworkPage, UnitPage

PATHS = {
    "/api/index.json": NetworkPage,
    "/api/layers/{layer}.json": LayerPage,
    "/api/units/{layer}/{unit}.json": UnitPage,
    "/api/images/{image}.json": ImagePage,
    "/api/labels/{label}.json": LabelPage,
    "/api/compare/index.json": ComparedPage,
    "/api/compare/{layer}.json": ComparedLayerPage,
}
PARAMETERS = {
    "layer": ("string", "A layer's name as in the addresses of pages: `#` is written `@`."),
    "unit": ("integer", "A unit's number, from 0."),
    "image": ("integer", "An image's number in the `images` table."),
    "label": ("string", "A label as in the addresses of pages."),
}


def openapi(compared: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 description of the paths that give JSON; those of a comparison where two atlases are shown."""
    held = {path: page for path, page in PATHS.items() if compared or "compare" not in path}
    _, schemas = msgspec.json.schema_components(held.values(), ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "unitscope",
            "version": version("unitscope"),
            "description": "What the explorer's pages show, as JSON.",
        },
        "paths": {path: _operation(path, page) for path, page in held.items()},
        "components": {"schemas": schemas},
    }


def _operation(path: str, page: type) -> dict[str, Any]:
    said = (page.__doc__ or "").strip()
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{page.__name__}"}}}
    parameters = [
        {"name": name, "in": "path", "required": True, "description": about, "schema": {"type": kind}}
        for name, (kind, about) in PARAMETERS.items()
        if f"{{{name}}}" in path
    ]
    missing = {"404": {"description": "There is no such page."}} if parameters else {}
    answers = {"200": {"description": said, "content": content}} | missing
    return {
        "get": {"summary": said.splitlines()[0], "operationId": page.__name__, "parameters": parameters, "responses": answers}
    }
