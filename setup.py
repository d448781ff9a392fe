"""Packaging of crew: RPC over RabbitMQ (``crew``) and HTTP over that RPC (``crew_wsgi``)."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='crew',
    version='1.0.0.dev0',
    description='RPC over RabbitMQ, and on it a WSGI-over-AMQP bridge: requests wait instead of failing',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    license_files=['LICENSE'],
    packages=find_packages(include=['crew', 'crew.*', 'crew_wsgi', 'crew_wsgi.*']),
    package_data={'crew': ['py.typed'], 'crew_wsgi': ['py.typed']},
    python_requires='>=3.10',
    install_requires=[
        'pika>=1.3,<2',
        'tornado>=6.5,<7',
        'werkzeug>=3,<4',
        'gevent>=24.2',
        'tomli>=2; python_version < "3.11"',
    ],
    extras_require={
        'bench': ['psutil>=5.9'],
        'fuzz': ['atheris>=2.3'],
        'twisted': ['twisted>=22.10'],
        'test': [
            'brotlicffi>=1.1',
            'decorator>=5',
            'django>=5.2',
            'dulwich>=1',
            'flask>=3',
            'griffelib>=2,<3',
            'gunicorn>=25.1',
            'h11>=0.14',
            # Below 3.12 it asks for a greenlet that is too old for gevent, and makes no use of it: there `make`
            # installs it without what it asks for, of which brotlicffi, decorator and six are needed.
            'httpbin>=0.10.4; python_version >= "3.12"',
            'hypothesis>=6.100',
            'mypy>=1.11',
            'psutil>=5.9',
            'pytest>=8',
            'pytest-xdist>=3.5',
            'requests>=2.32',
            'ruff>=0.6',
            'selenium>=4.20',
            'six>=1.16',
            'trustme>=1.2',
            'twisted>=22.10',
            'wsgidav>=4.3.3',
        ],
    },
    entry_points={
        'console_scripts': [
            'crew-wsgi-front = crew_wsgi.front:main',
            'crew-wsgi-worker = crew_wsgi.worker:main',
            'crew-wsgi-dev = crew_wsgi.dev:main',
            'crew-declare = crew.declare:main',
        ],
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'Framework :: AsyncIO',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Internet :: WWW/HTTP :: WSGI :: Server',
        'Typing :: Typed',
    ],
)
