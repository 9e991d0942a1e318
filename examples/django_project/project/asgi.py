"""For ASGI servers: `uvicorn project.asgi:application`."""

import os

from django.core.asgi import get_asgi_application

from beeline.middleware.asgi import HoneyASGIMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
# Django's own middleware makes the traces; this one sends the last of them at shutdown.
application = HoneyASGIMiddleware(get_asgi_application())
