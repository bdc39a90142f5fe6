"""Uploads: from the network to a temporary file, then through every check to its name.

The body is parsed as it arrives. FastAPI's form parser would first store all of it elsewhere, without a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import re
import signal
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, TypeVar

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from rnnlm.errors import counted
from rnnlm.files import sync_folder
from service import schemas
from service.capacity import Capacity
from service.errors import (
    BodyTooLarge,
    Busy,
    ClientGone,
    Internal,
    InvalidRequest,
    InvalidUpload,
    MalformedRequest,
    NoSpace,
    ServiceError,
    SlowRequest,
    TrialInterrupted,
    WeightsExist,
)
from service.exchange import declares_more, unless_gone, within
from service.folder import SUFFIX, Folder, check_name
from service.metrics import Metrics
from service.settings import ROOT, Settings, variable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

T = TypeVar("T")

LOCKED_SECONDS = 10.0  # an upload's file is locked by this age, if the file system has locks
_SPACES_AND_BRACKETS = re.compile(r"[\s()\[\]{}]+")  # which browsers put into file names: demo (1).safetensors
PREFIX = ".upload-"  # of files in upload; no list shows a name that starts with a dot
FIELDS = ("file", "name", "sha256", "overwrite")
MAX_FIELD_BYTES = 256
MAX_FORM_BYTES = 16 << 10  # of a form, besides the file
TRIAL_SECONDS = 120.0
OUT_OF_MEMORY, TOO_LARGE = 4, 5  # exit codes of service/trial.py, another program, which is not imported
CRASHES = (
    signal.SIGABRT,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    *(
        getattr(signal, name)
        for name in ("SIGBUS", "SIGSYS", "SIGTRAP")
        if hasattr(signal, name)  # not on Windows
    ),
)
SECRETS = (variable("api_token"), variable("admin_token"))  # a trial does not need them


class Uploader:
    """Receives one upload at a time, since each needs room on the disk and a processor for its trial."""

    def __init__(self, settings: Settings, folder: Folder, metrics: Metrics) -> None:
        self._settings = settings
        self._folder = folder
        self._metrics = metrics
        self._busy = False

    async def receive(self, request: Request) -> schemas.Uploaded:
        """Receive an upload. Raises the ServiceErrors of one that is refused, of which nothing is left."""
        if self._busy:
            raise Busy("another upload is in progress: try again later", 10)
        self._busy = True
        result = "failed"
        try:
            seconds = self._settings.upload_seconds
            async with within(seconds, SlowRequest(f"the upload took more than {seconds:g} seconds")):
                uploaded = await self._receive(request)
            result = "replaced" if uploaded.replaced else "added"
            return uploaded
        except (ClientDisconnect, ClientGone) as error:
            result = "abandoned"
            raise ClientGone from error
        except Internal:
            raise
        except ServiceError:
            result = "refused"
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpace("the disk has no room for the file") from error
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise NoSpace("the weights folder of this service is not writable") from error
            raise
        finally:
            self._busy = False
            self._metrics.uploads.labels(result).inc()

    async def _receive(self, request: Request) -> schemas.Uploaded:
        limit = self._settings.max_upload_bytes + MAX_FORM_BYTES
        if declares_more(request.headers, limit):
            raise self._too_large()
        async with _temporary_file(self._folder.root) as file:
            form = _Form(request.headers.get("content-type", ""), file)
            received = 0
            async for chunk in request.stream():
                received += len(chunk)
                if received > limit:
                    raise self._too_large()
                await asyncio.to_thread(form.feed, chunk)  # writes to the disk
                if form.size > self._settings.max_upload_bytes:
                    raise self._too_large()
            form.close()
            name, overwrite = form.check()
            target = self._folder.path(name)
            await asyncio.to_thread(_check_target, target, overwrite)
            await asyncio.to_thread(_settle, file)
            trial = asyncio.ensure_future(self._try_out(Path(file.name), name))
            try:
                await unless_gone(trial, request.receive)
            finally:
                await asyncio.wait([trial])  # if it was cancelled, until its process has ended
            replaced = await _to_the_end(_publish, Path(file.name), target, overwrite)
        log.info(
            "weights %s were %s by an upload of %s",
            name,
            "replaced" if replaced else "added",
            counted(form.size, "byte"),
        )
        return schemas.Uploaded(
            name=name,
            renamed_from=form.given_name if form.given_name != name else None,
            sha256=form.sha256,
            size=form.size,
            replaced=replaced,
        )

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"a weights file may have {self._settings.max_upload_bytes:,} bytes at most")

    async def _try_out(self, path: Path, name: str) -> None:
        """Run every check on the file in a process of its own (service/trial.py).

        Raises InvalidUpload with the reason, NoSpace, or TrialInterrupted or Internal if the file is not at fault.
        """
        memory, capacity = self._settings.trial_memory_mb, Capacity.of(self._settings)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.trial", "--precision", self._settings.precision),
            *("--memory-mb", str(memory), "--service-bytes", str(capacity.memory)),
            *(["--copies"] if capacity.copies else []),
            *(path.absolute(), *self._settings.served_backends),
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key not in SECRETS},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                reason, said = await process.communicate()
        except TimeoutError:
            raise TrialInterrupted(f"did not finish within {TRIAL_SECONDS:g} seconds") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 2:
            raise InvalidUpload(f"{name}: {reason.decode('utf-8', 'replace').strip()}")
        if process.returncode == TOO_LARGE:
            raise NoSpace(f"{name}: {reason.decode().strip()}")
        if process.returncode == OUT_OF_MEMORY:
            raise NoSpace(
                f"a model of this size needs more than the {memory:,} MB of memory that this service gives to the "
                f"trial of an upload ({variable('trial_memory_mb')})"
            )
        if process.returncode != 0:
            log.error("the trial of an upload ended with %d: %s", process.returncode, said.decode("utf-8", "replace"))
            if process.returncode > 0:
                raise Internal
            if (
                -process.returncode not in CRASHES
            ):  # by the system when memory runs out, or by whoever stops the service
                raise TrialInterrupted(f"was ended from outside by signal {-process.returncode}")
            raise InvalidUpload("the file made the model crash")


class _Form:
    """Parses a multipart form as its body arrives; the field `file` goes straight to disk."""

    def __init__(self, content_type: str, file: IO[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:  # RFC 2046
            raise MalformedRequest("the body must be multipart/form-data, with its boundary in the content type")
        self.size = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._values: dict[str, bytes] = {}
        self._filename = ""
        self._current = ""
        self._header: tuple[bytes, bytes] = b"", b""
        self._disposition = b""
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_end": self._on_end,
            },
        )

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def given_name(self) -> str:
        """The name that the form gives, else the file's own, without its suffix."""
        named = self._values.get("name", b"").decode("utf-8", "replace").strip()
        return (named or self._filename).removesuffix(SUFFIX)

    def feed(self, chunk: bytes) -> None:
        """Parse the next piece. Raises MalformedRequest, InvalidRequest; OSError when the disk is full."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequest("the body is not a well-formed multipart form") from error

    def close(self) -> None:
        """Raise MalformedRequest if the form ended before its last boundary."""
        if not self._complete:
            raise MalformedRequest("the form is incomplete: its last boundary is missing")

    def check(self) -> tuple[str, bool]:
        """Return (name, overwrite) of a complete form. Raises InvalidRequest, InvalidUpload."""
        if "file" not in self._values:
            raise InvalidRequest("the form lacks the field file")
        name, overwrite, expected = self._fields()
        if expected and expected != self.sha256:
            raise InvalidUpload(
                f"the SHA-256 of the file received is {self.sha256}, not the one given: send the file again"
            )
        return name or _cleaned(self.given_name), overwrite

    def _fields(self) -> tuple[str, bool, str]:
        """Return (name, overwrite, sha256), each "" if it has not arrived yet. Raises InvalidRequest."""
        values = {key: value.decode("utf-8", "replace").strip() for key, value in self._values.items()}
        name = values.get("name", "")
        overwrite = values.get("overwrite", "false").lower()
        if overwrite not in ("true", "false"):
            raise InvalidRequest("overwrite must be true or false")
        expected = values.get("sha256", "").lower()
        if expected and not re.fullmatch("[0-9a-f]{64}", expected):
            raise InvalidRequest("sha256 must be 64 hexadecimal digits")
        return name and _cleaned(self.given_name), overwrite == "true", expected

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = self._header[0] + data[start:end], self._header[1]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = self._header[0], self._header[1] + data[start:end]

    def _on_header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._disposition = b""
        self._current = options.get(b"name", b"").decode("utf-8", "replace")
        if self._current not in FIELDS:
            raise InvalidRequest(f"the form has a field that is not one of {', '.join(FIELDS)}")
        if self._current in self._values:
            raise InvalidRequest(f"the form has the field {self._current} twice")
        self._values[self._current] = b""
        if self._current == "file":
            self._fields()  # if one is bad, the file need not be received
            self._filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._current == "file":
            self._file.write(piece)
            self._digest.update(piece)
            self.size += len(piece)
            return
        self._values[self._current] += piece
        if len(self._values[self._current]) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"the field {self._current} has more than {MAX_FIELD_BYTES:,} bytes")

    def _on_end(self) -> None:
        self._complete = True


def _cleaned(given: str) -> str:
    """Return a name with its spaces and brackets replaced. Raises InvalidRequest."""
    return check_name(_SPACES_AND_BRACKETS.sub("-", given).strip("-") + SUFFIX)


@contextlib.asynccontextmanager
async def _temporary_file(folder: Path) -> AsyncIterator[IO[bytes]]:
    """Create a file beside the weights, on their file system; remove it at the end unless it was renamed.

    It stays open and locked until then, so `remove_stale` can tell it from what a dead process left behind.
    """
    making = asyncio.create_task(asyncio.to_thread(_create, folder))
    try:
        file = await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(lambda made: made.exception() or _remove(made.result()))
        raise
    try:
        yield file
    finally:
        await _to_the_end(_remove, file)


def _create(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NoSpace(
            "the weights folder of this service cannot be made: its administrator must name a folder"
        ) from error
    file = tempfile.NamedTemporaryFile(prefix=PREFIX, dir=folder, delete=False)  # noqa: SIM115 (closed by _remove)
    if fcntl:
        with contextlib.suppress(OSError):  # some mounted buckets have no locks
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _remove(file: IO[bytes]) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file.name)
    with contextlib.suppress(OSError):  # on a full disk: what it could not write
        file.close()


def remove_stale(folder: Path, seconds: float) -> None:
    """Remove the files of uploads whose process died.   seconds: the age that tells, where there are no locks."""
    for path in folder.glob(PREFIX + "*"):
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                continue  # not an upload; opening a pipe would wait for its other end
            age = time.time() - found.st_mtime
            if age > LOCKED_SECONDS and not _in_use(path, age < seconds):
                path.unlink()
                log.info("removed a stale upload, %s", path.name)
        except OSError as error:
            log.warning("a stale upload cannot be removed: %s", error)


def _in_use(path: Path, perhaps: bool) -> bool:
    """Return whether a process holds the lock of a file; `perhaps` if that cannot be known."""
    if not fcntl:
        return perhaps
    with path.open("rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return perhaps
    return False


def _check_target(target: Path, overwrite: bool) -> None:
    """Raise WeightsExist before the trial, not only after it."""
    if target.is_dir() and not target.is_symlink():
        raise WeightsExist(f"the weights folder has a folder named {target.name}: choose another name")
    if os.path.lexists(target) and not overwrite:
        raise _exists(target.stem)


def _settle(file: IO[bytes]) -> None:
    """Sync the file to disk, readable by all like every weights file."""
    file.flush()
    os.chmod(file.name, 0o644)
    os.fsync(file.fileno())


def _publish(temporary: Path, target: Path, overwrite: bool) -> bool:
    """Give a file its name, atomically and durably. Returns whether it replaced another. Raises WeightsExist."""
    replaced = overwrite and os.path.lexists(target)
    if overwrite:
        os.replace(temporary, target)
    else:
        _claim(temporary, target)
    sync_folder(target.parent)
    return replaced


def _claim(temporary: Path, target: Path) -> None:
    """Give a file a name that no other file has. Raises WeightsExist, Busy."""
    try:
        os.link(temporary, target)  # unlike a rename, this never replaces
    except FileExistsError as error:
        raise _exists(target.stem) from error
    except OSError:  # a mounted bucket has no links: claim the name beside it, then rename
        claim = target.with_name(f"{PREFIX}claim-{target.name}")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError as error:
            raise Busy(f"another upload of {target.stem} is in progress: try again later", 10) from error
        try:
            if os.path.lexists(target):
                raise _exists(target.stem) from None
            os.replace(temporary, target)
        finally:
            claim.unlink(missing_ok=True)


async def _to_the_end(function: Callable[..., T], *arguments: object) -> T:
    """Run a function in a thread and return its result, whatever cancellations arrive meanwhile.

    A thread cannot be stopped. Leaving it behind would report a failure, and clean up, while it publishes the file.
    """
    task = asyncio.create_task(asyncio.to_thread(function, *arguments))
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()


def _exists(name: str) -> WeightsExist:
    return WeightsExist(f"there are weights named {name}: choose another name, or send overwrite=true")
