"""The project's routes."""

from __future__ import annotations

from django.urls import include, path, re_path

from . import views

shop = [
    path("<slug:name>/", views.hello, name="hello"),
    re_path(r"^isbn-(?P<name>\d+)$", views.hello),
]

urlpatterns = [
    path("hello/", include(shop)),
    path("hello-async/<slug:name>/", views.hello_async),
    path("shelf/", views.Shelf.as_view()),
    path("called/", views.called),
    path("partly/", views.partly),
    path("template/<str:name>/", views.template),
    path("books/<str:title>/", views.books),
    path("books-async/<str:title>/", views.books_async),
    path("books-native/<str:title>/", views.books_native),
    *[
        path(f"{view.__name__}/", view)
        for view in (
            views.left_open,
            views.rolled_up,
            views.fail,
            views.fail_async,
            views.missing,
            views.changes_user,
            views.bare,
            views.bare_async,
            views.forbidden,
            views.leave,
            views.nothing,
            views.absolute,
            views.form,
            views.ignores_form,
            views.sensitive_form,
            views.reads_stream,
            views.reads_stream_late,
            views.stream,
            views.stream_async,
            views.stream_endlessly,
            views.stream_endlessly_async,
            views.waits,
            views.works,
            views.meta,
            views.file,
            views.body,
            views.books_streamed,
            views.books_untraced,
        )
    ],
]
