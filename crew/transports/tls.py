"""TLS to the broker, as an ``amqps://`` URL asks for it in RabbitMQ's own words.

``amqps://host/?cacertfile=/ca.pem&certfile=/me.pem&keyfile=/me.key&verify=verify_peer&server_name_indication=name``,
see https://www.rabbitmq.com/docs/uri-query-parameters. Without any of them the broker's certificate must come from a CA
that the system trusts, and be for the host of the URL. With ``auth_mechanism=external`` the own certificate says who we
are, and the URL has no user and no password. Nothing here knows pika, except which parameters it reads.
"""

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from crew.transports.addresses import safe_url

__all__ = ['SpeaksTls', 'client_context', 'explain', 'split_query', 'warn_unverified']

log = logging.getLogger(__name__)

TLS_PARAMETERS = ('cacertfile', 'certfile', 'keyfile', 'verify', 'server_name_indication', 'auth_mechanism')

# RabbitMQ's, in milliseconds; pika has it as socket_timeout, in seconds.
CONNECTION_TIMEOUT = 'connection_timeout'

# Those that pika's URLParameters reads. Not its ssl_options: a context made from them would check no name.
PIKA_PARAMETERS = (
    'blocked_connection_timeout',
    'channel_max',
    'client_properties',
    'connection_attempts',
    'frame_max',
    'heartbeat',
    'locale',
    'retry_delay',
    'socket_timeout',
    'stack_timeout',
    'tcp_options',
)
KNOWN = (*TLS_PARAMETERS, CONNECTION_TIMEOUT, *PIKA_PARAMETERS)

# X509_V_ERR_* of OpenSSL (x509_vfy.h), the numbers that ssl.SSLCertVerificationError.verify_code holds.
NOT_NOW = {9, 10}  # not yet valid, expired
OTHER_NAME = {62, 64}  # host name, IP address

# How OpenSSL's names for the alerts end with which a server turns a client's certificate, or the lack of one, down.
CERTIFICATE_ALERTS = (
    'ACCESS_DENIED',
    'BAD_CERTIFICATE',
    'CERTIFICATE_EXPIRED',
    'CERTIFICATE_REQUIRED',
    'CERTIFICATE_REVOKED',
    'CERTIFICATE_UNKNOWN',
    'DECRYPT_ERROR',
    'HANDSHAKE_FAILURE',
    'UNKNOWN_CA',
    'UNSUPPORTED_CERTIFICATE',
)

_warned: set[str] = set()


class SpeaksTls(ConnectionAbortedError):
    """Raised when a peer answered AMQP with TLS."""


# Before connecting


def split_query(url: str) -> tuple[str, dict[str, str]]:
    """Part an AMQP URL into what pika is to read and what is for TLS.

    Args:
        url: ``amqp://…`` or ``amqps://…``, of which only the query is looked at.

    Returns:
        The URL with pika's parameters alone, and the TLS parameters.

    Raises:
        ValueError: a parameter is unknown, empty, there twice, or of TLS without ``amqps``; the message names it.
    """
    parts = urlsplit(url)
    where = safe_url(url)
    query: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in KNOWN:
            if '@' in parts.query and '@' not in parts.netloc:
                # Then what was taken for a parameter is perhaps the password.
                raise ValueError(f'bad AMQP URL {where!r}: a ? in the user name or password is written %3F')
            raise ValueError(f'the URL {where} has an unknown parameter {name!r}: known are {", ".join(sorted(KNOWN))}')
        if name in query or not value:
            fault = 'twice' if name in query else 'without a value'
            raise ValueError(f'the URL {where} has the parameter {name!r} {fault}: give it one')
        if name in TLS_PARAMETERS and parts.scheme != 'amqps':
            raise ValueError(f'the URL {where} has the parameter {name!r}, which is for TLS: write amqps:// for it')
        query[name] = value
    options = {name: query.pop(name) for name in TLS_PARAMETERS if name in query}
    if CONNECTION_TIMEOUT in query:
        milliseconds = query.pop(CONNECTION_TIMEOUT)
        if not (milliseconds.isascii() and milliseconds.isdigit() and int(milliseconds)):
            raise ValueError(
                f'the URL {where} has {CONNECTION_TIMEOUT} {milliseconds!r}: it is a number of milliseconds above 0'
            )
        query.setdefault('socket_timeout', str(int(milliseconds) / 1000))
    return parts._replace(query=urlencode(query), fragment='').geturl(), options


def client_context(options: Mapping[str, str], host: str) -> tuple[ssl.SSLContext, str]:
    """Return what a TLS client needs.

    Args:
        options: the TLS parameters of a URL, see :func:`split_query`.
        host: the host of the URL.

    Returns:
        The context, with files read anew, and the name that the broker's certificate must be for.

    Raises:
        ValueError: a file or a value cannot be used; the message names it and its parameter, and what to do.
    """
    verify = options.get('verify', 'verify_peer')
    if verify not in ('verify_peer', 'verify_none'):
        raise ValueError(f'verify {verify!r} is neither verify_peer nor verify_none: choose one of them')
    context = _trusting(options.get('cacertfile'))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if verify == 'verify_none':
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _load_own_certificate(context, options)
    mechanism = options.get('auth_mechanism', 'plain')
    if mechanism not in ('plain', 'external'):
        raise ValueError(f'auth_mechanism {mechanism!r} is neither plain nor external: choose one of them')
    if mechanism == 'external' and 'certfile' not in options:
        raise ValueError('auth_mechanism external says who we are by our certificate: name that with certfile')
    name = options.get('server_name_indication', host)
    try:
        # Names are checked where a session begins, which would be at every attempt to connect.
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except ValueError as error:
        what = 'server_name_indication' if 'server_name_indication' in options else 'the host'
        raise ValueError(f'{what} {name!r} cannot be the name of a server: correct it') from error
    return context, name


def warn_unverified(url: str) -> None:
    """Log, once in a process for each broker, that its certificate is not verified."""
    where = safe_url(url)
    if where not in _warned:
        _warned.add(where)
        log.warning('the certificate of the broker at %s is not verified (verify_none): anybody can pose as it', where)


def _trusting(ca: str | None) -> ssl.SSLContext:
    if ca is None:
        return ssl.create_default_context()
    _read('cacertfile', ca, b'CERTIFICATE-----', 'certificates')
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise ValueError(f'cacertfile {ca!r} cannot be used ({_reason(error)}): name a PEM file of CAs') from error


def _load_own_certificate(context: ssl.SSLContext, options: Mapping[str, str]) -> None:
    certificate, key = options.get('certfile'), options.get('keyfile')
    if certificate is None:
        if key is not None:
            raise ValueError(f'keyfile {key!r} is without its certificate: name that with certfile')
        return
    _read('certfile', certificate, b'CERTIFICATE-----', 'a certificate')
    holder = f'certfile {certificate!r}' if key is None else f'keyfile {key!r}'
    if key is None:
        _read('certfile', certificate, b'PRIVATE KEY-----', 'a private key, and no keyfile is named: it')
    else:
        _read('keyfile', key, b'PRIVATE KEY-----', 'a private key')

    def password() -> str:
        # OpenSSL would ask on the terminal, and a service without one would hang.
        raise ValueError(f'{holder} is encrypted: decrypt it, for example with openssl pkey, and guard it by its mode')

    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if error.reason in ('KEY_VALUES_MISMATCH', 'KEY_TYPE_MISMATCH'):
            fault = f'{holder} is not the key of certfile {certificate!r}: name the one that it was made with'
        else:
            fault = f'certfile {certificate!r} with {holder} cannot be used ({_reason(error)}): make them anew as PEM'
        raise ValueError(fault) from error


def _read(parameter: str, path: str, mark: bytes, what: str) -> None:
    """Look into a file, because OpenSSL's errors do not say which one, or what is wrong with it."""
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ValueError(
            f'{parameter} {path!r} cannot be read ({reason}): name a file that this user may read'
        ) from error
    if mark not in content:
        raise ValueError(f'{parameter} {path!r} does not hold {what} must be there, in PEM')


# After it failed


def explain(error: BaseException, url: str) -> str | None:
    """Say in one line why the broker cannot be reached, and what to do, if it has to do with TLS.

    Args:
        error: what ended the attempt to connect.
        url: where to; it has been read without an error.

    Returns:
        The line, without a password; None when TLS has nothing to do with it.
    """
    where = safe_url(url)
    options = split_query(url)[1]
    if isinstance(error, SpeaksTls):
        return f'the broker at {where} speaks TLS on this port: write amqps://, or use its port without TLS'
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error, where, options)
    if isinstance(error, ssl.SSLError) and error.reason:
        return _broken_off(error, error.reason, where, options)
    if urlsplit(url).scheme == 'amqps' and isinstance(error, (ConnectionResetError, BrokenPipeError, ssl.SSLError)):
        # In TLS 1.3 a client learns late, and when it has written already perhaps only so, that it is turned down.
        return f'the broker at {where} broke TLS off: is this its TLS port? and {_certificate_hint(options)}'
    return None


def _untrusted(error: ssl.SSLCertVerificationError, where: str, options: Mapping[str, str]) -> str:
    certificate = f'the certificate of the broker at {where}'
    reason = error.verify_message.rstrip('.')
    if error.verify_code in OTHER_NAME:
        hint = 'connect by a name that it is for, or give that with ?server_name_indication='
        return f'{certificate} is for another name: {reason}; {hint}'
    if error.verify_code in NOT_NOW:
        hint = "renew it there, or set this machine's clock right"
        return f'{certificate} is not valid now: {reason}; {hint}'
    ca = options.get('cacertfile')
    hint = 'name its CA with ?cacertfile=' if ca is None else f'its CA is not in cacertfile {ca!r}: name the right one'
    return f'{certificate} is not trusted: {reason}; {hint}'


def _broken_off(error: ssl.SSLError, reason: str, where: str, options: Mapping[str, str]) -> str:
    if reason in ('WRONG_VERSION_NUMBER', 'UNKNOWN_PROTOCOL', 'HTTP_REQUEST', 'RECORD_LAYER_FAILURE'):
        hint = 'use its TLS port (5671 by custom), or amqp:// for this one'
        return f'what answers at {where} does not speak TLS: {hint}'
    if 'ALERT' in reason and reason.endswith(CERTIFICATE_ALERTS):
        return f'the broker at {where} refused TLS with us ({_reason(error)}): {_certificate_hint(options)}'
    if reason in ('UNSUPPORTED_PROTOCOL', 'TLSV1_ALERT_PROTOCOL_VERSION'):
        return f'the broker at {where} offers no TLS version that is still safe: enable TLS 1.2 or 1.3 there'
    return f'TLS with the broker at {where} failed: {_reason(error)}; its log may say more'


def _certificate_hint(options: Mapping[str, str]) -> str:
    own = options.get('certfile')
    if own is None:
        return 'does it want a client certificate? name one with ?certfile= and &keyfile='
    return f'does it trust the CA of certfile {own!r}, and is that still valid?'


def _reason(error: ssl.SSLError) -> str:
    # Not its text, which ends with a line of the C code.
    return (error.reason or str(error)).lower().replace('_', ' ')
