"""Django's command line.

First `python examples/django_project/manage.py migrate --run-syncdb`, which makes a database in
this folder; then the same with `runserver`, and `curl localhost:8000/notes/`.
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    execute_from_command_line(sys.argv)
