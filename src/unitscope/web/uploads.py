"""The address that takes an uploaded image, or the number of one of the atlas, and answers with the units that it excites."""

import logging
from asyncio import Lock, timeout
from dataclasses import replace

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from unitscope.errors import AtlasError, ImagesError, LayerNotFound
from unitscope.images import Skipped
from unitscope.web.addresses import Addresses
from unitscope.web.image_search import (
    IMAGE_PARAMETERS,
    MAX_UPLOAD_MB,
    AtlasImage,
    ExplainImage,
    ImageSearchResults,
    RunNetwork,
    WhyQuestion,
    decode_upload,
    explained_image,
    find_image,
    open_atlas_image,
    search_by_image,
)
from unitscope.web.pages import PageBuilder
from unitscope.web.patch_kinds import patch_kind
from unitscope.web.rendering import Navigation, render_html

LOG = logging.getLogger(__name__)


class UploadEndpoint:
    """Answers an upload with a piece of a page. The image is neither kept nor written. An upload may take `upload_s` seconds. Where the address
    names an image of the atlas by its number, that one is taken, and whatever is sent is left alone."""

    def __init__(
        self, pages: PageBuilder, run_network: RunNetwork, upload_s: float, explain_image: ExplainImage | None = None
    ) -> None:
        self._pages, self._run_network, self._upload_s, self._explain_image = pages, run_network, upload_s, explain_image
        self._lock = Lock()

    async def answer(self, request: Request) -> Response:
        """The results as HTML; 400, 404, 408, 413 and 422 where no image comes, the atlas has none of that number, it comes too slowly, is too
        large, or can't be read."""
        image: bytes | AtlasImage | None = await run_in_threadpool(self._named_image, request)
        if image is None:
            try:
                async with timeout(self._upload_s):
                    image = await receive(request, MAX_UPLOAD_MB, "image is")
            except TimeoutError as error:
                raise HTTPException(408, f"The image didn't come within {self._upload_s:g} seconds.") from error
            except ClientDisconnect:
                LOG.warning("an upload from %s ended before the whole image was there", request.client and request.client.host)
                return Response(status_code=400)  # nobody is there to read it
        async with self._lock:  # one image at a time: decoded, it may take many times the memory of its file
            question = WhyQuestion.of(request.query_params, request.query_params.getlist("without"))
            results = await run_in_threadpool(self._search, image, question)
        to = Addresses.seen_from(results.path, patch_kind(request))
        return HTMLResponse(await run_in_threadpool(render_html, results, Navigation(), to))

    def _named_image(self, request: Request) -> AtlasImage | None:
        for parameter in IMAGE_PARAMETERS:
            if parameter in request.query_params:
                found = find_image(self._pages.queries, parameter, request.query_params[parameter])
                if found is None:
                    raise HTTPException(404, "The atlas has no image of that number.")
                return found
        return None

    def _search(self, upload_or_image: bytes | AtlasImage, question: WhyQuestion) -> ImageSearchResults:
        named = upload_or_image if isinstance(upload_or_image, AtlasImage) else None
        try:
            image = (
                open_atlas_image(self._pages.queries.atlas, upload_or_image)
                if isinstance(upload_or_image, AtlasImage)
                else decode_upload(upload_or_image)
            )
            results = replace(search_by_image(self._pages, image, self._run_network(image)), image=named)
            if self._explain_image is None:
                return results
            why = explained_image(self._pages, image, self._explain_image(image, question), question)
            return replace(results, why=why)
        except Skipped as reason:
            raise HTTPException(422, f"The image {reason}.") from reason
        except (AtlasError, ImagesError, LayerNotFound) as error:  # a class, a layer or images that aren't there
            raise HTTPException(422, f"{error}.") from error


async def receive(request: Request, max_mb: int, what: str) -> bytes:
    """The body of a request; 413 where it is larger. `what` is what comes, with its verb: "image is"."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_mb << 20:
            raise HTTPException(413, f"The {what} larger than {max_mb} MB.")
    return bytes(content)
