"""The table of servers: how each is started, reached and stopped, and what is promised there."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.servers.nginx import nginx
from tests.support.certificates import self_signed
from tests.support.servers import free_port
from tests.support.services import require_module, require_program
from tests.support.site import READY, SHOP, Site, gunicorn, running
from tests.support.visitors import Door, Visits
from tests.support.waiting import wait_until

#: What an access log says of an envelope that arrived.
_ARRIVED = 'POST /async-hooks/run HTTP/1.1" 204'

#: The same on Werkzeug's server, which colours the request. Only the endpoint answers 204.
_WERKZEUG_ARRIVED = '" 204 -'


@dataclass(frozen=True, kw_only=True)
class Server:
    name: str
    command: Callable[[Door], list[str]]
    door: Callable[[Path], Door] = field(default=lambda folder: Door(port=free_port()))
    #: The package that it is; None: a program.
    package: str | None = "gunicorn"
    environ: Callable[[Door], dict[str, str]] = field(default=lambda door: {})
    #: What ends it in order.
    stop: signal.Signals = signal.SIGTERM
    #: Other visitors are served while a task runs; if not, only the one who launched it.
    serves_beside_a_task: bool = True
    #: Runs that its stop may break off: Ctrl-C is raised in the thread that serves.
    broken_off: int = 0
    #: A regular expression for what its log says of an envelope that arrived; None: it has none.
    arrived: str | None = _ARRIVED
    #: The worker processes that say when they are ready, and that a HUP replaces.
    workers: int = 0
    #: The path under which an nginx before it shows the site.
    prefix: str | None = None

    def __str__(self) -> str:
        return self.name


class Shop:
    """A server of the table, running, and the door that visitors use."""

    def __init__(self, server: Server, site: Site, door: Door) -> None:
        self.server = server
        self.site = site
        self.door = door
        self._filled = 0
        self._read = 0

    def under_way(self, visits: Visits) -> int:
        """Return how many accepted orders have not been filled; for one thread at a time."""
        path = self.site.folder / "ledger"
        if path.exists():
            with path.open("rb") as ledger:
                ledger.seek(self._read)
                news = ledger.read().rpartition(b"\n")[0]
            self._read += len(news)
            self._filled += news.count(b'"filled"')
        return len(visits.accepted) - self._filled

    def filled(self) -> Counter[str]:
        """Return how often each envelope has run to its end."""
        return Counter(line["id"] for line in self.site.notes("filled"))

    def begun(self) -> Counter[str]:
        """Return how often each envelope has begun to run."""
        return Counter(line["id"] for line in self.site.notes("order"))

    def has_started(self, workers: int) -> bool:
        """Tell whether so many worker processes have been ready since the start."""
        return self.site.log.count("Worker ready") >= workers

    def end(self) -> None:
        """Ask the server to end in order."""
        self.site.process.send_signal(self.server.stop)


@contextmanager
def opened(server: Server, folder: Path) -> Iterator[Shop]:
    """Run ``server``, without the library's fallback, until the block ends."""
    if server.package is not None:
        require_module(server.package)
    door = server.door(folder)
    # Another shell's background job would have Ctrl-C ignored, and so would its children.
    command = ["env", "--default-signal=INT", *server.command(door)]
    environ = {"SITE_ASYNC_HOOKS_FALLBACK": "null", **server.environ(door)}
    with ExitStack() as stack:
        visitors_door = door
        if server.prefix is not None and door.path is not None:
            port = stack.enter_context(nginx(folder, door.path, server.prefix))
            visitors_door = Door(port=port, root=server.prefix)
        site = stack.enter_context(running(folder, command, door.is_open, **environ))
        shop = Shop(server, site, visitors_door)
        wait_until(lambda: shop.has_started(server.workers), "the workers' start")
        yield shop


def _gunicorn(*options: str, app: str = SHOP) -> Callable[[Door], list[str]]:
    def command(door: Door) -> list[str]:
        bind = f"unix:{door.path}" if door.path is not None else f"127.0.0.1:{door.port}"
        tls = []
        if door.authority is not None:
            key = str(Path(door.authority).with_name("key.pem"))
            tls = ["--certfile", door.authority, "--keyfile", key]
        return gunicorn(*options, *tls, "-c", READY, "-b", bind, app=app)

    return command


def _flask_run(*options: str) -> Callable[[Door], list[str]]:
    def command(door: Door) -> list[str]:
        flask = [sys.executable, "-m", "flask", "--app", SHOP]
        return [*flask, "run", *options, "--port", str(door.port)]

    return command


def _waitress(door: Door) -> list[str]:
    listen = f"--listen=127.0.0.1:{door.port}"
    return [sys.executable, "-m", "waitress", listen, "--threads=8", SHOP]


def _uwsgi(*options: str) -> Callable[[Door], list[str]]:
    def command(door: Door) -> list[str]:
        program = require_program("uwsgi", beside=str(Path(sys.executable).parent))
        python = ["--virtualenv", sys.prefix, "--module", SHOP]
        return [program, "--http-socket", f"127.0.0.1:{door.port}", *python, *options]

    return command


def _unix(folder: Path) -> Door:
    return Door(path=str(folder / "shop.sock"))


def _tls(folder: Path) -> Door:
    certificate, _ = self_signed(folder, "127.0.0.1")
    return Door(port=free_port(), authority=str(certificate))


def _verify(door: Door) -> dict[str, str]:
    return {"SITE_ASYNC_HOOKS_VERIFY": str(door.authority)}


_GTHREAD = ("-w", "2", "-k", "gthread", "--threads", "8")

_gthread = Server(name="gunicorn gthread", command=_gunicorn(*_GTHREAD), workers=2)

SERVERS = [
    Server(
        name="flask run",
        command=_flask_run("--with-threads"),
        package="flask",
        stop=signal.SIGINT,
        # Ctrl-C in the instant that a run's thread is started closes its connection under it.
        broken_off=1,
        arrived=_WERKZEUG_ARRIVED,
    ),
    Server(
        name="flask run, no threads",
        command=_flask_run("--without-threads"),
        package="flask",
        stop=signal.SIGINT,
        serves_beside_a_task=False,
        broken_off=1,
        arrived=_WERKZEUG_ARRIVED,
    ),
    Server(
        name="gunicorn sync, one worker",
        command=_gunicorn("-w", "1", "-k", "sync"),
        serves_beside_a_task=False,
        workers=1,
    ),
    _gthread,
    Server(
        name="gunicorn gevent",
        command=_gunicorn("-w", "2", "-k", "gevent"),
        package="gevent",
        workers=2,
    ),
    replace(
        _gthread, name="gunicorn gthread, preloaded", command=_gunicorn(*_GTHREAD, "--preload")
    ),
    replace(_gthread, name="gunicorn gthread, TLS", door=_tls, environ=_verify),
    replace(_gthread, name="gunicorn gthread, unix socket", door=_unix),
    replace(
        _gthread,
        name="gunicorn gthread, unix socket, nginx",
        command=_gunicorn(*_GTHREAD, app="tests.support.shop:proxied"),
        door=_unix,
        prefix="/de/shop",
    ),
    Server(
        name="waitress", command=_waitress, package="waitress", stop=signal.SIGINT, arrived=None
    ),
    Server(
        name="uWSGI",
        command=_uwsgi(
            *("--master", "--processes", "2", "--threads", "4"),
            # TERM alone ends a worker at once, and one that is busy without its atexit.
            *("--hook-master-start", "unix_signal:15 gracefully_kill_them_all"),
        ),
        package=None,
        arrived=r"POST /async-hooks/run .*HTTP/1.1 204",
    ),
]
