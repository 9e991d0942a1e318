"""The application's start."""

from django.apps import AppConfig

import beeline


class NotesConfig(AppConfig):
    name = "notes"

    def ready(self):
        beeline.init(service_name="django")
