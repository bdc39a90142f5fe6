"""The version, written here and nowhere else. `docs/releasing.md` says when it changes."""

VERSION = "1.0.0.dev0"
