"""The service with less patience for clients that do not read: `uvicorn impatient:app --app-dir tests`."""

import service.middleware

service.middleware.READ_SECONDS = 0.5

from api import app  # noqa: E402

__all__ = ["app"]
