"""The time of the frame that a video's caption is of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "b58c0f3a7d21"
down_revision: str | None = "e7d3b1c94f60"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("captions", sa.Column("frame_seconds", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("captions", "frame_seconds")
