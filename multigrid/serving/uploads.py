"""From a request to the pixels that the network needs, at a bounded price."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable
from typing import BinaryIO, NamedTuple

import anyio
import cv2
import numpy as np
from fastapi import HTTPException, Request
from PIL import Image
from starlette.datastructures import UploadFile

from multigrid.data.images import Letterbox, image_size, read_image
from multigrid.errors import InputError
from multigrid.serving.limits import Limits

FORM_BYTES = 16_384  # what a form may add to its file: boundaries, headers and a few short fields
FIELDS = 8
FIELD_BYTES = 1_024
IN_MEMORY = 1_000_000  # bytes of an upload; a larger one waits on the disk
HOW_TO = "expected an image as the field `file` of a multipart/form-data form, or as the body with an image/* type"


class Opened(NamedTuple):
    """An upload, decoded."""

    size: tuple  # (height, width) of the upright image
    pixels: np.ndarray  # uint8 RGB [height, width, 3], no larger than the network needs


@contextlib.asynccontextmanager
async def received(request: Request, limits: Limits) -> AsyncIterator[BinaryIO]:
    """The image file of a request; it is gone when the block ends.

    Raises:
        HTTPException: 400 a form that is none or has no file, 408 it takes too long, 413 too large, 415 another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    if not form and not kind.startswith("image/") and kind != "application/octet-stream":
        raise HTTPException(415, f"Content-Type: {HOW_TO}, received {kind or 'none'}")
    limit = limits.max_upload_bytes + (FORM_BYTES if form else 0)
    if int(request.headers.get("content-length", 0)) > limit:  # said before anything is sent
        raise _too_large(limits)
    request = Request(request.scope, _counted(request.receive, limit, limits))
    try:
        with anyio.fail_after(limits.read_seconds):
            upload = await (_field(request) if form else _body(request))
    except TimeoutError:
        raise HTTPException(
            408, f"expected the whole image within {limits.read_seconds:g} s, received a part", {"Connection": "close"}
        ) from None
    try:
        if upload.size > limits.max_upload_bytes:
            raise _too_large(limits)
        yield upload.file
    finally:
        await upload.close()


def opened(file: BinaryIO, inputs: Iterable[tuple], max_pixels: int) -> Opened:
    """The image of a file, decoded to no more than some inputs of the network need.

    Args:
        file: open, of one of `multigrid.data.images.FILE_FORMATS`.
        inputs: (height, width) of each input in pixels.
        max_pixels: the largest image, height × width.

    Raises:
        HTTPException: 413 an image of more pixels; 422 no image, or a damaged one.
    """
    try:
        size = image_size(file)
        if size[0] * size[1] > max_pixels:
            raise HTTPException(
                413, f"expected an image of at most {max_pixels} pixels, received {size[1]} × {size[0]}"
            )
        needed = np.max([Letterbox.fit(size, target).resized_size for target in inputs], axis=0)
        height, width = (int(side) for side in needed)
        pixels = read_image(file, at_least=(height, width))
    except InputError as error:
        bomb = isinstance(error.__cause__, (Image.DecompressionBombError, Image.DecompressionBombWarning))
        raise HTTPException(413 if bomb else 422, str(error)) from error
    if height < pixels.shape[0] or width < pixels.shape[1]:
        # As the letterbox would: it then finds nothing left to do, and what waits for the network is small.
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return Opened(size, pixels)


def _counted(receive, limit: int, limits: Limits):
    """The same messages, up to so many bytes of body."""
    total = 0

    async def counted():
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise _too_large(limits)
        return message

    return counted


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"expected a file of at most {limits.max_upload_bytes} bytes, received a larger one")


async def _field(request: Request) -> UploadFile:
    form = await request.form(max_files=1, max_fields=FIELDS, max_part_size=FIELD_BYTES)
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        await form.close()
        raise HTTPException(400, f"file: {HOW_TO}, received a form without")
    return upload


async def _body(request: Request) -> UploadFile:
    with contextlib.ExitStack() as unfinished:
        spool = unfinished.enter_context(tempfile.SpooledTemporaryFile(max_size=IN_MEMORY))
        upload = UploadFile(spool, size=0)
        async for chunk in request.stream():
            await upload.write(chunk)
        unfinished.pop_all()
    return upload
