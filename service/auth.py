"""Bearer tokens: one for administrators, and optionally one for everybody."""

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

OPEN = ("/", "/health", "/ready")  # to everybody, and so are the page's files
OPEN_FOLDER = "/web/"


def make_admin_token() -> str:
    """A token that holds until the service stops, and is the same in all of its worker processes.

    uvicorn starts workers by `multiprocessing`, which hands its random authentication key to every child.
    """
    return hmac.new(bytes(multiprocessing.current_process().authkey), b"admin token", hashlib.sha256).hexdigest()


class Guard:
    """The checks, as dependencies of routes: `users` and `admins`.

    The framework reads a request's body before it runs these. So `admit` is asked first, before anything is read.
    """

    def __init__(self, settings: Settings) -> None:
        self.made_token = None if settings.admin_token else make_admin_token()
        self._admin = settings.admin_token or make_admin_token()
        self._user = settings.api_token
        # Without an API token nothing is asked for, and the OpenAPI document does not say so either.
        self.users = [Depends(self._ask_user)] if settings.api_token else []
        self.admins = [Depends(self._ask_admin)]

    def admit(self, path: str, headers: Headers) -> None:
        """Raises Unauthorized for who has no token at all where everything asks for one."""
        if not self._user or path in OPEN or path.startswith(OPEN_FOLDER):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        self.user(
            HTTPAuthorizationCredentials(scheme=scheme, credentials=token) if scheme.lower() == "bearer" else None
        )

    # For plain functions the framework takes one of its few threads, which those may all hold who wait for the disk.

    async def _ask_user(self, credentials: Credentials) -> None:
        self.user(credentials)

    async def _ask_admin(self, credentials: Credentials) -> None:
        self.admin(credentials)

    def user(self, credentials: Credentials) -> None:
        """Raises Unauthorized unless the caller may use the service."""
        if not (_is(credentials, self._user) or _is(credentials, self._admin)):
            raise Unauthorized("this service asks for its token: send the header Authorization: Bearer TOKEN")

    def admin(self, credentials: Credentials) -> None:
        """Raises Unauthorized or Forbidden unless the caller may change the weights."""
        if _is(credentials, self._admin):
            return
        if self._user and _is(credentials, self._user):
            raise Forbidden("this needs the admin token (RNN_ADMIN_TOKEN), not the API token")
        raise Unauthorized(
            "this needs the admin token: RNN_ADMIN_TOKEN, or where that is unset the one in the service's log; "
            "send the header Authorization: Bearer TOKEN"
        )


def _is(credentials: HTTPAuthorizationCredentials | None, token: str) -> bool:
    given = credentials.credentials if credentials else ""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())  # takes constant time
