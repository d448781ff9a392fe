"""HTTP over crew: a WSGI application served through a queue."""
