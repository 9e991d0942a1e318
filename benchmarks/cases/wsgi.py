"""Requests to a WSGI application, as a server makes them."""

import io
import sys

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
        sys.exit(f"status {status}")


def requests(app):
    """Return a function that makes so many requests."""

    def make(count):
        for _ in range(count):
            body = app({**ENVIRON, "wsgi.input": io.BytesIO()}, start_response)
            try:
                for _ in body:
                    pass
            finally:
                body.close()

    return make
