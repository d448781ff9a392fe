"""The short scenarios of the fault suite; ``make faults`` plays all of them."""

import pytest

from crew.private_node import PrivateNode
from tests.faults.scenarios import Scenario, all_scenarios
from tests.faults.stage import play

SEED = '1'


@pytest.mark.parametrize('scenario', [one for one in all_scenarios() if one.short], ids=lambda one: one.name)
def test_nothing_is_lost(scenario: Scenario, broker: PrivateNode) -> None:
    row = play(scenario, SEED, lambda: broker)
    assert not row.complaints, '\n'.join((*row.complaints[:20], *row.notes, f'logs in {row.logs}'))
    assert row.answered > 20
