"""Flask with Flask-SQLAlchemy: a span for each request and each query.

Start it: `python examples/flask_app.py`; then `curl localhost:8000/notes`.
"""

import os

from flask import Flask, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.pool import StaticPool

import beeline
from beeline.middleware.flask import HoneyMiddleware

beeline.init(service_name="flask")

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
# One connection for all threads: the notes live in this process's memory.
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": StaticPool}
HoneyMiddleware(app)
db = SQLAlchemy(app)


class Note(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    text = db.Column(db.String(200), nullable=False)


@app.get("/notes")
def list_notes():
    return jsonify([note.text for note in db.session.scalars(db.select(Note))])


@app.post("/notes")
def add_note():
    text = clean(request.get_json()["text"])
    db.session.add(Note(text=text))
    db.session.commit()
    return jsonify(text=text), 201


@beeline.traced("clean")
def clean(text):
    beeline.add_context_field("app.length", len(text))
    return " ".join(text.split())


with app.app_context():
    db.create_all()

if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "8000")))
