"""How fast the service is around the model: the queue, the delivery of events, and videos.

Each measures in a database and a corner of Redis of its own. Light to import: the yardstick of the
queue, stock Celery, must not load what it is measured against.
"""
