"""A stand-in for the Hub on this machine, for tests and for trying dynquant offline.

hub.py          what it knows, and how tests set it up
server.py       HTTP in a thread           front.py        around every route
faults.py       switches that make requests fail
app.py          all routes together        calls.py        arguments of routes
reads.py        users, info, trees         listing.py      lists of repos, filtered and sorted
files.py        downloads, ranges          records.py      repos and files in JSON
commits.py      preupload and commit       lfs.py          large files on their way in
manage.py       repos, branches, tags      discussions.py  discussions and pull requests
access.py       tokens and rights          yaml_check.py   errors in a card's YAML
cards.py        metadata of a card         markdown.py     a card as HTML
pages.py        pages for people           style.css       how they look
repos.py        repos, commits, blobs      threads.py      discussions, as records
jobs.py         Jobs: routes            machines.py     Jobs as processes of this machine
hardware.py     what is rented, and for how much
store.py        where they are kept: in memory, or in a folder to go on with later

`python -m local_hub` serves one. It speaks HTTP as huggingface_hub 2.4.0 does, uploads by LFS
only: set HF_HUB_DISABLE_XET=1 before Python starts.
"""

from local_hub.answers import Answer, Request
from local_hub.faults import Fault
from local_hub.hub import LocalHub, account_id
from local_hub.repos import CONVERTED, Blob, Commit, Repo

__all__ = [
    "CONVERTED",
    "Answer",
    "Blob",
    "Commit",
    "Fault",
    "LocalHub",
    "Repo",
    "Request",
    "account_id",
]
