"""The example's pages in a real browser, served through the queue by two processes."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from crew.private_node import PrivateNode
from tests.stack import Stack

EXAMPLE = Path(__file__).parent.parent / 'examples' / 'flask_app'
OFFLINE = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
)


@pytest.fixture(scope='module')
def site(broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the example, served by two processes."""
    stack = Stack(broker.url, 't-pages', tmp_path_factory.mktemp('site'))
    front = stack.front('--timeout', '2').await_ready()
    stack.worker('app:app', '--app-dir', str(EXAMPLE), '--processes', '2').await_ready(2)
    yield front.url
    stack.close()


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Debian's Chromium, which goes nowhere but to this machine."""
    chromium, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if (chromium is None or driver is None) and not os.environ.get('CI'):
        pytest.skip('chromium and chromium-driver are not installed')
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for argument in (*OFFLINE, f'--user-data-dir={tmp_path_factory.mktemp("chromium")}'):
        options.add_argument(argument)
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as chrome:
        chrome.set_window_size(1000, 900)
        yield chrome


def await_text(browser: webdriver.Chrome, wanted: str) -> None:
    """Wait until the page says it; the page may change meanwhile."""
    wait = WebDriverWait(browser, 30, ignored_exceptions=[WebDriverException])
    wait.until(lambda chrome: wanted in chrome.find_element(By.TAG_NAME, 'body').text)


def test_a_form_keeps_its_session_and_flashes(browser: webdriver.Chrome, site: str) -> None:
    for times in ('1 time', '2 times', '3 times'):
        browser.get(f'{site}/form')
        browser.find_element(By.NAME, 'name').send_keys('Neo')
        browser.find_element(By.NAME, 'message').send_keys('Wake up')
        browser.find_element(By.CSS_SELECTOR, 'form button').click()
        await_text(browser, f'posted {times}')
    await_text(browser, 'Wake up')


def test_a_browser_sees_that_workers_share_evenly(browser: webdriver.Chrome, site: str) -> None:
    browser.get(f'{site}/worker')
    browser.find_element(By.ID, 'send').click()
    await_text(browser, '40 requests answered by 2 workers')


def test_an_uploaded_file_arrives_whole(browser: webdriver.Chrome, site: str, tmp_path: Path) -> None:
    file = tmp_path / 'zeros.bin'
    file.write_bytes(bytes(1_000_000))
    browser.get(f'{site}/upload')
    browser.find_element(By.CSS_SELECTOR, 'input[type=file]').send_keys(str(file))
    browser.find_element(By.CSS_SELECTOR, 'form button').click()
    # sha256 of a million zero bytes.
    digest = 'd29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025'
    await_text(browser, digest)
    await_text(browser, 'zeros.bin')


def test_a_page_that_hangs_is_a_page_that_says_so(browser: webdriver.Chrome, site: str) -> None:
    browser.get(f'{site}/slow?seconds=0.1')
    browser.get(f'{site}/hang')
    assert browser.find_element(By.TAG_NAME, 'h1').text == '504 Gateway Timeout'
