"""Frames of videos that have captions before their job has ended, and how many there are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "e7d3b1c94f60"
down_revision: str | None = "c2a97e5d4b18"
branch_labels: str | None = None
depends_on: str | None = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    for column in ("frames_done", "frames_total"):
        op.add_column("jobs", sa.Column(column, sa.Integer(), nullable=True))
    op.create_table(
        "job_frames",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("time_seconds", sa.Double(), nullable=False),
        sa.Column("media_seconds", sa.Double(), nullable=True),
        sa.Column("captions", JSON, nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("model_revision", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_frames")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_frames_job_id_jobs"), ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("job_frames")
    for column in ("frames_total", "frames_done"):
        op.drop_column("jobs", column)
