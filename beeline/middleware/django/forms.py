"""The form that a request posts, as far as it may be recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from django.conf import settings
from django.http import QueryDict

import beeline
from beeline.middleware.server_span import ServerSpan
from beeline.scrubbing import MASK, mask_parameters
from libhoney.internal import is_interrupt

FORM_FIELD = "request.post"

_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
# Django's own default, which a project may raise.
_MAX_FORM_BYTES = 2_621_440


def form_fields(request: Any, read: Callable[[Any], dict[str, Any] | None]) -> dict[str, Any]:
    """Return `request.post` with the form that `read` returns; no field if it returns None."""
    try:
        current = beeline.get_beeline()
        if current is not None and current.settings.request_bodies:
            form = read(request)
            if form is not None:
                return {FORM_FIELD: mask_parameters(form)}
    except Exception as error:  # too many fields, or already read: the view handles that
        if is_interrupt(error):
            raise
    return {}


def read_form(request: Any) -> dict[str, Any] | None:
    """Return a form if reading it does not affect the view, else None."""
    if request.method != "POST" or request.content_type not in (_URLENCODED, _MULTIPART):
        return {}
    limit = min(settings.DATA_UPLOAD_MAX_MEMORY_SIZE or _MAX_FORM_BYTES, _MAX_FORM_BYTES)
    length = request.META.get("CONTENT_LENGTH")
    if request.content_type == _MULTIPART or not length or int(length) > limit:
        return None
    try:
        return QueryDict(request.body, encoding=request.encoding).dict()  # type: ignore[no-any-return]
    except OSError:
        request._read_started = False  # else the view gets an empty form instead of the error
        raise


def form_read_by_view(request: Any) -> dict[str, Any] | None:
    """Return a form with files if the view has read it, else None."""
    is_read = request.content_type == _MULTIPART and hasattr(request, "_post")
    return request.POST.dict() if is_read else None


def mask_sensitive(span: ServerSpan, request: Any) -> None:
    """Mask, in the recorded form, what the view declared sensitive, now that it ran; never raise.

    An interrupt sends the span without its form and is re-raised.
    """
    form = span.root.event._data.get(FORM_FIELD)
    if form is not None:
        span.add(lambda: _masked_form(form, request))


def _masked_form(form: Any, request: Any) -> dict[str, Any]:
    sensitive = getattr(request, "sensitive_post_parameters", ())
    if not sensitive or not isinstance(form, Mapping):
        return {}
    names = form if sensitive == "__ALL__" else sensitive
    return {FORM_FIELD: {**form, **{name: MASK for name in names if name in form}}}
