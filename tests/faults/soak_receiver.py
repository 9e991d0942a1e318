"""The soak's receiver, in a process of its own.

It prints its URL and then obeys orders, one JSON object a line of stdin, until that ends:
`{"always": <an Answer's arguments or null>}`, `{"order": [<arguments>, ...]}`, `{"release": null}`,
`{"stop": null}`, `{"start": null}` and `{"report": <seconds>}`. The last one stops it and prints,
for each event by its field `number`, how often it was taken and how many of these times the client
may not have had the response: it was not sent whole, or only after so many seconds.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from tests.receiver import Answer, ReceivedRequest, Receiver

# Seconds after which what a request brought is of no more use, completed or not.
_OLD = 60.0


class Ledger:
    """Keeps of each event in which requests it came, and nothing more, for there are many."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._came_in: dict[int, list[ReceivedRequest]] = {}
        self._lock = threading.Lock()
        self._emptied = 0

    def collect(self) -> None:
        """Note and forget the events that came so far."""
        receiver = self.receiver
        with self._lock:
            taken = receiver.events[:]
            del receiver.events[: len(taken)]
            for event in taken:
                request = receiver.requests[event.batch]
                self._came_in.setdefault(event.data["number"], []).append(request)
            old = time.monotonic() - _OLD
            waiting = False
            for index in range(self._emptied, len(receiver.requests)):
                request = receiver.requests[index]
                if request.answered_at or request.received_at < old:
                    request.body, request.events = b"", None
                else:
                    waiting = True
                if not waiting:
                    self._emptied = index + 1

    def collect_always(self) -> None:
        """Collect twice a second."""
        while True:
            time.sleep(0.5)
            self.collect()

    def report(self, late: float) -> list[tuple[int, int, int]]:
        """Return each event's number, how often it was taken, and how many responses were lost."""
        self.collect()
        return [
            (number, len(requests), sum(_is_lost(request, late) for request in requests))
            for number, requests in self._came_in.items()
        ]


def _is_lost(request: ReceivedRequest, late: float) -> bool:
    return not request.answered_at or request.answered_at - request.received_at >= late


def _start(receiver: Receiver) -> None:
    """Listen on the same port again, which others may hold for a moment."""
    for _ in range(100):
        try:
            return receiver.start()
        except OSError:
            time.sleep(0.1)
    receiver.start()


def obey(ledger: Ledger, orders: dict[str, Any]) -> None:
    """Do what one line says."""
    receiver = ledger.receiver
    for verb, how in orders.items():
        if verb == "always":
            receiver.always(None if how is None else Answer(**how))
        elif verb == "order":
            receiver.order(*[Answer(**arguments) for arguments in how])
        elif verb == "release":
            receiver.release()
        elif verb == "stop":
            receiver.stop()
        elif verb == "start":
            _start(receiver)
        elif verb == "report":
            receiver.stop()
            print(json.dumps(ledger.report(how)), flush=True)
        else:
            raise ValueError(f"order {verb!r} is not known")


def main() -> None:
    """Receive and obey until stdin ends."""
    with Receiver() as receiver:
        ledger = Ledger(receiver)
        threading.Thread(target=ledger.collect_always, daemon=True).start()
        print(receiver.url, flush=True)
        for line in iter(sys.stdin.readline, ""):
            obey(ledger, json.loads(line))


if __name__ == "__main__":
    main()
