"""A view of each kind: sync, and async."""

import json

from django.http import Http404, JsonResponse

import beeline
from notes.models import Note


def notes(request):
    """List the notes; POST adds one."""
    if request.method == "POST":
        with beeline.tracer("clean"):
            text = " ".join(json.loads(request.body)["text"].split())
            beeline.add_context_field("app.length", len(text))
        return JsonResponse({"id": Note.objects.create(text=text).id}, status=201)
    return JsonResponse({"notes": [note.text for note in Note.objects.all()]})


async def note(request, number):
    """Show one note."""
    beeline.add_trace_field("note", number)
    found = await Note.objects.filter(id=number).afirst()
    if found is None:
        raise Http404("there is no such note")
    return JsonResponse({"text": found.text})
