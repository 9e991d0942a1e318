"""A Django application with one SQLite query a request: CPU of a request. See `serving.py`.

Django is imported where it is used, since some tracers have to come first.
"""

from serving import measure, subject
from wsgi import requests

urlpatterns = []


def configure(middleware):
    """Give Django its settings, with this middleware."""
    from django.conf import settings

    settings.configure(
        ALLOWED_HOSTS=["shop.example.com"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        MIDDLEWARE=middleware,
        ROOT_URLCONF=__name__,
        SECRET_KEY="benchmark",
        USE_TZ=True,
    )


def make():
    """Return the application."""
    from django.core.wsgi import get_wsgi_application
    from django.db import connection
    from django.http import JsonResponse
    from django.urls import path

    def show(request, article):
        with connection.cursor() as cursor:
            cursor.execute("SELECT title FROM articles WHERE id = %s", [article])
            (title,) = cursor.fetchone()
        return JsonResponse({"article": article, "title": title})

    urlpatterns.append(path("articles/<int:article>", show))
    app = get_wsgi_application()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE articles (id INTEGER PRIMARY KEY, title TEXT)")
        cursor.execute("INSERT INTO articles VALUES (7, 'Lamp')")
    return app


if subject:
    subject.django(configure)
else:
    configure([])
measure(requests(make()), least=2)
