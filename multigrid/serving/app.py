"""The web application: images in, detections out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, BinaryIO, Literal

import cv2
import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from multigrid.data.images import read_image
from multigrid.detection.detections import Detections
from multigrid.detection.pipeline import DetectionPipeline
from multigrid.pictures import class_colour, draw_boxes
from multigrid.serving.batching import Batcher
from multigrid.serving.limits import RETRY_AFTER, Admission, Limits
from multigrid.serving.metrics import Measured, Metrics
from multigrid.serving.page import read_page
from multigrid.serving.protection import LOOPBACK, Protected
from multigrid.serving.uploads import Opened, opened, received

DECODERS = 2  # threads; each holds one decoded image
GONE = 499  # what nginx writes where the client did not wait
DEFAULTS = Limits()
BODY = {
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
    "required": True,
}
ERRORS = {
    400: "no form, or one without a file",
    408: "the image took too long to arrive",
    413: "too many bytes or pixels",
    415: "no type of an image",
    422: "no image, a damaged one, or a query that is wrong or not known",
    503: "the queue is full, or the network is being compiled; Retry-After says when to come back",
}


class Options(BaseModel):
    """What a request asks for in its query; a word that is misspelled is refused and not passed over."""

    model_config = ConfigDict(extra="forbid")

    threshold: float = Field(0.0, ge=0, le=1, allow_inf_nan=False, description="least score")
    format: Literal["json", "image"] = Field("json", description="`image`: a JPEG with its boxes")


class ImageSize(BaseModel):
    """Sides of the upright image in pixels."""

    width: int
    height: int


class Found(BaseModel):
    """One detection."""

    name: str = Field(serialization_alias="class")
    class_id: int
    score: float
    box_xyxy: list[float] = Field(description="corners x1, y1, x2, y2 in pixels of the upright image")


class Answer(BaseModel):
    """All detections of an image, highest score first."""

    image: ImageSize
    detections: list[Found]
    milliseconds: float = Field(description="from the whole image to its detections, waiting included")


class Problem(BaseModel):
    """What is wrong, in words."""

    detail: str


def create_app(
    predictor: DetectionPipeline,
    *,
    name: str = "multigrid",
    max_upload_bytes: int = DEFAULTS.max_upload_bytes,
    max_pixels: int = DEFAULTS.max_pixels,
    max_queue: int = DEFAULTS.max_queue,
    read_seconds: float = DEFAULTS.read_seconds,
    batch_wait_seconds: float = 0.005,
    allowed_hosts: Sequence[str] = LOOPBACK,
) -> FastAPI:
    """An application that answers `POST /predict`, `GET /health`, `GET /metrics`, and `GET /` with a page.

    The network is compiled after it has started; `/health` and `/predict` answer 503 until then.

    Args:
        predictor: a `Predictor`, or a `DetectionPipeline` of another making.
        name: of the model, as `/health` and the page show it.
        max_upload_bytes: the largest file.
        max_pixels: the largest image, height × width.
        max_queue: requests taken in at once, from the first byte of their image to their answer.
        read_seconds: the longest time in which a request's head, and then an upload, has to arrive.
        batch_wait_seconds: how long an image waits for others to fill its batch.
        allowed_hosts: names without ports that the server is asked for by; "*" allows all, and with them any web page
            that a browser on this network has open.

    Raises:
        ValueError: a limit that lets nothing through.
    """
    limits = Limits(max_upload_bytes, max_pixels, max_queue, read_seconds)
    service = Service(predictor, name, limits, batch_wait_seconds)
    app = FastAPI(title="multigrid", docs_url=None, redoc_url=None, lifespan=lambda _: service.running())
    app.state.batcher, app.state.model, app.state.read_seconds = service.batcher, name, read_seconds
    app.add_middleware(Protected, allowed_hosts=tuple(allowed_hosts))
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_exception_handler(RequestValidationError, _wrong_query)
    app.add_exception_handler(Exception, _failed)
    responses: dict[int | str, Any] = {code: {"model": Problem, "description": text} for code, text in ERRORS.items()}
    app.get("/", response_class=HTMLResponse)(service.page)
    app.get("/health")(service.health)
    app.get("/metrics")(service.show_metrics)
    app.post("/predict", response_model=Answer, responses=responses, openapi_extra={"requestBody": BODY})(
        service.predict
    )
    return app


class Service:
    """What the routes share: the network behind its queue, threads that decode, limits and counters."""

    def __init__(self, predictor: DetectionPipeline, name: str, limits: Limits, wait_seconds: float):
        self.predictor, self.name, self.limits = predictor, name, limits
        self.admission = Admission(limits.max_queue)
        self.batcher = Batcher(predictor, wait_seconds)
        self.metrics = Metrics(lambda: self.admission.taken, lambda: len(self.batcher.waiting))
        self.inputs = sorted({view.size for view in predictor.views})
        self._page, self._policy = read_page()

    @contextlib.asynccontextmanager
    async def running(self):
        """The threads, for as long as the block lasts."""
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
        self.batcher.start()
        try:
            yield
        finally:
            await self.batcher.stop()
            self.decoders.shutdown(wait=True, cancel_futures=True)

    async def page(self) -> HTMLResponse:
        """The page that draws what is found."""
        return HTMLResponse(self._page, headers={"Content-Security-Policy": self._policy, "Cache-Control": "no-cache"})

    async def health(self) -> JSONResponse:
        """Whether images are taken, and what the page has to know."""
        status = "ok" if self.batcher.compiled else "failed" if self.batcher.failure else "warming up"
        facts = {
            "status": status,
            "model": self.name,
            "classes": list(self.predictor.class_names),
            "colours": ["#" + bytes(class_colour(index)).hex() for index in range(len(self.predictor.class_names))],
            "threshold": self.predictor.score_threshold,
            "max_upload_bytes": self.limits.max_upload_bytes,
        }
        return JSONResponse(facts, 200 if self.batcher.compiled else 503)

    async def show_metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def predict(self, request: Request, options: Annotated[Options, Query()]):
        """What is found in an image."""
        if not self.batcher.compiled:
            raise HTTPException(503, "the network is being compiled", RETRY_AFTER)
        try:
            with self.admission.place():
                async with received(request, self.limits) as file:
                    return await _unless_gone(request, self._answer(file, options))
        except ClientDisconnect:
            return Response(status_code=GONE)

    async def _answer(self, file: BinaryIO, options: Options) -> Answer | Response:
        start = time.perf_counter()
        image = await self._decoding(opened, file, self.inputs, self.limits.max_pixels)
        found = await self.batcher.detect(image.pixels)
        self.metrics.count(found)
        answer = _answer_of(image, found, options.threshold)
        if options.format == "image":
            return Response(await self._decoding(_drawn, file, answer), media_type="image/jpeg")
        answer.milliseconds = round((time.perf_counter() - start) * 1000, 1)
        return answer

    def _decoding(self, work, *arguments) -> asyncio.Future:
        return asyncio.get_running_loop().run_in_executor(self.decoders, work, *arguments)


def _answer_of(image: Opened, found: Detections, threshold: float) -> Answer:
    """Detections of the reduced image as those of the upload."""
    (height, width), (reduced_height, reduced_width) = image.size, found.size
    boxes = found.boxes.astype("float64") * np.tile([width / reduced_width, height / reduced_height], 2)
    kept = [
        Found(name=name, class_id=int(index), score=round(float(score), 4), box_xyxy=np.round(box, 2).tolist())
        for name, index, score, box in zip(found.names, found.class_ids, found.scores, boxes, strict=True)
        if score >= threshold
    ]
    return Answer(image=ImageSize(width=width, height=height), detections=kept, milliseconds=0.0)


def _drawn(file: BinaryIO, answer: Answer) -> bytes:
    """The image of the file with the boxes of the answer, as JPEG."""
    labels = [f"{one.name} {one.score:.2f}" for one in answer.detections]
    colours = [class_colour(one.class_id) for one in answer.detections]
    picture = draw_boxes(read_image(file), [one.box_xyxy for one in answer.detections], labels, colours)
    written, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not written:  # JPEG ends at 65,535 pixels a side
        raise HTTPException(422, "format=image: expected sides that JPEG can hold, received longer ones")
    return data.tobytes()


async def _unless_gone(request: Request, work: Coroutine):
    """What `work` returns, which is given up where the client goes.

    Raises:
        ClientDisconnect: it went.
    """
    working = asyncio.ensure_future(work)
    going = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([working, going], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        going.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _failed(_: Request, error: Exception) -> JSONResponse:
    """What is said of a defect of the program; the server's log, where it goes next, says more."""
    return JSONResponse({"detail": f"the server failed: {type(error).__name__}"}, 500)


async def _wrong_query(_: Request, error: RequestValidationError) -> JSONResponse:
    known = " or ".join(Options.model_fields)
    problems = [
        f"query: expected {known}, received {one['loc'][-1]}"
        if one["type"] == "extra_forbidden"
        else f"{one['loc'][-1]}: {one['msg']}, received {one['input']}"
        for one in error.errors()
    ]
    return JSONResponse({"detail": "; ".join(problems)}, 422)
