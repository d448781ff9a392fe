"""Checks of a web server by the applications that people bring, and by what HTTP and PEP 3333 promise.

They know nothing of crew: each is given a :class:`tests.conformance.site.Site`, where one of ``tests/apps`` answers.
``tests/test_real_applications.py`` runs them against crew, ``scripts/conformance.py`` against others too.
"""

from tests.conformance import django_project, events, git_hosting, httpbin_client, raw_http, webdav, wsgi
from tests.conformance.site import Check, Site

__all__ = ['CHECKS', 'Check', 'Site']

_MODULES = (raw_http, wsgi, django_project, git_hosting, httpbin_client, webdav, events)

#: All checks, in the order in which they are shown.
CHECKS: list[Check] = [check for module in _MODULES for check in module.checks.all]
