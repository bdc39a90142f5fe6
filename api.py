"""The HTTP service: `uvicorn api:app --http h11`, or `make serve`. The package service/ holds its parts.

Settings are environment variables: `python -m service.settings` lists them.
"""

from __future__ import annotations

import logging
import os
import sys

from fastapi import FastAPI

from service import logs
from service.app import create_app
from service.settings import CANNOT_START, Settings, SettingsError, check_metrics_folder, unknown

log = logging.getLogger("api")


def _from_environment() -> FastAPI:
    try:
        settings = Settings.from_environment(os.environ)
        check_metrics_folder(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"api.py: {error}\n")
        raise SystemExit(CANNOT_START) from None
    logs.configure(settings.log_level)
    for sentence in unknown(os.environ):
        log.warning(sentence)
    return create_app(settings)


app = _from_environment()
