"""The queues in which messages wait, by what waits there."""

from __future__ import annotations

from captioner.domain import Lane

#: Requests of producers without a database; they go first, because until a worker has inserted
#: them they are only as safe as Redis.
SUBMISSIONS_QUEUE = "submissions"
#: Where each lane's jobs wait, in the order a worker prefers them.
QUEUES = {Lane.INTERACTIVE: "captions", Lane.BULK: "captions.bulk", Lane.VIDEO: "videos"}
#: Whoever works for it delivers events; those are in SQL, and a message only says "look now".
EVENTS_QUEUE = "events"

#: What a worker that captions works for, in the order it prefers them.
JOB_QUEUES = (SUBMISSIONS_QUEUE, *QUEUES.values())
ALL_QUEUES = (*JOB_QUEUES, EVENTS_QUEUE)
