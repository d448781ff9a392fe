"""git over HTTP by dulwich: all bare repositories of a directory, for reading and writing."""

import os

import told
from dulwich.repo import Repo
from dulwich.server import Backend
from dulwich.web import make_wsgi_chain


class Repositories(Backend):
    """Finds repositories by the path of the URL."""

    def open_repository(self, path):
        return Repo(str(told.DATA / os.fsdecode(path).strip('/')))


app = make_wsgi_chain(Repositories())
