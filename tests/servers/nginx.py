"""A real nginx in front of a unix socket, with the site on a path of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import ServerProcess, answers, free_port
from tests.support.services import require_program

_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location {prefix}/ {{
            proxy_pass http://unix:{upstream}:/;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Prefix {prefix};
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, upstream: str, prefix: str) -> Iterator[int]:
    """Run nginx until the block ends; the value is its port, ``access.log`` is in ``folder``."""
    program = require_program("nginx")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, upstream=upstream, prefix=prefix))
    command = [program, "-p", str(folder), "-e", "stderr", "-c", str(config)]
    with ServerProcess(command, folder / "nginx.log") as server:
        server.wait_ready(lambda: answers(("127.0.0.1", port)))
        yield port
