"""A Flask application called as WSGI servers call it: CPU of a request, with middleware or none.

flask_request.py REQUESTS traced|plain
"""

import io
import sys

import flask
from typical import SERVICE, WRITEKEY, Discard, microseconds_a_call, report

import beeline

app = flask.Flask("benchmark")


@app.route("/articles/<int:article>")
def show(article):
    return {"article": article}


if sys.argv[2] == "traced":
    from beeline.middleware.flask import HoneyMiddleware

    beeline.init(writekey=WRITEKEY, service_name=SERVICE, transmission_impl=Discard())
    HoneyMiddleware(app, db_events=False)

ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/articles/7",
    "QUERY_STRING": "page=2",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "shop.example.com",
    "HTTP_USER_AGENT": "Mozilla/5.0",
    "HTTP_ACCEPT": "*/*",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": False,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
}


def start_response(status, headers, exc_info=None):
    if status != "200 OK":
        sys.exit(f"answered {status}")


def requests(count):
    for _ in range(count):
        body = app({**ENVIRON, "wsgi.input": io.BytesIO()}, start_response)
        try:
            for _ in body:
                pass
        finally:
            body.close()


report(cpu_us=microseconds_a_call(requests, int(sys.argv[1])))
