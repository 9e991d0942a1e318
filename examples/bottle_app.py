"""Bottle: a span for each request, and a custom one inside.

Start it: `python examples/bottle_app.py`; then `curl localhost:8000/greet/ann`.
"""

import os

import bottle

import beeline
from beeline.middleware.bottle import HoneyWSGIMiddleware

beeline.init(service_name="bottle")

app = bottle.Bottle()


@app.get("/greet/<name>")
def greet(name):
    with beeline.tracer("choose_greeting"):
        beeline.add_context({"app.name": name, "app.is_short": len(name) < 4})
        greeting = "Hi" if len(name) < 4 else "Good day"
    return f"{greeting}, {name}!\n"


@app.get("/count/<end:int>")
def count(end):
    """Stream: spans made while streaming are in the request's trace, which ends with the stream."""
    for number in range(end):
        with beeline.tracer("count"):
            yield f"{number}\n"


if __name__ == "__main__":
    bottle.run(HoneyWSGIMiddleware(app), port=int(os.environ.get("PORT", "8000")), quiet=True)
