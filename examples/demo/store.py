"""The store of a book shop: which books there are, and how many copies of each.

Run it with a database in the environment:
`PYTHONPATH=../shared DATABASE_URL=sqlite:////tmp/books.db python store.py`
"""

import os

import serving
from flask import Flask, jsonify, request
from flask_sqlalchemy import SQLAlchemy

import beeline
from beeline.middleware.flask import HoneyMiddleware

PAGE = 2

beeline.init(service_name="demo-store")

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
HoneyMiddleware(app)  # a span for each request and, inside it, for each query
db = SQLAlchemy(app)


class Book(db.Model):
    id = db.Column(db.String(20), primary_key=True)
    title = db.Column(db.String(80), nullable=False)
    price = db.Column(db.Integer, nullable=False)
    copies = db.Column(db.Integer, db.CheckConstraint("copies >= 0"), nullable=False)


@app.get("/books")
def list_books():
    page = request.args.get("page", 1, type=int)
    chosen = db.select(Book.title).order_by(Book.title).offset((page - 1) * PAGE).limit(PAGE + 1)
    titles = db.session.scalars(chosen).all()
    return jsonify(titles=titles[:PAGE], next=page + 1 if len(titles) > PAGE else None)


@app.get("/books/<book_id>")
def show_book(book_id):
    book = db.get_or_404(Book, book_id)
    return jsonify(title=book.title, price=book.price)


@app.post("/books/<book_id>/buy")
def buy_book(book_id):
    book = db.get_or_404(Book, book_id)
    with beeline.tracer("take_from_shelf"):
        beeline.add_context_field("app.copies_before", book.copies)
        book.copies -= request.get_json()["copies"]
        # The database rejects a negative number. Nobody catches that: the request fails, and
        # three spans have the reason.
        db.session.commit()
    return "", 204


def fill():
    """Put some books on the shelf."""
    db.create_all()
    for book_id, title, price in (
        ("dune", "Dune", 12),
        ("emma", "Emma", 9),
        ("ficciones", "Ficciones", 11),
        ("solaris", "Solaris", 10),
        ("walden", "Walden", 8),
    ):
        db.session.add(Book(id=book_id, title=title, price=price, copies=3))
    db.session.commit()


if __name__ == "__main__":
    with app.app_context():
        fill()
    serving.serve(app)
