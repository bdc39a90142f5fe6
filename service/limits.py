"""Bounds on time and size that several parts of the service keep to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.datastructures import Headers

from service.errors import ServiceError


@contextlib.asynccontextmanager
async def within(seconds: float, otherwise: ServiceError) -> AsyncIterator[None]:
    """Raise `otherwise` once the time is up. A disk's own TimeoutError (ETIMEDOUT, of a mounted folder) stays one."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise otherwise from None


def declares_more(headers: Headers, limit: int) -> bool:
    """Whether a request says of its body that it has more bytes than the limit, so that nobody need wait for it."""
    length = headers.get("content-length", "")
    return length.isdecimal() and (len(length) > 18 or int(length) > limit)  # int() refuses thousands of digits
