"""The version of this distribution; `beeline.version` carries the same."""

VERSION = "4.0.0"
