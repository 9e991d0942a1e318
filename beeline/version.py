"""The version of this distribution; `libhoney.version` carries the same."""

VERSION = "4.0.0"
