"""Files of a request's body: the body itself, or the files of a multipart form.

Invariant: what is held is at most `Limits.body_bytes` (the door ends a longer body) and `FILES_MAX` files; a body that
does not arrive in time is given up.
"""

from __future__ import annotations

import asyncio

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from serve.doors.images import FILES_MAX
from serve.protocol.errors import bad_request
from serve.protocol.limits import Limits


async def uploaded_files(request: Request, limits: Limits) -> list[bytes]:
    """The files, in their order. Raises ProtocolError 400, 408, 413."""
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                return await _form_files(request)
            return [await request.body()]
    except TimeoutError:
        raise bad_request("the body did not arrive in time", status=408) from None


async def _form_files(request: Request) -> list[bytes]:
    try:
        async with request.form(max_files=FILES_MAX, max_fields=FILES_MAX) as form:
            parts = form.multi_items()
            fields = sorted({name[:80] for name, part in parts if not isinstance(part, UploadFile)})
            if fields:
                raise bad_request(
                    f"the form's field {fields[0]!r} is no file",
                    rule="each part is an image file with a file name (curl -F file=@image.png)",
                )
            return [await part.read() for _, part in parts if isinstance(part, UploadFile)]
    except HTTPException as error:  # the form's own rules: too many parts, a missing boundary
        raise bad_request(f"the form cannot be read: {error.detail}", rule="multipart/form-data (RFC 7578)") from None
