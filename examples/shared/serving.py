"""Run the examples' services until SIGTERM, without losing a request or a span.

An application in production has a server such as gunicorn for this, and needs none of it.
"""

import signal
import threading

from werkzeug.serving import make_server

import beeline


def serve(app):
    """Serve an application on a free port of this machine; at shutdown, flush the queue."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.daemon_threads = False  # at shutdown, wait for the requests in flight

    def stop(*_):
        # Not in this thread, which serves.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"listening on http://127.0.0.1:{server.port}", flush=True)
    responses = beeline.get_responses_queue()
    server.serve_forever(poll_interval=0.1)
    # The exit of the process would flush the queue too; this way we can report each outcome.
    beeline.close()
    tell_outcome(responses)


def tell_outcome(responses):
    """Count the responses: one for each span."""
    accepted, errors = 0, set()
    while responses is not None and not responses.empty():
        response = responses.get()
        if response is None:  # after the last one
            break
        if response["status_code"] == 202:
            accepted += 1
        else:
            errors.add(str(response["error"] or response["body"] or response["status_code"]))
    print(f"spans accepted: {accepted}", flush=True)
    for error in sorted(errors):
        print(f"spans not accepted: {error}", flush=True)
