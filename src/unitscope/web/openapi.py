"""The description of `/api` as OpenAPI: what each path gives, from the pages' own dataclasses."""

from importlib.metadata import version
from typing import Any

import msgspec

from unitscope.web.comparison import ComparisonPage, LayerComparisonPage
from unitscope.web.page_records import (
    ClassPage,
    ConceptPage,
    ImagePage,
    LabelPage,
    LayerPage,
    MistakePage,
    NetworkPage,
    PredictionsPage,
    UnitPage,
)

PATHS = {
    "/api/index.json": NetworkPage,
    "/api/layers/{layer}.json": LayerPage,
    "/api/units/{layer}/{unit}.json": UnitPage,
    "/api/images/{image}.json": ImagePage,
    "/api/labels/{label}.json": LabelPage,
    "/api/concepts/{concept}.json": ConceptPage,
    "/api/predictions.json": PredictionsPage,
    "/api/classes/{position}.json": ClassPage,
    "/api/mistakes/{label_class}-{predicted}.json": MistakePage,
    "/api/compare/index.json": ComparisonPage,
    "/api/compare/{layer}.json": LayerComparisonPage,
}
PARAMETERS = {
    "layer": ("string", "A layer's name as in the addresses of pages: `#` is written `@`."),
    "unit": ("integer", "A unit's number, from 0."),
    "image": ("integer", "An image's number in the `images` table."),
    "position": ("integer", "A class's position among the network's outputs, from 0."),
    "label_class": ("integer", "The position of the class that images' labels are."),
    "predicted": ("integer", "The position of the class that they are taken for."),
    "label": ("string", "A label as in the addresses of pages."),
    "concept": ("string", "The id of a name, a WordNet id or the name itself, as in the addresses of pages."),
}


def describe_api(has_comparison: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 description of the paths that give JSON; those of a comparison only where two atlases are compared."""
    pages = {path: page for path, page in PATHS.items() if has_comparison or "compare" not in path}
    _, schemas = msgspec.json.schema_components(pages.values(), ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "unitscope",
            "version": version("unitscope"),
            "description": "What the explorer's pages show, as JSON.",
        },
        "paths": {path: _describe_path(path, page) for path, page in pages.items()},
        "components": {"schemas": schemas},
    }


def _describe_path(path: str, page: type) -> dict[str, Any]:
    description = (page.__doc__ or "").strip()
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{page.__name__}"}}}
    parameters = [
        {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": json_type}}
        for name, (json_type, text) in PARAMETERS.items()
        if f"{{{name}}}" in path
    ]
    responses = {"200": {"description": description, "content": content}}
    if parameters:
        responses["404"] = {"description": "There is no such page."}
    summary = description.splitlines()[0]
    return {"get": {"summary": summary, "operationId": page.__name__, "parameters": parameters, "responses": responses}}
