"""How fast jobs pass from Redis through a worker into PostgreSQL, beside Celery doing nothing.

A real worker process runs a model that answers at once, so that the path alone is measured; the
yardstick is a worker of stock Celery, with as many threads, whose task does nothing. Both live all
the time and take turns. Light to import: the yardstick must not load what it is measured against.
"""
