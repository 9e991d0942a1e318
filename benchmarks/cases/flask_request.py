"""A Flask application called as WSGI servers call it: CPU of a request. See `serving.py`."""

from serving import measure, subject
from wsgi import requests


def make():
    import flask

    app = flask.Flask("benchmark")

    @app.route("/articles/<int:article>")
    def show(article):
        return {"article": article}

    return app


measure(requests(subject.flask(make) if subject else make()), least=1)
