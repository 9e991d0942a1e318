"""Describe the distribution; tools are configured in pyproject.toml."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """Return the VERSION both packages state, without importing either."""
    versions = {}
    for path in ("beeline/version.py", "libhoney/version.py"):
        for node in ast.parse((HERE / path).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [
                "VERSION"
            ]:
                versions[path] = ast.literal_eval(node.value)
    if len(versions) != 2 or len(set(versions.values())) != 1:
        raise SystemExit(f"beeline and libhoney must state the same VERSION, found {versions}")
    return versions.popitem()[1]


# Where wheels are published. Elsewhere the standard json and zlib do the work,
# so that an installation never needs a compiler. orjson's wheels for Python 3.15 on Linux
# (3.13.0) need glibc 2.39, which no marker can ask for.
ORJSON_PLATFORMS = (
    "platform_python_implementation == 'CPython' and ("
    "(sys_platform == 'linux' and platform_machine in 'x86_64 i686 aarch64 armv7l'"
    " and python_version < '3.15')"
    " or sys_platform == 'darwin'"
    " or (sys_platform == 'win32' and platform_machine != 'ARM64')"
    " or (sys_platform == 'win32' and python_version >= '3.11'))"
)
ISAL_PLATFORMS = (
    "platform_python_implementation == 'CPython' and ("
    "(sys_platform == 'linux' and platform_machine in 'x86_64 aarch64')"
    " or (sys_platform == 'darwin' and platform_machine == 'x86_64')"
    " or (sys_platform == 'darwin' and python_version >= '3.10')"
    " or (sys_platform == 'win32' and platform_machine == 'AMD64'))"
)

FRAMEWORKS = {
    "bottle": ["bottle>=0.12.19"],
    "django": ["Django>=3.2"],
    "flask": ["Flask>=2.2"],
    "flask-sqlalchemy": ["Flask>=2.2", "Flask-SQLAlchemy>=3.0"],
    "jinja2": ["Jinja2>=3.0"],
    "sqlalchemy": ["SQLAlchemy>=1.4"],
    "tornado": ["tornado>=6.1"],
    "werkzeug": ["Werkzeug>=2.2"],
}
TRANSPORT = {
    "statsd": ["statsd>=3.3"],
    # Python has its own since 3.14.
    "zstd": ["zstandard>=0.21; python_version < '3.14'"],
}
# Without wheels for PyPy, or not for it at all.
CPYTHON = "platform_python_implementation == 'CPython'"
TEST = [
    *[requirement for extra in FRAMEWORKS.values() for requirement in extra],
    *[requirement for extra in TRANSPORT.values() for requirement in extra],
    "Flask[async]",
    # Drivers of databases: SQLite's async one, PostgreSQL's, MariaDB's.
    "aiosqlite>=0.19",
    "psycopg[binary]>=3.1",
    "PyMySQL>=1.1",
    # What is tested with the shared middleware, on its real servers.
    "a2wsgi>=1.10",
    "apig-wsgi>=2.17",
    "apig-wsgi>=2.18",
    "mangum>=0.17",
    "asgiref>=3.6",
    f"awslambdaric>=2; sys_platform == 'linux' and {CPYTHON}",
    "celery[redis]>=5.3",
    "djangorestframework>=3.15",
    # Middlewares that keep the request in context variables and thread-locals.
    "django-crum>=0.7.9",
    "django-currentuser>=0.7",
    "django-threadlocals>=0.10",
    "falcon>=3.1",
    "fastapi>=0.100",
    "Flask-Login>=0.6.3",
    "hypercorn>=0.16",
    "mangum>=0.17",
    "pyramid>=2.0",
    # No wheels for Python 3.15 (2.0.30.post1).
    f"pyuwsgi>=2.0.22; sys_platform != 'win32' and python_version < '3.15' and {CPYTHON}",
    "quart>=0.19",
    "rq>=1.16; sys_platform != 'win32'",
    "starlette>=0.36",
    "uvicorn>=0.27",
    # The last releases with wheels for Python 3.9 are older than the last that admit it.
    f"gevent>=24.2; sys_platform != 'win32' and python_version >= '3.10' and {CPYTHON}",
    f"gevent>=24.2,<26; sys_platform != 'win32' and python_version < '3.10' and {CPYTHON}",
    "gunicorn>=21; sys_platform != 'win32'",
    # Libraries that wrap, pickle or fake what tracing relies on: calls, closures, clocks.
    "cloudpickle>=3.0",
    "freezegun>=1.5",
    "sentry-sdk>=2.0",
    f"time-machine>=2.14; {CPYTHON}",
    f"hypothesis>=6.100; {CPYTHON}",
    "hypothesis>=6.100,<6.156; platform_python_implementation != 'CPython'",
    f"numpy>=2.0; {CPYTHON}",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "responses>=0.25",
    # Builds wheels by itself, as the packaging tests need; Pyramid's last release for Python 3.9
    # needs its pkg_resources.
    "setuptools>=70.1; python_version >= '3.10'",
    "setuptools>=70.1,<81; python_version < '3.10'",
]
LINT = [
    "mypy>=1.13",
    "ruff>=0.8",
    "types-requests",
]

setup(
    name="honeycomb-beeline",
    version=read_version(),
    description=(
        "Tracing and events for Python applications, sent to Honeycomb: an independent "
        "implementation of the beeline and libhoney packages, not Honeycomb's own"
    ),
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The honeycomb-beeline contributors",
    license="Apache-2.0",
    license_files=["LICENSE", "CONTRIBUTORS"],
    keywords=["honeycomb", "observability", "tracing", "instrumentation", "events"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Django",
        "Framework :: Flask",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Programming Language :: Python :: 3.15",
        "Topic :: System :: Monitoring",
        "Typing :: Typed",
    ],
    python_requires=">=3.9",
    packages=find_packages(include=["beeline", "beeline.*", "libhoney", "libhoney.*"]),
    package_data={"beeline": ["py.typed"], "libhoney": ["py.typed"]},
    zip_safe=False,
    install_requires=[
        "certifi",
        "requests>=2.26",
        "wrapt>=1.14,<3",
        f"orjson>=3.9; {ORJSON_PLATFORMS}",
        f"isal>=1.6; {ISAL_PLATFORMS}",
    ],
    extras_require={
        **FRAMEWORKS,
        **TRANSPORT,
        "test": TEST,
        "bench": ["matplotlib>=3.7"],
        "lint": LINT,
        "dev": TEST + LINT,
    },
)
