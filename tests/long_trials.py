"""The service with trials of uploads that take a minute: `uvicorn long_trials:app --app-dir tests`."""

import asyncio
from typing import Any

from service.uploads import Uploader


async def try_out(*_: Any) -> None:
    await asyncio.sleep(60)


Uploader._try_out = try_out  # type: ignore[method-assign]

from api import app  # noqa: E402

__all__ = ["app"]
