"""Bearer tokens: one for administrators, and optionally one for all users."""

from __future__ import annotations

import hashlib
import hmac
import multiprocessing
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers

from service.errors import Forbidden, Unauthorized
from service.settings import Settings

_bearer = HTTPBearer(auto_error=False, description="RNN_API_TOKEN, or RNN_ADMIN_TOKEN for uploads and deletions")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]

OPEN = ("/", "/health", "/ready", "/docs", "/openapi.json")  # to everybody, as are the files of the page and the docs
OPEN_FOLDERS = ("/web/", "/docs/")


def make_admin_token() -> str:
    """Make a token that is valid until the service stops, and the same in all of its worker processes.

    uvicorn starts workers by `multiprocessing`, which passes its random authentication key on to every child.
    """
    return hmac.new(bytes(multiprocessing.current_process().authkey), b"admin token", hashlib.sha256).hexdigest()


class Guard:
    """Checks tokens. `users` and `admins` are dependencies of routes.

    FastAPI reads a request's body before it runs dependencies, so `admit` is called first, before anything is read.
    """

    def __init__(self, settings: Settings) -> None:
        self.made_token = None if settings.admin_token else make_admin_token()
        self._admin = settings.admin_token or make_admin_token()
        self._user = settings.api_token
        # Without an API token the routes are open, and the OpenAPI document shows them without a lock.
        self.users = [Depends(self._ask_user)] if settings.api_token else []
        self.admins = [Depends(self._ask_admin)]

    def admit(self, path: str, headers: Headers) -> None:
        """Raise Unauthorized if the service requires a token and the request has no valid one."""
        if not self._user or path in OPEN or path.startswith(OPEN_FOLDERS):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        self.user(
            HTTPAuthorizationCredentials(scheme=scheme, credentials=token) if scheme.lower() == "bearer" else None
        )

    # FastAPI runs plain functions in its few threads, which requests that wait for the disk may all occupy.

    async def _ask_user(self, credentials: Credentials) -> None:
        self.user(credentials)

    async def _ask_admin(self, credentials: Credentials) -> None:
        self.admin(credentials)

    def user(self, credentials: Credentials) -> None:
        """Raise Unauthorized unless the caller may use the service."""
        if not (_is(credentials, self._user) or _is(credentials, self._admin)):
            raise Unauthorized(
                "this service requires its token (RNN_API_TOKEN): send the header Authorization: Bearer TOKEN"
            )

    def admin(self, credentials: Credentials) -> None:
        """Raise Unauthorized or Forbidden unless the caller may change the weights."""
        if _is(credentials, self._admin):
            return
        if self._user and _is(credentials, self._user):
            raise Forbidden("this requires the admin token (RNN_ADMIN_TOKEN), not the API token")
        raise Unauthorized(
            "this requires the admin token: RNN_ADMIN_TOKEN, or if that is not set, the token in the service's log; "
            "send the header Authorization: Bearer TOKEN"
        )


def _is(credentials: HTTPAuthorizationCredentials | None, token: str) -> bool:
    given = credentials.credentials if credentials else ""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())  # takes constant time
