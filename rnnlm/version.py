"""The version, written here and nowhere else. `docs/releasing.md` says when it changes."""

VERSION = "0.2.0"
