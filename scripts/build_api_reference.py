"""Write ``docs/api.md``, the reference of what users of crew may use, from the docstrings.

``griffe`` reads the code without running it, so the page does not depend on the Python that makes it. Only the worker's
command line is asked for its options, one by one: the ``--help`` of argparse looks different from version to version.
"""

import argparse
import ast
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe

__all__ = ['FACES', 'HIDDEN', 'TARGET', 'load', 'page', 'parameters', 'public_methods', 'sections']

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / 'docs' / 'api.md'

WIDTH = 110

FACES = ('asyncio', 'tornado', 'threaded_client', 'gevent', 'twisted')

# Whoever waits never calls these: the client does.
HIDDEN = {'future', 'resolve', 'reject', 'settle'}

INTRODUCTION = """
`make docs` writes this page from the docstrings: change those, not this. What is not here is not for use from outside.
[architecture.md](architecture.md) says how it works inside, [protocol.md](protocol.md) what is on the wire. All times
are in seconds, all sizes in bytes, unless something else is said.
"""


def load(package: str) -> griffe.Object:
    """Read a package, without importing it."""
    loaded = griffe.load(
        package,
        search_paths=[str(ROOT)],
        allow_inspection=False,
        docstring_parser='google',
        docstring_options={'returns_multiple_items': False, 'returns_named_value': False, 'warnings': False},
    )
    assert isinstance(loaded, griffe.Object)
    return loaded


def sections(thing: griffe.Object | griffe.Alias) -> Iterator[tuple[str, str, Any]]:
    """Give the parts of a docstring: what each is (``text``, ``parameters`` …), its title, and what is in it."""
    if thing.docstring is not None:
        for section in thing.docstring.parsed:
            yield section.kind.value, section.title or '', section.value


def parameters(function: griffe.Object | griffe.Alias) -> list[griffe.Parameter]:
    """Return the parameters that a caller gives."""
    return [parameter for parameter in function.parameters if parameter.name not in ('self', 'cls')]


def public_methods(cls: griffe.Object | griffe.Alias) -> list[griffe.Function]:
    """Return the methods that a class itself defines for its users."""
    return [
        member
        for name, member in cls.members.items()
        if isinstance(member, griffe.Function) and not name.startswith('_') and name not in HIDDEN
    ]


def page() -> str:
    """Return the whole page."""
    return _Writer().page()


class _Writer:
    """Writes the page. References to other entries are put in at the end, when all are known."""

    def __init__(self) -> None:
        self._crew = load('crew')
        self._lines: list[str] = []
        self._contents: list[str] = []
        self._slugs: dict[str, int] = {}
        self._anchors: dict[str, str] = {}
        self._references: list[tuple[str, str, str]] = []

    def page(self) -> str:
        """Return the page."""
        self._clients()
        self._workers()
        self._values()
        self._addresses()
        self._testing()
        self._private_node()
        self._errors()
        self._types()
        head = ['# API reference', INTRODUCTION.strip(), '## Contents', '\n'.join(self._contents)]
        text = '\n\n'.join([*head, *self._lines]) + '\n'
        return re.sub(r'\0(\d+)\0', lambda match: self._link(*self._references[int(match[1])]), text)

    # What there is

    def _clients(self) -> None:
        base = self._crew['master.client.BaseClient']
        shared = list(sections(base))
        reconnect = next(value for kind, title, value in shared if title == 'What happens on reconnect')
        self._heading(2, 'Clients')
        self._text(_first_paragraph(self._crew['master.client']), base)
        self._add(
            'All take the same arguments and have the same methods. They differ in what is waited on (here `F`),\n'
            'how it is waited for, and where callbacks are made:'
        )
        rows = [(f'`crew.master.{face}`', _first_paragraph(self._crew[f'master.{face}'])) for face in FACES]
        self._table(('module', ''), rows, base, 'crew.master.')
        self._heading(3, '`Client(…)`', base.path)
        self._signature('Client', base.members['__init__'])
        self._sections([section for section in shared if section[2] is not reconnect], base)
        counters = self._crew['master.caller.Counters']
        self._heading(4, '`client.counters`', counters.path)
        self._sections(sections(counters), counters)
        self._heading(3, 'What happens on reconnect')
        self._table(('what', 'happens'), _items(reconnect.contents), base)
        self._heading(3, 'Methods of all clients')
        for method in public_methods(base):
            self._function(4, f'client.{method.name}', method)
        for face in FACES:
            self._face(self._crew[f'master.{face}'])
        parallel = self._crew['master.parallel.Parallel']
        self._heading(3, '`crew.master.parallel.Parallel`', parallel.path)
        self._class_body(parallel, signature='')
        for method in public_methods(parallel):
            self._function(4, f'Parallel.{method.name}', method)

    def _face(self, module: griffe.Object) -> None:
        self._heading(3, f'`{module.path}`', module.path)
        self._text(_docstring(module), module)
        # The client first, whatever the alphabet says.
        for name in sorted(module.exports or (), key=lambda name: name != 'Client'):
            thing = module.members[str(name)]
            if thing.is_alias:
                self._heading(4, f'`{name}`', thing.path)
                self._add(f'The same as {self._reference(thing.target.path, module, thing.target.path)}.')
                continue
            self._heading(4, f'`{name}`', thing.path)
            bases = ', '.join(map(str, thing.bases))
            self._class_body(thing, signature='' if name == 'Client' else f'class {name}({bases})'.replace('()', ''))
            for method in public_methods(thing):
                self._function(4, f'{name}.{method.name}', method)

    def _workers(self) -> None:
        worker = self._crew['worker']
        self._heading(2, 'Workers', worker.path)
        self._text(_docstring(worker), worker)
        run = worker['command.run']
        self._function(3, 'crew.worker.run', run, f'{worker.path}.run')
        self._heading(4, 'Command line of a worker')
        for title, rows in _command_line():
            self._add(f'**{title.capitalize()}**')
            self._table(('option', 'meaning'), rows, run)
        for name in ('Task', 'HandlerClass'):
            thing = worker[f'registry.{name}']
            self._heading(3, f'`crew.worker.{name}`', thing.path, f'{worker.path}.{name}')
            self._class_body(thing, signature=name)
            for method in public_methods(thing):
                self._function(4, f'{name}.{method.name}', method)
        self._function(3, 'crew.worker.on_start', worker['registry.on_start'], f'{worker.path}.on_start')
        context = worker['contexts.Context']
        self._heading(
            3, '`crew.worker.context`', context.path, f'{worker.path}.contexts.context', 'crew.worker.context'
        )
        self._class_body(context, signature='')
        self._members('context', context)
        self._function(4, 'context.pubsub.publish', worker['contexts.PubSub.publish'])

    def _values(self) -> None:
        self._heading(2, 'Values and their limits', 'crew.payloads')
        for name in ('serializers', 'compression', 'payloads'):
            module = self._crew[name]
            self._text(_docstring(module), module)
        serializers = self._crew['serializers']
        written = _literal(serializers.members['CONTENT_TYPES'])
        self._heading(3, 'Serializers', serializers.path, f'{serializers.path}.dump')
        harmless = str(serializers.members['_HARMLESS'].value)
        rows = [
            (f'`{name}`', f'`{kind}`', 'always' if f"'{name}'" in harmless else f"with `accept={{'{name}'}}`")
            for name, kind in written.items()
        ]
        self._table(('serializer', 'content type', 'is read'), rows, serializers)
        self._heading(3, 'Limits')
        rows = []
        for path in (
            'compression.MAX_PAYLOAD',
            'payloads.MAX_BODY',
            'payloads.COMPRESS_ABOVE',
            'serializers.MAX_VALUES',
        ):
            constant = self._crew[path]
            rows.append((f'`crew.{path}`', f'`{constant.value}`', _comment_above(constant)))
        self._table(('limit', 'value', 'meaning'), rows, self._crew)

    def _addresses(self) -> None:
        addresses, tls = self._crew['transports.addresses'], self._crew['transports.tls']
        self._heading(2, 'Addresses of brokers', addresses.path)
        self._text(_docstring(addresses), addresses)
        dial = addresses['dial']
        url = next(
            item for kind, _, items in sections(dial) if kind == 'parameters' for item in items if item.name == 'url'
        )
        self._add('They are written ' + self._marked(_joined(url.description), dial))
        self._function(3, 'crew.transports.addresses.default_urls', addresses['default_urls'])
        self._heading(3, 'TLS: `amqps://`', tls.path)
        self._text(_docstring(tls), tls)
        others = ', '.join(f'`{name}`' for name in _literal(tls.members['PIKA_PARAMETERS']))
        milliseconds = _literal(tls.members['CONNECTION_TIMEOUT'])
        self._add(f'Parameters of every AMQP URL: `{milliseconds}` (in milliseconds), and those of pika: {others}.')
        memory = self._crew['transports.memory']
        self._heading(3, 'In this process: `memory://`', memory.path)
        self._text(_first_paragraph(memory), memory)

    def _testing(self) -> None:
        packages = [self._crew, load('crew_wsgi')]
        modules = [package['testing'] for package in packages if 'testing' in package.members]
        if modules:
            self._heading(2, 'Tests of programs that use crew')
        for module in modules:
            self._heading(3, f'`{module.path}`', module.path)
            self._text(_docstring(module), module)
            for name in module.exports or ():
                thing = module.members[str(name)]
                if thing.is_class:
                    self._class(thing)
                elif any('fixture' in str(decorator.value) for decorator in thing.decorators):
                    self._heading(4, f'`{name}`', thing.path)
                    gives = re.sub(r'^(?:Iterator|Generator)\[(.*)\]$', r'\1', str(thing.returns))
                    self._add(f'A fixture of pytest, which gives `{gives}`.')
                    self._sections(sections(thing), thing)
                else:
                    self._function(4, str(name), thing)

    def _private_node(self) -> None:
        for name, title in (('node', 'A private RabbitMQ node'), ('cluster', 'A private RabbitMQ cluster')):
            module = self._crew[f'private_{name}']
            self._heading(2, title, module.path)
            self._text(_docstring(module), module)
            self._class(module[f'Private{name.title()}'], level=3)

    def _class(self, thing: griffe.Class, level: int = 4) -> None:
        self._heading(level, f'`{thing.path if level == 3 else thing.name}`', thing.path)
        self._class_body(thing, signature=thing.name)
        self._members(_instance(thing.name), thing)
        for method in public_methods(thing):
            self._function(4, f'{thing.name}.{method.name}', method)

    def _errors(self) -> None:
        module = self._crew['exceptions']
        self._heading(2, 'Errors', module.path)
        self._text(_docstring(module), module)
        errors = {name: module[name] for name in module.members if name in module.exports}
        self._add('```text\n' + '\n'.join(_tree(errors, 'CrewError')) + '\n```')
        exported = {str(name) for name in self._crew.exports or ()}
        for name, error in errors.items():
            path = f'crew.{name}' if name in exported else error.path
            self._heading(4, f'`{path}`', error.path, path)
            self._sections(sections(error), error)

    def _types(self) -> None:
        self._heading(2, 'Types')
        rows = []
        for path in ('master.client.Headers', 'messages.HeaderValue', 'serializers.Serializer', 'topology.QueueType'):
            rows.append((f'`{path.rpartition(".")[2]}`', f'`{self._crew[path].value}`'))
        credentials = self._crew['master.client.Credentials']
        rows.append(('`Credentials`', f'{_joined(_docstring(credentials))} Attributes `username` and `password`.'))
        rows.append(('`F`', 'What the framework waits on: ' + ', '.join(self._waited_on()) + '.'))
        self._table(('name', 'is'), rows, self._crew)

    def _waited_on(self) -> Iterator[str]:
        for face in FACES:
            module = self._crew[f'master.{face}']
            name = next(str(name) for name in module.exports if name != 'Client')
            yield self._reference(f'{module.path}.{name}', module, f'{face}.{name}')

    # How it is written

    def _add(self, block: str) -> None:
        if block.strip():
            self._lines.append(block.rstrip())

    def _heading(self, level: int, text: str, *paths: str) -> None:
        # As GitHub makes them.
        slug = re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-')
        count = self._slugs[slug] = self._slugs.get(slug, -1) + 1
        anchor = f'#{slug}-{count}' if count else f'#{slug}'
        for path in paths:
            self._anchors[path] = anchor
        if level <= 3:
            self._contents.append(f'{"  " * (level - 2)}- [{text}]({anchor})')
        self._add(f'{"#" * level} {text}')

    def _function(self, level: int, shown: str, function: griffe.Object, *paths: str) -> None:
        self._heading(level, f'`{shown}`', function.path, *paths)
        self._signature(shown.removeprefix('crew.worker.').rpartition('addresses.')[2], function)
        self._sections(sections(function), function)

    def _signature(self, shown: str, function: griffe.Object) -> None:
        arguments = list(_arguments(function))
        returns = '' if function.returns is None or function.name == '__init__' else f' -> {function.returns}'
        line = f'{shown}({", ".join(arguments)}){returns}'
        if len(line) > WIDTH:
            line = f'{shown}(\n' + ''.join(f'    {argument},\n' for argument in arguments) + f'){returns}'
        self._add(f'```python\n{line}\n```')

    def _class_body(self, thing: griffe.Class, *, signature: str) -> None:
        if signature.startswith('class '):
            self._add(f'```python\n{signature}\n```')
        elif signature:
            self._signature(signature, thing.members['__init__'])
        own = list(sections(thing))
        if not signature or signature.startswith('class '):
            # Its users do not make it.
            own = [section for section in own if section[0] != 'parameters']
        self._sections(own, thing)

    def _members(self, shown: str, thing: griffe.Class) -> None:
        properties = [
            member
            for name, member in thing.members.items()
            if member.is_attribute and 'property' in member.labels and not name.startswith('_')
        ]
        if properties:
            self._add('**Properties:**')
        for member in properties:
            self._bullet(f'`{shown}.{member.name}`', str(member.annotation), _docstring(member), member)
        self._close_list(properties)

    def _text(self, text: str, scope: griffe.Object) -> None:
        for block in re.split(r'\n\n+', text):
            lines = block.splitlines()
            if lines and lines[0].startswith('>>> '):
                self._add('```python\n' + '\n'.join(line[4:] for line in lines) + '\n```')
            else:
                self._add(self._marked(block, scope))

    def _sections(self, parts: Iterable[tuple[str, str, Any]], scope: griffe.Object) -> None:
        for kind, _title, value in parts:
            if kind == 'text':
                self._text(value, scope)
            elif kind == 'admonition':
                self._table(('', ''), _items(value.contents), scope)
            elif kind == 'returns':
                # griffe takes what is before a colon for the type.
                if str(value[0].annotation) != str(scope.returns):
                    raise ValueError(f'{scope.path}: what it returns is to be said without a colon')
                self._add('**Returns:** ' + self._marked(value[0].description, scope))
            elif kind in ('parameters', 'attributes', 'raises'):
                self._add(
                    {'parameters': '**Arguments:**', 'attributes': '**Attributes:**', 'raises': '**Raises:**'}[kind]
                )
                for item in value:
                    if kind == 'raises':
                        name = self._reference(str(item.annotation), scope, str(item.annotation))
                    else:
                        name = f'`{item.name}`'
                    type = _type_of(scope, item.name) if kind == 'attributes' else ''
                    self._bullet(name, type, item.description, scope)
                self._close_list(value)
            else:
                raise ValueError(f'{scope.path}: no idea how to write a section of the kind {kind!r}')

    def _bullet(self, name: str, type: str, text: str, scope: griffe.Object) -> None:
        shown = f'- {name} (`{type}`): ' if type and type != 'None' else f'- {name}: '
        # Within the list there are no empty lines but those of a text itself.
        self._lines.append('\1' + shown + textwrap.indent(self._marked(text, scope), '  ').lstrip())

    def _close_list(self, items: Iterable[Any]) -> None:
        bullets = []
        while self._lines and self._lines[-1].startswith('\1'):
            bullets.append(self._lines.pop()[1:])
        self._add('\n'.join(reversed(bullets)))

    def _table(
        self, head: tuple[str, ...], rows: Iterable[tuple[str, ...]], scope: griffe.Object, linked: str = ''
    ) -> None:
        lines = [' | '.join(head), '|'.join('---' for _ in head)]
        for row in rows:
            cells = [self._marked(_joined(cell), scope) for cell in row]
            if linked:
                path = cells[0].strip('`')
                cells[0] = self._reference(path, scope, path)
            lines.append(' | '.join(cell.replace('|', '\\|') for cell in cells))
        self._add('\n'.join(f'| {line} |' if '---' not in line else f'|{line}|' for line in lines))

    def _marked(self, text: str, scope: griffe.Object) -> str:
        """Turn the markup of a docstring into Markdown."""

        def role(match: re.Match[str]) -> str:
            path = match['target'].removeprefix('~')
            return self._reference(path, scope, path + '()' * (match['role'] in ('meth', 'func')))

        text = re.sub(r':(?P<role>\w+):`(?P<target>[^`]+)`', role, text)
        text = text.replace('``', '`')
        return re.sub(r'`docs/(\w+\.md)`', r'[docs/\1](\1)', text)

    def _reference(self, path: str, scope: griffe.Object, shown: str) -> str:
        self._references.append((path, _resolved(path, scope), shown))
        return f'\0{len(self._references) - 1}\0'

    def _link(self, path: str, resolved: str, shown: str) -> str:
        for candidate in (path, resolved, f'crew.{path}'):
            if candidate in self._anchors:
                return f'[`{shown}`]({self._anchors[candidate]})'
        return f'`{shown}`'


def _resolved(path: str, scope: griffe.Object) -> str:
    """Return the full path of a name, as code at this place would understand it."""
    first, dot, rest = path.partition('.')
    where: griffe.Object | None = scope
    while where is not None:
        if first in where.members:
            member = where.members[first]
            target = member.target_path if member.is_alias else member.path
            return f'{target}{dot}{rest}'
        where = where.parent
    return path


def _docstring(thing: griffe.Object) -> str:
    return thing.docstring.value if thing.docstring is not None else ''


def _first_paragraph(thing: griffe.Object) -> str:
    return _docstring(thing).partition('\n\n')[0]


def _joined(text: str) -> str:
    return ' '.join(text.split())


def _instance(name: str) -> str:
    return re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower().rpartition('_')[2]


def _items(text: str) -> list[tuple[str, str]]:
    """Part ``name: text`` items, whose further lines are indented."""
    items = re.split(r'\n(?! )', text.strip())
    return [(name, said.strip()) for name, _, said in (item.partition(':') for item in items)]


def _comment_above(constant: griffe.Attribute) -> str:
    lines = constant.filepath.read_text(encoding='utf-8').splitlines()
    said: list[str] = []
    for line in reversed(lines[: constant.lineno - 1]):
        if not line.startswith('#:'):
            break
        said.insert(0, line.removeprefix('#:').strip())
    return ' '.join(said)


def _literal(constant: griffe.Attribute) -> Any:
    return ast.literal_eval(str(constant.value))


def _type_of(cls: griffe.Object, name: str) -> str:
    """Return the type of an attribute: what it says itself, or the parameter that it is made from."""
    member = cls.members.get(name)
    if member is not None and member.annotation is not None:
        return str(member.annotation)
    init = cls.members.get('__init__')
    if init is not None and name in [parameter.name for parameter in init.parameters]:
        return str(init.parameters[name].annotation)
    return ''


def _arguments(function: griffe.Object) -> Iterator[str]:
    starred = False
    for parameter in parameters(function):
        kind = parameter.kind
        stars = {griffe.ParameterKind.var_positional: '*', griffe.ParameterKind.var_keyword: '**'}.get(kind, '')
        if kind is griffe.ParameterKind.keyword_only and not starred:
            yield '*'
        starred = starred or kind in (griffe.ParameterKind.keyword_only, griffe.ParameterKind.var_positional)
        said = f'{stars}{parameter.name}'
        if parameter.annotation is not None:
            said += f': {parameter.annotation}'
        if parameter.default is not None and not stars:
            default = str(parameter.default)
            constant = function.module.members.get(default)
            if constant is not None and constant.is_attribute:
                default = str(constant.value)
            said += f' = {default}' if parameter.annotation is not None else f'={default}'
        yield said


def _tree(errors: dict[str, Any], name: str, depth: int = 0) -> Iterator[str]:
    bases = {other: [str(base) for base in error.bases] for other, error in errors.items()}
    also = [base.removeprefix('builtins.') for base in bases[name] if base not in errors and base != 'Exception']
    yield '    ' * depth + name + (f'  (also a built-in {", ".join(also)})' if also else '')
    for other in errors:
        if name in bases[other]:
            yield from _tree(errors, other, depth + 1)


def _command_line() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Give the groups of a worker's options: the title of each, and the options with what they mean."""
    from crew.worker.command import parser

    # The parser reads it, and refuses some that clients may have.
    given = os.environ.pop('CREW_AMQP_URL', None)
    try:
        command = parser()
    finally:
        if given is not None:
            os.environ['CREW_AMQP_URL'] = given
    # There is no public way to ask for the groups, in no version; what is private here has not changed since 2.7.
    for group in command._action_groups:
        rows = [(_invocation(action), _help(action)) for action in group._group_actions]
        if rows:
            yield group.title or '', rows


def _invocation(action: argparse.Action) -> str:
    value = action.metavar or ('{' + ','.join(action.choices) + '}' if action.choices else action.dest.upper())
    names = ', '.join(f'`{name}`' for name in action.option_strings)
    return names if action.nargs == 0 else f'{names[:-1]} {value}`'


def _help(action: argparse.Action) -> str:
    return (action.help or '') % vars(action)


def main() -> None:
    """Write the page."""
    TARGET.write_text(page(), encoding='utf-8')


if __name__ == '__main__':
    main()
