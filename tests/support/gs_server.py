"""A Google Cloud Storage service on loopback in a process of its own: an emulator, over real HTTP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "adapters"
# It does not know how Google's service moves an object, and gcsfs would ask again for half a minute.
# It has no public way to say which port it got; one that was looked for first may be taken meanwhile.
_START = r"""
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import objects

def move(request, response, storage, *_, **__):
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage)
    objects.delete(request, response, storage)

place = r"^/storage/v1/b/(?P<bucket_name>[^/]+)/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)$"
emulator.HANDLERS = ((place, {"POST": move}), *emulator.HANDLERS)
server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="adapters")
server.start()
print(server._api._httpd.server_address[1], flush=True)
input()
"""


@contextmanager
def gs_server() -> Iterator[str]:
    """Yield the address of a service with one empty bucket, ``BUCKET``."""
    process = subprocess.Popen(
        [sys.executable, "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def gs_environment(address: str) -> dict[str, str]:
    """Return what the library needs to find the service, in its own variables."""
    return {"STORAGE_EMULATOR_HOST": address, "NO_GCE_CHECK": "true"}
