"""The accounts of a scenario: what clients asked and heard, what the application ran, and whether both may be so.

No socket, no clock: the load writes down what happened and when, this adds it up.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

__all__ = ['ENDS', 'IDEMPOTENT', 'Account', 'Exchange', 'Expectation', 'Row', 'runs_of']

#: RFC 9110 §9.2.2, of those that the load uses.
IDEMPOTENT = frozenset({'GET', 'PUT', 'DELETE'})

#: What the log says of the end of a long answer or upload.
ENDS = frozenset({'CLOSED', 'BROKEN'})

#: However busy the machine is: more than this is not laid to its charge, in seconds.
MOST_SLACK = 5.0

#: What tells a client that it may come again.
REFUSED = frozenset({503})


@dataclass(slots=True)
class Exchange:
    """One request and what its client heard.

    Args:
        id: its own, in its path, in the application's log, and in the answer.
        method: the request method.
        began: when it was sent, on ``time.monotonic``.
        ended: when its answer was whole, or the connection had ended.
        status: of its answer; 0 where there was none.
        wrong: what is wrong with the answer, if anything is.
        doomed: it brings a fault with it, so it is not part of the constant load and may get another answer.
        left: its client hung up before the answer was there.
    """

    id: str
    method: str
    began: float
    ended: float = 0.0
    status: int = 0
    wrong: str = ''
    doomed: bool = False
    left: bool = False

    @property
    def took(self) -> float:
        """How long its client waited, in seconds."""
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a scenario may cost.

    Args:
        statuses: what callers may hear beside 200.
        longest: the longest that any of them may wait, in seconds.
        recovers: how long after the fault's end the last answer other than 200 may come, in seconds.
        unanswered: whether the connection may end without an answer, because its front was killed.
        doomed: what the requests that bring the fault with them may hear.
    """

    statuses: frozenset[int] = frozenset()
    longest: float = 10.0
    recovers: float = 5.0
    unanswered: bool = False
    doomed: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Row:
    """What a scenario has shown: one line of the table, what is to be said of it, and where the logs are."""

    scenario: str
    sent: int
    answered: int
    refused: int
    failed: int
    unanswered: int
    run_twice: int
    wrong: int
    longest: float
    recovery: float | None
    complaints: tuple[str, ...]
    notes: tuple[str, ...] = ()
    logs: str = ''

    @property
    def passed(self) -> bool:
        """Whether nothing happened that must not."""
        return not self.complaints


@dataclass(slots=True)
class Account:
    """All exchanges of a scenario, and when the fault began and ended."""

    scenario: str
    expectation: Expectation
    exchanges: list[Exchange] = field(default_factory=list)
    broke: float | None = None
    mended: float | None = None
    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def slack(self) -> float:
        """How much longer anything may take because the machine is busy: twice the longest answer before the fault."""
        if self.broke is None:
            return 0.0
        before = (one.took for one in self.exchanges if one.ended < self.broke and one.status == 200 and not one.doomed)
        return min(MOST_SLACK, 2 * max(before, default=0.0))

    def settle(self, log: Iterable[str]) -> Row:
        """Hold the answers against the application's log, one line ``id method pid time`` for each run."""
        runs = runs_of(log)
        complaints = [*self.complaints, *self._complaints(runs)]
        statuses = [exchange.status for exchange in self.exchanges]
        return Row(
            scenario=self.scenario,
            sent=len(statuses),
            answered=statuses.count(200),
            refused=sum(status in REFUSED for status in statuses),
            failed=sum(status not in REFUSED | {0, 200} for status in statuses),
            unanswered=statuses.count(0),
            run_twice=sum(count == 2 for count in runs.values()),
            wrong=len(complaints),
            longest=max((exchange.took for exchange in self.exchanges), default=0.0),
            recovery=self._recovery(),
            complaints=tuple(complaints),
            notes=tuple(self.notes),
        )

    def _complaints(self, runs: Counter[str]) -> Iterable[str]:
        slack = self.slack
        if not any(exchange.status == 200 for exchange in self.exchanges):
            yield 'nothing was answered 200'
        for exchange in self.exchanges:
            for complaint in self._faults_of(exchange, runs[exchange.id], slack):
                yield f'{exchange.method} {exchange.id}: {complaint}'
        known = {exchange.id for exchange in self.exchanges}
        for stranger in runs.keys() - known:
            yield f'{stranger} was run, and nobody asked for it'
        recovery = self._recovery()
        if recovery is not None and recovery > self.expectation.recovers + slack:
            yield f'it took {recovery:.1f} s to recover; {self.expectation.recovers:g} s are allowed'

    def _faults_of(self, exchange: Exchange, runs: int, slack: float) -> Iterable[str]:
        expected = self.expectation
        if exchange.wrong:
            yield exchange.wrong
        if exchange.took > expected.longest + slack:
            yield f'answered after {exchange.took:.1f} s; {expected.longest:g} s are allowed'
        allowed: Collection[int] = {200} | (expected.doomed if exchange.doomed else expected.statuses)
        if exchange.status == 0:
            if not (expected.unanswered or exchange.left) and not exchange.wrong:
                yield 'the connection ended without an answer'
        elif exchange.status not in allowed:
            yield f'status {exchange.status}'
        most = 2 if exchange.method in IDEMPOTENT else 1
        if runs > most:
            yield f'run {runs} times'
        if exchange.status == 200 and not runs:
            yield 'answered 200 and never run'
        if exchange.status in REFUSED and runs and exchange.method not in IDEMPOTENT:
            yield 'told to come again (503) though it was run'

    def _recovery(self) -> float | None:
        """From the fault's end, or from its beginning where it is over at once, to the last answer that was not 200."""
        since = self.broke if self.mended is None else self.mended
        if since is None:
            return None
        late = [exchange.ended for exchange in self.exchanges if exchange.status != 200 and not exchange.doomed]
        return max([0.0, *(ended - since for ended in late)])


def runs_of(log: Iterable[str]) -> Counter[str]:
    """Count the runs of each request in the application's log."""
    return Counter(line.split()[0] for line in log if line.split()[1] not in ENDS)
