"""Which deliveries their worker was lost with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "e41d7a90c63f"
down_revision: str | None = "b58c0f3a7d21"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    # Workers of the last version write rows without it.
    op.add_column(
        "deliveries", sa.Column("apart", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    apart = sa.text("apart = 1" if op.get_context().dialect.name == "sqlite" else "apart")
    op.create_index(
        "ix_deliveries_apart",
        "deliveries",
        ["plugin", "target"],
        postgresql_where=apart,
        sqlite_where=apart,
    )


def downgrade() -> None:
    op.drop_index("ix_deliveries_apart", "deliveries")
    op.drop_column("deliveries", "apart")
