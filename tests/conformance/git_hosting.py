"""git over HTTP by dulwich, asked by the git command line (``tests/apps/git_server.py``)."""

import os
import subprocess
from pathlib import Path

from tests.conformance.site import Checks, Site, need, same

__all__ = ['checks']

checks = Checks('git', 'git')

MEBIBYTE = 1024 * 1024


class Repository:
    """A bare repository at the site, and clones of it."""

    def __init__(self, site: Site) -> None:
        name = site.key()
        self.url = f'{site.url}/{name}.git'
        self._clones = site.data / f'{name}-clones'
        self._clones.mkdir()
        self.git('init', '--quiet', '--bare', '--initial-branch=main', str(site.data / f'{name}.git'))

    def git(self, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """Run git as nobody in particular; return what it prints."""
        env = {**os.environ, 'HOME': str(self._clones), 'GIT_CONFIG_NOSYSTEM': '1', 'GIT_TERMINAL_PROMPT': '0'}
        identity = ('-c', 'user.name=Ada', '-c', 'user.email=ada@example.org', '-c', 'gc.auto=0')
        command = ['git', *identity, *options, *arguments]
        done = subprocess.run(command, env=env, cwd=self._clones, capture_output=True, text=True, timeout=60)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ['']
            command = next(word for word in arguments if word[0] not in '-/')
            raise AssertionError(f'git {command} failed: {lines[-1]}'.replace(self.url, 'URL'))
        return done.stdout

    def clone(self, name: str, *arguments: str) -> Path:
        """Clone over HTTP."""
        self.git('clone', '--quiet', *arguments, self.url, name)
        return self._clones / name

    def push(self, clone: Path, files: dict[str, bytes], *options: str) -> str:
        """Commit files and push them over HTTP; return the commit."""
        for name, data in files.items():
            (clone / name).write_bytes(data)
        self.git('-C', str(clone), 'add', '.')
        self.git('-C', str(clone), 'commit', '--quiet', '-m', 'Change')
        self.git('-C', str(clone), 'push', '--quiet', 'origin', 'HEAD:refs/heads/main', options=options)
        return self.head(clone)

    def head(self, clone: Path) -> str:
        return self.git('-C', str(clone), 'rev-parse', 'HEAD').strip()


def push_and_clone(site: Site, files: dict[str, bytes], *options: str) -> None:
    """Fail unless what is pushed is what a clone then has."""
    repository = Repository(site)
    commit = repository.push(repository.clone('first'), files, *options)
    second = repository.clone('second')
    same('the commit of a clone after the push', repository.head(second), commit)
    same(
        'its files',
        {path.name: path.read_bytes() == files[path.name] for path in second.glob('[!.]*')},
        dict.fromkeys(files, True),
    )
    repository.git('-C', str(second), 'fsck', '--strict')


@checks('push, and a clone has what was pushed')
def _(site: Site) -> None:
    push_and_clone(site, {'README': b'hello\n', 'empty': b''})


@checks('push of 4 MiB, and clone')
def _(site: Site) -> None:
    push_and_clone(site, {'data': os.urandom(4 * MEBIBYTE)})


@checks('push in chunks (a small http.postBuffer)')
def _(site: Site) -> None:
    push_and_clone(site, {'data': os.urandom(2 * MEBIBYTE)}, '-c', 'http.postBuffer=1000')


@checks('push that asks for 100 Continue')
def _(site: Site) -> None:
    options = ('-c', 'http.postBuffer=1000', '-c', 'http.extraHeader=Expect: 100-continue')
    push_and_clone(site, {'data': os.urandom(MEBIBYTE)}, *options)


@checks('fetch of what somebody else pushed, its request in gzip')
def _(site: Site) -> None:
    repository = Repository(site)
    first = repository.clone('first')
    repository.push(first, {'README': b'hello\n'})
    second = repository.clone('second')
    # Above 1,024 bytes git compresses its request, and each branch that it wants makes it longer.
    for each in range(20):
        repository.git('-C', str(first), 'commit', '--quiet', '--allow-empty', '-m', f'Change {each}')
        repository.git('-C', str(first), 'branch', f'branch-{each}')
        repository.git('-C', str(second), 'commit', '--quiet', '--allow-empty', '-m', f'Own {each}')
    repository.git('-C', str(first), 'push', '--quiet', '--all', 'origin')
    repository.git('-C', str(second), 'fetch', '--quiet', 'origin')
    fetched = repository.git('-C', str(second), 'rev-parse', 'origin/branch-19').strip()
    same('what was fetched', fetched, repository.head(first))


@checks('shallow clone')
def _(site: Site) -> None:
    repository = Repository(site)
    first = repository.clone('first')
    for each in range(3):
        repository.push(first, {'README': f'{each}\n'.encode()})
    shallow = repository.clone('shallow', '--depth=1')
    same('the number of commits', repository.git('-C', str(shallow), 'rev-list', '--count', 'HEAD').strip(), '1')


@checks('a repository that is not there')
def _(site: Site) -> None:
    repository = Repository(site)
    repository.url = f'{site.url}/nothing.git'
    try:
        repository.clone('nothing')
    except AssertionError as error:
        need('not found' in str(error), str(error))
    else:
        raise AssertionError('it was cloned')
