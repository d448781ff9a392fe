"""Applications that nobody here wrote, and all that HTTP and PEP 3333 promise them, through the real stack."""

import re
from collections.abc import Iterator

import pytest

from crew.private_node import PrivateNode
from scripts.conformance import TARGET, shown
from tests.conformance import CHECKS, Check
from tests.conformance.servers import APPLICATIONS, Crew, Sites


@pytest.fixture(scope='module')
def sites(broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    with Crew(broker.url, tmp_path_factory.mktemp('sites')) as sites:
        yield sites


@pytest.mark.parametrize('check', CHECKS, ids=lambda check: f'{check.group}: {check.text}')
def test_an_application_does_not_notice_the_queue(check: Check, sites: Sites) -> None:
    if missing := APPLICATIONS[check.app].missing:
        pytest.skip(f'not installed: {", ".join(missing)}')
    check.run(sites[check.app])


def test_the_page_shows_each_check_and_that_crew_passes_it() -> None:
    page = TARGET.read_text(encoding='utf-8')
    rows = re.findall(r'^\| (.+?) \| ([✓✗]) \| [✓✗] \|', page, re.MULTILINE)
    assert rows == [(shown(check.text), '✓') for check in CHECKS]
