"""The tables of the project."""

from __future__ import annotations

from django.db import models


class Book(models.Model):
    """A book that is for sale."""

    title = models.CharField(max_length=80, unique=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    bought = models.DateTimeField(null=True)
    cover = models.BinaryField(null=True)
    details = models.JSONField(null=True)

    class Meta:
        app_label = "django_site"
