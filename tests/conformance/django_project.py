"""Django with its admin: sessions, CSRF tokens, uploads and long responses (``tests/apps/shop``)."""

import hashlib
import os
import re

import requests

from tests.conformance.site import Checks, Site, need, same

__all__ = ['checks']

checks = Checks('Django', 'django')

MEBIBYTE = 1024 * 1024
TIMEOUT = 60


def token(page: requests.Response) -> str:
    """Return the CSRF token of a form."""
    match = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    need(match, f'no form came, but {page.status_code}')
    assert match
    return match[1]


def log_in(site: Site, session: requests.Session) -> requests.Response:
    """Log in to the admin; return the page that follows."""
    page = session.get(f'{site.url}/admin/', timeout=TIMEOUT)
    need(page.url.endswith('/admin/login/?next=/admin/'), f'not sent to the login, but to {page.url}')
    form = {'username': 'ada', 'password': 'correct horse', 'csrfmiddlewaretoken': token(page), 'next': '/admin/'}
    return session.post(page.url, data=form, timeout=TIMEOUT)


@checks('admin: login with CSRF token and session, and logout')
def _(site: Site) -> None:
    with requests.Session() as session:
        page = log_in(site, session)
        same('where the login leads', (page.status_code, page.url), (200, f'{site.url}/admin/'))
        need('sessionid' in session.cookies and 'ada' in page.text, 'nobody is logged in')
        session.post(f'{site.url}/admin/logout/', {'csrfmiddlewaretoken': token(page)}, timeout=TIMEOUT)
        after = session.get(f'{site.url}/admin/', timeout=TIMEOUT)
        need('/login/' in after.url, 'still logged in after the logout')


@checks('admin: a wrong password, and no CSRF token')
def _(site: Site) -> None:
    with requests.Session() as session:
        login = f'{site.url}/admin/login/'
        form = {
            'username': 'ada',
            'password': 'wrong',
            'csrfmiddlewaretoken': token(session.get(login, timeout=TIMEOUT)),
        }
        answer = session.post(login, data=form, timeout=TIMEOUT)
        need('correct username and password' in answer.text, 'a wrong password is not refused')
    answer = requests.post(f'{site.url}/admin/login/', data={'username': 'ada'}, timeout=TIMEOUT)
    same('the status without a token', answer.status_code, 403)


@checks('admin: an object is made, listed, changed and deleted')
def _(site: Site) -> None:
    products = f'{site.url}/admin/shop/product'
    name = f'Tea № {site.key()}'
    with requests.Session() as session:
        log_in(site, session)
        form = session.get(f'{products}/add/', timeout=TIMEOUT)
        data = {'csrfmiddlewaretoken': token(form), 'name': name, 'price': '4.20', '_save': 'Save'}
        page = session.post(f'{products}/add/', data=data, timeout=TIMEOUT)
        same('where it leads', (page.status_code, page.url), (200, f'{products}/'))
        need('was added successfully' in page.text, 'there is no message of success')
        found = re.search(rf'/product/(\d+)/change/[^>]*>{name}<', page.text)
        need(found, 'the object is not listed')
        assert found
        change = f'{products}/{found[1]}/change/'
        data = {**data, 'csrfmiddlewaretoken': token(session.get(change, timeout=TIMEOUT)), 'price': '5'}
        need('was changed successfully' in session.post(change, data=data, timeout=TIMEOUT).text, 'it is not changed')
        delete = f'{products}/{found[1]}/delete/'
        data = {'csrfmiddlewaretoken': token(session.get(delete, timeout=TIMEOUT)), 'post': 'yes'}
        need('was deleted successfully' in session.post(delete, data=data, timeout=TIMEOUT).text, 'it is not deleted')


@checks('an upload of 30 MiB arrives whole')
def _(site: Site) -> None:
    data = os.urandom(MEBIBYTE) * 30
    files = {'file': ('naïve name.bin', data, 'application/octet-stream')}
    answer = requests.post(f'{site.url}/upload', files=files, data={'title': 'größer'}, timeout=TIMEOUT)
    same('the status', answer.status_code, 200)
    wanted = {'name': 'naïve name.bin', 'size': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
    same('the upload', answer.json(), {**wanted, 'title': 'größer'})


@checks('StreamingHttpResponse arrives piece by piece')
def _(site: Site) -> None:
    key = site.key()
    site.go(f'{key}.0')
    with requests.get(f'{site.url}/stream', {'key': key}, stream=True, timeout=TIMEOUT) as answer:
        lines = answer.iter_lines(chunk_size=1)
        for each in range(3):
            site.go(f'{key}.{each}')
            same('the piece', next(lines), f'piece {each}'.encode())


@checks('FileResponse of 20 MiB has its length and its bytes')
def _(site: Site) -> None:
    data = os.urandom(MEBIBYTE) * 20
    (site.data / 'big.bin').write_bytes(data)
    answer = requests.get(f'{site.url}/download', {'name': 'big.bin'}, timeout=TIMEOUT)
    same('the status', answer.status_code, 200)
    same('Content-Length', answer.headers.get('Content-Length'), str(len(data)))
    same('Content-Disposition', answer.headers['Content-Disposition'], 'attachment; filename="big.bin"')
    need(answer.content == data, 'other bytes came')


@checks('what is not there is a 404, static files too')
def _(site: Site) -> None:
    for path in ('/static/admin/css/base.css', '/nowhere/'):
        answer = requests.get(site.url + path, timeout=TIMEOUT)
        same('the status', answer.status_code, 404)
        need('not found' in answer.text.lower(), 'it is not the page of the application')
