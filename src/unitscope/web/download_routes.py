"""The routes to what can be kept of an atlas's pages: tables, and pictures of patches. A browser saves them, and shows none."""

from asyncio import Lock
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from unitscope.errors import ImagesError
from unitscope.records import Layer
from unitscope.web.downloads import (
    TABLE_KINDS,
    draw_block_png,
    draw_sheet_png,
    mistaken_images_table,
    name_of_file,
    sample_table,
    table_of,
    troughs_table,
    units_of_sheet,
)
from unitscope.web.network_lists import NetworkLists
from unitscope.web.page_records import Page
from unitscope.web.pages import PageBuilder
from unitscope.web.patch_kinds import patch_kind
from unitscope.web.protection import is_foreign
from unitscope.web.unit_lists import UnitList


class DownloadRoutes:
    """Requests that other sites have a browser send are refused: they would put files into a person's folder unasked."""

    def __init__(self, pages: PageBuilder, lists: NetworkLists, listing: Lock) -> None:
        self._pages, self._drawing = pages, Lock()
        self._lists, self._listing = lists, listing

    def every_route(self) -> list[BaseRoute]:
        pages = self._pages
        paths: dict[str, Callable[..., Page | None]] = {
            "index": pages.network_page,
            "predictions": pages.predictions_page,
            "units/{layer_slug}/{unit:number}": pages.unit_page,
            "images/{image:number}": partial(pages.image_page, most=None),
            "labels/{label_slug}": pages.label_page,
            "concepts/{concept_slug}": partial(pages.concept_page, most=None),
            "classes/{position:number}": pages.class_page,
            "mistakes/{label_class:number}-{predicted:number}": pages.mistake_page,
        }
        others = {
            "layers/{layer_slug}": self._answer_units,
            "units": self._answer_network_units,
            "units/{layer_slug}/{unit:number}-sample": self._answer_sample,
            "units/{layer_slug}/{unit:number}-troughs": self._answer_troughs,
            "mistakes/{label_class:number}-{predicted:number}-images": self._answer_mistaken_images,
        }
        return [
            *(Route(f"/{path}.{kind}", partial(self._answer_table, build, kind)) for path, build in paths.items() for kind in TABLE_KINDS),
            *(Route(f"/{path}.{kind}", partial(answer, kind)) for path, answer in others.items() for kind in TABLE_KINDS),
            Route("/blocks/{layer_slug}/{unit:number}.png", self._answer_block),
            Route("/layers/{layer_slug}.png", self._answer_sheet),
        ]  # fmt: skip

    async def _answer_table(self, build_page: Callable[..., Page | None], kind: str, request: Request) -> Response:
        _check_asked_here(request)
        page = await run_in_threadpool(build_page, **request.path_params)
        if page is None:
            raise HTTPException(404)
        return await self._table(lambda: table_of(page), kind, page.path.removesuffix(".html"))

    async def _answer_units(self, kind: str, request: Request) -> Response:
        """The units of a layer, or those that the query asks for."""
        _check_asked_here(request)
        page = await run_in_threadpool(self._pages.layer_page, **request.path_params)
        if page is None:
            raise HTTPException(404)
        try:
            units = UnitList.of(request.query_params, page)
        except ValueError as error:
            raise HTTPException(422, f"These units can't be listed: {error}.") from error
        listed = replace(page, units=await run_in_threadpool(units.entries, page))
        path = page.path.removesuffix(".html")
        return await self._table(lambda: table_of(listed), kind, f"{path}{_count_in_name(len(listed.units), page.layer)}")

    async def _answer_network_units(self, kind: str, request: Request) -> Response:
        """The units of all layers that the query asks for, one list at a time, those of pages among them: each takes memory."""
        _check_asked_here(request)
        async with self._listing:
            try:
                asked = await run_in_threadpool(self._lists.asked_for, request.query_params)
                table = await run_in_threadpool(self._lists.table, asked)
            except ValueError as error:
                raise HTTPException(422, f"These units can't be listed: {error}.") from error
            return await self._table(lambda: table, kind, f"units-{len(table)}")

    async def _answer_troughs(self, kind: str, request: Request) -> Response:
        _check_asked_here(request)
        page = await run_in_threadpool(self._pages.unit_page, **request.path_params)
        if page is None:
            raise HTTPException(404)
        if not page.troughs:
            raise HTTPException(404, "This unit has no troughs: a rectifier follows its layer, or the scan kept none.")
        return await self._table(lambda: troughs_table(page), kind, f"{page.path.removesuffix('.html')}-troughs")

    async def _answer_mistaken_images(self, kind: str, request: Request) -> Response:
        _check_asked_here(request)
        page = await run_in_threadpool(self._pages.mistake_page, **request.path_params)
        if page is None:
            raise HTTPException(404)
        return await self._table(lambda: mistaken_images_table(page), kind, f"{page.path.removesuffix('.html')}-images")

    async def _answer_sample(self, kind: str, request: Request) -> Response:
        layer, unit = self._unit_of(request)
        path = f"units/{request.path_params['layer_slug']}/{unit}-sample"
        return await self._table(lambda: sample_table(self._pages.queries, layer.name, unit), kind, path)

    async def _table(self, build_table: Callable[[], pa.Table], kind: str, path: str) -> Response:
        media_type, encode = TABLE_KINDS[kind]
        content = await run_in_threadpool(lambda: encode(build_table()))
        return self._attachment(content, media_type, path, kind)

    async def _answer_block(self, request: Request) -> Response:
        layer, unit = self._unit_of(request)
        content = await self._draw(draw_block_png, layer, unit, patch_kind(request))
        return self._attachment(content, "image/png", f"{request.path_params['layer_slug']}/{unit}", "png")

    async def _answer_sheet(self, request: Request) -> Response:
        _check_asked_here(request)
        layer = self._pages.queries.layer_by_slug(request.path_params["layer_slug"])
        if layer is None:
            raise HTTPException(404)
        try:
            units = units_of_sheet(layer, request.query_params.get("units"))
        except ValueError as error:
            raise HTTPException(422, f"This sheet can't be drawn: {error}.") from error
        content = await self._draw(draw_sheet_png, layer, units, patch_kind(request))
        path = f"{request.path_params['layer_slug']}{_count_in_name(len(units), layer)}"
        return self._attachment(content, "image/png", path, "png")

    async def _draw(self, draw: Callable[..., bytes], *what: Any) -> bytes:
        """One at a time: a sheet takes memory, and many images may be decoded for it."""
        async with self._drawing:
            try:
                return await run_in_threadpool(draw, self._pages.queries.atlas, *what)
            except ImagesError as reason:
                raise HTTPException(404, f"This can't be drawn: {reason}.") from reason

    def _unit_of(self, request: Request) -> tuple[Layer, int]:
        _check_asked_here(request)
        layer, unit = self._pages.queries.layer_by_slug(request.path_params["layer_slug"]), request.path_params["unit"]
        if layer is None or unit >= layer.units:
            raise HTTPException(404)
        return layer, unit

    def _attachment(self, content: bytes, media_type: str, path: str, ending: str) -> Response:
        name = f"{name_of_file(self._pages.atlas_summary.name, path)}.{ending}"
        return Response(content, headers={"Content-Disposition": f'attachment; filename="{name}"'}, media_type=media_type)


def _count_in_name(units: int, layer: Layer) -> str:
    """What the name of a file of some of a layer's units has, that none of other units is taken for it."""
    return "" if units == layer.units else f"-{units}-units"


def _check_asked_here(request: Request) -> None:
    if is_foreign(request.scope):
        raise HTTPException(403, "Another site may not have anything saved from here.")
