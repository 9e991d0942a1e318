"""The front of a book shop. It asks the store, a second service, for books and prices.

Run it with the store's address in the environment:
`PYTHONPATH=../shared STORE_URL=http://... python front.py`
"""

import os
from concurrent.futures import ThreadPoolExecutor

import requests
import serving
from flask import Flask, Response, jsonify, request

import beeline
import beeline.patch.requests  # outgoing requests: a span each, with the trace's header
from beeline.middleware.flask import HoneyMiddleware

STORE = os.environ["STORE_URL"]


def scrub(fields):
    """Edit the fields of each span before it is sent: mask card numbers."""
    if "app.card" in fields:
        fields["app.card"] = "**** " + fields["app.card"][-4:]


# The API key is in the environment: HONEYCOMB_API_KEY.
beeline.init(service_name="demo-front", presend_hook=scrub)

app = Flask(__name__)
HoneyMiddleware(app)  # a trace for each incoming request


@app.after_request
def tell_trace_id(response):
    """Return the trace's id, so that a problem report can name it."""
    tracing = beeline.get_beeline()  # None if HONEYCOMB_DISABLED=true
    trace_id = tracing.tracer_impl.get_active_trace_id() if tracing else None
    if trace_id:
        response.headers["X-Trace-Id"] = trace_id
    return response


@app.post("/orders")
def order():
    wish = request.get_json()
    # A trace field is on all spans of the trace after this line, also those of the store.
    beeline.add_trace_field("customer", wish["customer"])
    return jsonify(price=place_order(wish["book"], wish["copies"], wish["card"])), 201


@beeline.traced("place_order")
def place_order(book, copies, card):
    price = find_book(book)["price"] * copies
    # A context field is only on this span.
    beeline.add_context({"app.book": book, "app.copies": copies, "app.price": price})
    sold = requests.post(f"{STORE}/books/{book}/buy", json={"copies": copies}, timeout=10)
    sold.raise_for_status()
    with beeline.tracer("charge_card"):
        beeline.add_context_field("app.card", card)  # see scrub
    return price


def find_book(book):
    answer = requests.get(f"{STORE}/books/{book}", timeout=10)
    answer.raise_for_status()
    return answer.json()


@app.errorhandler(requests.HTTPError)
def store_failed(error):
    return jsonify(error="the store could not do this"), 502


@app.get("/prices")
def prices():
    # `traced_thread` has a thread work in this trace.
    find = beeline.traced_thread(find_book)
    with ThreadPoolExecutor() as pool:
        found = pool.map(find, request.args.getlist("book"))
        return jsonify({book["title"]: book["price"] for book in found})


@app.get("/catalogue")
def catalogue():
    # The request's span ends when the last page has been sent.
    return Response(pages(), mimetype="text/plain")


def pages():
    number = 1
    while number is not None:
        with beeline.tracer("page"):
            page = requests.get(f"{STORE}/books", params={"page": number}, timeout=10).json()
            # A sum over the trace: the root span gets rollup.app.books.
            beeline.add_rollup_field("app.books", len(page["titles"]))
        yield "".join(f"{title}\n" for title in page["titles"])
        number = page["next"]


if __name__ == "__main__":
    serving.serve(app)
