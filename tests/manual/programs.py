"""Programs that serve, as a user would write them, each run as a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.receiver import Receiver
from tests.servers.helpers import TIMEOUT, environment

# Of the manual's snippets, which have the key in the code and no setting in the environment.
UNSET = {"HONEYCOMB_API_KEY": "", "HONEYCOMB_DATASET": "", "HONEYCOMB_SERVICE": ""}

_URL = re.compile(r"http://127\.0\.0\.1:[1-9]\d*")


@contextmanager
def running(receiver: Receiver, folder: Path, *arguments: str) -> Iterator[str]:
    """Run Python with these arguments in a folder; give the first URL that it prints."""
    with subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=folder,
        env=environment(receiver, **UNSET),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        limit = threading.Timer(TIMEOUT, process.kill)
        limit.start()
        printed = ""
        try:
            for line in process.stdout:
                printed += line
                match = _URL.search(line)
                # In debug mode the Beeline says where it sends.
                if match is not None and match[0] != receiver.url:
                    yield match[0]
                    break
            else:
                raise AssertionError(f"the program ended without a URL:\n{printed}")
        finally:
            limit.cancel()
            process.kill()
