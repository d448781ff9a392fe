"""The demo application keeps its promises under Flask's own test client: no front, no worker, no broker."""

import ctypes
import hashlib
import importlib.util
import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from flask import Flask, request_started
from flask.testing import FlaskClient

DIRECTORY = Path(__file__).parent.parent / 'examples' / 'flask_app'


@pytest.fixture(scope='module')
def demo() -> Iterator[ModuleType]:
    # Under a name of its own: `app` is what the tests of the loader call their modules, too.
    spec = importlib.util.spec_from_file_location('flask_example_app', DIRECTORY / 'app.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Flask finds its templates by it
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def client(demo: ModuleType) -> FlaskClient:
    app: Flask = demo.app
    return app.test_client()


def test_each_page_has_one_navigation_that_marks_where_one_is(client: FlaskClient) -> None:
    for path in ('/', '/form', '/upload', '/worker'):
        text = client.get(path).text
        assert text.count('<nav') == 1
        assert re.findall(r'href="([^"]+)" aria-current="page"', text) == [path]


def test_the_front_page_links_every_page_and_says_how_to_curl_it(client: FlaskClient, demo: ModuleType) -> None:
    text = client.get('/', base_url='http://127.0.0.1:8888').text
    for path in ('/form', '/upload', '/redirect', '/json', '/slow?seconds=2', '/hang', '/error', '/worker', '/headers'):
        assert f'<h2><a href="{path}">' in text
        assert f'http://127.0.0.1:8888{path}&#39;</code>' in text
    assert text.count('curl -i') == len(demo.PAGES) == 9


@pytest.mark.parametrize('path', ['/', '/form', '/upload', '/slow?seconds=0', '/worker', '/no-such-page'])
def test_a_page_loads_only_what_the_application_serves(client: FlaskClient, path: str) -> None:
    text = client.get(path).text
    loaded = re.findall(r'<(?:link|script|img)[^>]* (?:href|src)="([^"]+)"', text)
    assert '/static/style.css' in loaded
    for url in loaded:
        if not url.startswith('data:'):
            with client.get(url) as response:
                assert response.status_code == 200
    assert not re.search(r'\son\w+=|<style|<script>', text)


def test_css_and_script_load_nothing_either() -> None:
    for file in (DIRECTORY / 'static').iterdir():
        assert not re.search(r'@import|url\(|https?:', file.read_text(encoding='utf-8'))


def test_every_form_field_has_a_label(client: FlaskClient) -> None:
    for path in ('/form', '/upload', '/slow?seconds=0'):
        text = client.get(path).text
        fields = re.findall(r'<(?:input|textarea) id="(\w+)"', text)
        assert fields and len(fields) == len(re.findall('<input|<textarea', text))
        assert all(f'<label for="{field}">' in text for field in fields)


def test_a_post_is_redirected_to_a_page_that_shows_its_message_once_and_the_count(client: FlaskClient) -> None:
    for name in ('Ada', 'Zoë'):
        response = client.post('/form', data={'name': name, 'message': '<b>hello</b>'})
        assert (response.status_code, response.location) == (303, '/form')
        assert 'HttpOnly' in response.headers['Set-Cookie']
        assert f'Thank you, {name}.' in client.get('/form').text
    again = client.get('/form').text
    assert 'Thank you' not in again
    assert 'You have posted 2 times.' in again
    assert '<blockquote>&lt;b&gt;hello&lt;/b&gt;</blockquote>' in again


@pytest.mark.parametrize(('name', 'message'), [('', ''), ('Ada', ''), (' ', 'x'), ('Ada', 'x' * 201), ('x' * 41, 'x')])
def test_a_post_that_is_incomplete_or_too_long_is_refused(client: FlaskClient, name: str, message: str) -> None:
    response = client.post('/form', data={'name': name, 'message': message})
    assert response.status_code == 400
    assert 'class="flash error" role="alert"' in response.text
    assert f'value="{name}"' in response.text  # what was typed is still there
    assert f'>{message}</textarea>' in response.text
    assert 'You have not posted yet.' in client.get('/form').text


def test_the_longest_post_fits_into_a_cookie(client: FlaskClient) -> None:
    # Four bytes each in UTF-8, twelve in JSON, and no two alike: the worst that compression can meet.
    letters = [chr(0x20000 + 37 * number) for number in range(240)]
    response = client.post('/form', data={'name': ''.join(letters[200:]), 'message': ''.join(letters[:200])})
    assert response.status_code == 303
    assert len(response.headers['Set-Cookie']) < 4096


def test_an_upload_is_measured_as_it_was_sent(client: FlaskClient) -> None:
    content = bytes(range(256)) * 4000 + b'\r\n--x--'  # several pieces, and more than Werkzeug keeps in memory
    head = 'Content-Disposition: form-data; name="file"; filename="naïve.bin"\r\nContent-Type: application/x-demo'
    body = b'\r\n'.join([b'--cut', head.encode(), b'', content, b'--cut--', b''])
    response = client.post('/upload', data=body, content_type='multipart/form-data; boundary=cut')
    assert response.status_code == 200
    for shown in ('naïve.bin', 'application/x-demo', '1,024,007 bytes'):
        assert f'<dd>{shown}</dd>' in response.text
    assert hashlib.sha256(content).hexdigest() in response.text


def test_an_empty_file_may_be_uploaded_but_no_file_is_refused(client: FlaskClient) -> None:
    empty = client.post('/upload', data={'file': (io.BytesIO(), 'empty.txt')})
    assert empty.status_code == 200
    assert '<dd>0 bytes</dd>' in empty.text
    assert hashlib.sha256().hexdigest() in empty.text
    for nothing in ({}, {'file': (io.BytesIO(), '')}):
        refused = client.post('/upload', data=nothing, content_type='multipart/form-data')
        assert refused.status_code == 400
        assert 'Choose a file first.' in refused.text


def test_redirect_leads_to_the_front_page_with_a_message(client: FlaskClient) -> None:
    response = client.get('/redirect')
    assert (response.status_code, response.location) == (302, '/')
    assert 'You were redirected here' in client.get('/').text
    assert 'You were redirected here' not in client.get('/').text


def test_json_tells_what_was_sent_with_get(client: FlaskClient) -> None:
    response = client.get('/json?a=1&a=2&b=%C3%A9', headers={'X-Demo': 'yes'})
    assert response.mimetype == 'application/json'
    answer = response.get_json()
    assert answer['method'] == 'GET'
    assert answer['args'] == {'a': ['1', '2'], 'b': ['é']}
    assert ['X-Demo', 'yes'] in answer['headers']
    assert answer['worker'].keys() == {'pid', 'thread', 'hostname', 'served'}


@pytest.mark.parametrize('text', ['null', '0', '"é"', '[]', '{"z": [1, 2.5, true], "a": {"\\u00fc": null}}'])
def test_json_echoes_what_was_posted(client: FlaskClient, text: str) -> None:
    response = client.post('/json', data=text, content_type='application/json')
    assert (response.status_code, response.mimetype) == (200, 'application/json')
    echo, sent = json.loads(response.text), json.loads(text)
    assert echo == sent
    assert str(echo) == str(sent)  # the same order, too


def test_json_refuses_what_is_not_json(client: FlaskClient) -> None:
    assert client.post('/json', data='{', content_type='application/json').status_code == 400
    assert client.post('/json', data='{}', content_type='text/plain').status_code == 415


def test_slow_waits_as_long_as_asked(client: FlaskClient, demo: ModuleType) -> None:
    started = demo.time.monotonic()
    response = client.get('/slow?seconds=0.15')
    assert demo.time.monotonic() - started >= 0.15
    assert response.status_code == 200
    assert 'This took 0.15 seconds' in response.text


@pytest.mark.parametrize('seconds', ['', 'two', '-1', '30.1', 'nan', 'inf', '1e9'])
def test_slow_refuses_a_time_that_is_none(client: FlaskClient, seconds: str) -> None:
    response = client.get('/slow', query_string={'seconds': seconds})
    assert response.status_code == 400
    assert 'seconds must be' in response.text


def test_hang_goes_on_until_its_thread_is_made_to_exit(client: FlaskClient, demo: ModuleType) -> None:
    started, exited = threading.Event(), threading.Event()

    def ask() -> None:
        with pytest.raises(SystemExit):
            client.get('/hang')
        exited.set()

    thread = threading.Thread(target=ask, daemon=True)
    with request_started.connected_to(lambda _: started.set(), demo.app):
        thread.start()
        assert started.wait(5)
    assert not exited.wait(0.3)
    # As a worker does when the time is over.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    assert exited.wait(5)
    thread.join()


def test_error_is_answered_500_and_logged(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    response = client.get('/error')
    assert response.status_code == 500
    assert '500 Internal Server Error' in response.text
    assert 'on purpose' not in response.text
    assert 'RuntimeError: This page fails on purpose.' in caplog.text


def test_worker_tells_who_answered_and_how_often_without_being_cached(client: FlaskClient, demo: ModuleType) -> None:
    answer = client.get('/worker.json')
    first, second = answer.get_json(), client.get('/worker.json').get_json()
    assert second == first | {'served': first['served'] + 1}
    assert first['pid'] == demo.os.getpid()
    assert first['thread'] == threading.current_thread().name
    page = client.get('/worker')
    assert f'<h1>Process {demo.os.getpid()} served this</h1>' in page.text
    assert f'<dd>{second["served"] + 1}</dd>' in page.text
    assert {response.headers['Cache-Control'] for response in (answer, page)} == {'no-store'}


def test_no_request_is_counted_twice_or_forgotten_when_threads_share_the_process(demo: ModuleType) -> None:
    served: list[int] = []

    def ask() -> None:
        client = demo.app.test_client()
        served.extend(client.get('/worker.json').json['served'] for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(served) == list(range(min(served), min(served) + 400))


def test_headers_are_listed_as_plain_text_with_the_request_id(client: FlaskClient) -> None:
    response = client.get('/headers?q=%20', headers={'X-Request-ID': 'abc-123', 'X-Demo': '<b>'})
    assert response.mimetype == 'text/plain'
    lines = response.text.splitlines()
    assert 'X-Demo: <b>' in lines
    assert 'HTTP_X_REQUEST_ID = abc-123' in lines
    assert 'QUERY_STRING = q=%20' in lines
    assert 'wsgi.url_scheme = http' in lines
    assert 'HTTP_X_REQUEST_ID = (not set)' in client.get('/headers').text


def test_the_request_id_stands_at_the_foot_of_every_page(client: FlaskClient) -> None:
    for path in ('/', '/form', '/error', '/no-such-page'):
        assert '<code>abc-123</code>' in client.get(path, headers={'X-Request-ID': 'abc-123'}).text


def test_an_error_page_keeps_the_status_and_the_headers_of_its_error(client: FlaskClient) -> None:
    assert client.get('/no-such-page').status_code == 404
    response = client.delete('/json')
    assert response.status_code == 405
    assert {'GET', 'POST'} <= set(response.headers['Allow'].split(', '))


def test_a_browser_that_asks_for_an_icon_gets_none(client: FlaskClient) -> None:
    response = client.get('/favicon.ico')
    assert (response.status_code, response.data) == (204, b'')


def test_links_follow_the_place_where_the_application_is_mounted(client: FlaskClient) -> None:
    text = client.get('/worker', environ_overrides={'SCRIPT_NAME': '/demo'}).text
    local = re.findall(r'(?:href|src|data-url)="(/[^"]*)"', text)
    assert len(local) > 10
    assert all(url.startswith('/demo/') for url in local)
