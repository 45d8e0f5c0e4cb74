"""Retries, deadlines, which jobs share a message, and the lane of videos."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "8d4b6f21c0e7"
down_revision: str | None = "5c1f0a7e9b21"
branch_labels: str | None = None
depends_on: str | None = None

TIME = sa.DateTime(timezone=True)
QUEUED = "state = 'queued'"
INDEXES = {
    "ix_jobs_undispatched": (
        ["state", "created_at", "id"],
        f"{QUEUED} AND dispatched_at IS NULL AND not_before IS NULL",
    ),
    "ix_jobs_dispatched": (
        ["lane", "dispatched_at", "dispatch_id"],
        f"{QUEUED} AND dispatched_at IS NOT NULL",
    ),
    "ix_jobs_not_before": (["state", "not_before"], f"{QUEUED} AND not_before IS NOT NULL"),
    "ix_jobs_deadline_at": (["state", "deadline_at"], f"{QUEUED} AND deadline_at IS NOT NULL"),
    "ix_jobs_finished_at": (["finished_at"], "finished_at IS NOT NULL"),
}


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deadline_at", TIME, nullable=True))
    for column in ("retries", "losses"):
        op.add_column("jobs", sa.Column(column, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("dispatch_id", sa.Uuid(), nullable=True))
    # Nobody knows which of the waiting jobs share a message. As if each had its own, some are
    # published once more; as if none had, lost ones would never be noticed.
    op.execute(
        "UPDATE jobs SET dispatch_id = id WHERE state = 'queued' AND dispatched_at IS NOT NULL"
    )
    set_lanes("'interactive', 'bulk', 'video'")
    for name, (columns, condition) in INDEXES.items():
        where = sa.text(condition)
        op.create_index(name, "jobs", columns, postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, "jobs")
    op.execute("UPDATE jobs SET lane = 'bulk' WHERE lane = 'video'")
    set_lanes("'interactive', 'bulk'")
    for column in ("dispatch_id", "losses", "retries", "deadline_at"):
        op.drop_column("jobs", column)


def set_lanes(lanes: str) -> None:
    # SQLite cannot alter a constraint: there the table is copied.
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("ck_jobs_lane"), type_="check")
        jobs.create_check_constraint(op.f("ck_jobs_lane"), f"lane IN ({lanes})")
