"""A Hub on this machine, for tests and for trying things offline; it stands in for the real one.

repos.py    what is stored: repos, commits, blobs
routes.py   the HTTP surface that huggingface_hub 2.4.0 speaks to
faults.py   switches that make a request fail
server.py   the server itself
"""

from tests.local_hub.answers import Answer, Request
from tests.local_hub.faults import Fault
from tests.local_hub.repos import CONVERTED, Blob, Commit, Repo
from tests.local_hub.server import LocalHub

__all__ = ["CONVERTED", "Answer", "Blob", "Commit", "Fault", "LocalHub", "Repo", "Request"]
