"""Registered receivers of webhooks. Their secrets come and go encrypted; no key is known here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select, update

from captioner.domain import EndpointState
from captioner.errors import EndpointNotFoundError
from captioner.store.models import EndpointRow
from captioner.store.statements import insert_into
from captioner.store.transactions import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint:
    """One row of `webhook_endpoints`."""

    id: UUID
    #: In full, and it may hold a secret: never shown.
    url: str = field(repr=False)
    url_display: str
    description: str = ""
    #: Which events it wants; empty: all.
    event_types: tuple[str, ...] = ()
    #: Encrypted, as is the previous one.
    secret: str = field(repr=False)
    previous_secret: str | None = field(default=None, repr=False)
    previous_secret_expires_at: datetime | None = None
    state: EndpointState = EndpointState.ENABLED
    disabled_reason: str | None = None
    #: The first of the failures since something was delivered to it last.
    failing_since: datetime | None = None
    created_at: datetime
    updated_at: datetime

    def as_mapping(self) -> dict[str, Any]:
        """The endpoint as programs see it: JSON values only, neither its URL nor its secrets."""
        until, since = self.previous_secret_expires_at, self.failing_since
        return {
            "id": str(self.id),
            "url": self.url_display,
            "description": self.description,
            "event_types": list(self.event_types),
            "state": self.state.value,
            "disabled_reason": self.disabled_reason,
            "failing_since": since and since.isoformat(),
            "previous_secret_expires_at": until and until.isoformat(),
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
        }


_FIELDS = tuple(one.name for one in dataclasses.fields(WebhookEndpoint))


class Endpoints:
    """The part of `Store` that knows where webhooks go."""

    _database: Database

    def add_endpoint(self, endpoint: WebhookEndpoint) -> bool:
        """Insert an endpoint; False when there is one with this id, which stays as it is."""
        row = {name: getattr(endpoint, name) for name in _FIELDS}
        row["event_types"] = list(endpoint.event_types)
        with self._database.statement() as connection:
            statement = insert_into(connection, EndpointRow).values(row).on_conflict_do_nothing()
            return connection.scalar(statement.returning(EndpointRow.id)) is not None

    def endpoints(self) -> list[WebhookEndpoint]:
        """All endpoints, the oldest first."""
        query = select(EndpointRow.__table__).order_by(EndpointRow.created_at, EndpointRow.id)
        with self._database.reading() as connection:
            return [_endpoint(row) for row in connection.execute(query).mappings()]

    def endpoint(self, endpoint_id: UUID) -> WebhookEndpoint:
        """One endpoint.

        Raises:
            EndpointNotFoundError: there is none.
        """
        query = select(EndpointRow.__table__).where(EndpointRow.id == endpoint_id)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise EndpointNotFoundError(endpoint_id)
        return _endpoint(row)

    def replace_endpoint_secret(
        self,
        endpoint: WebhookEndpoint,
        secret: str,
        *,
        previous: str | None,
        previous_until: datetime | None,
        now: datetime | None = None,
    ) -> bool:
        """Give an endpoint another secret; False when it has not the one any more that was read.

        Args:
            endpoint: as it was read.
            secret: encrypted.
            previous: encrypted, the one that signs too until `previous_until`; None: there is none.
            previous_until: None: there is none.
            now: the time to work with.
        """
        statement = (
            update(EndpointRow)
            .where(EndpointRow.id == endpoint.id, EndpointRow.secret == endpoint.secret)
            .values(
                updated_at=self._database.moment(now),
                secret=secret,
                previous_secret=previous,
                previous_secret_expires_at=previous_until,
            )
        )
        with self._database.statement() as connection:
            return bool(connection.execute(statement).rowcount)

    def enable_endpoint(self, endpoint_id: UUID) -> None:
        """Let an endpoint have webhooks again, from the next event on.

        Raises:
            EndpointNotFoundError: there is none.
        """
        self._change(
            endpoint_id,
            state=EndpointState.ENABLED,
            disabled_reason=None,
            failing_since=None,
        )

    def disable_endpoint(self, endpoint_id: UUID, reason: str) -> None:
        """Let an endpoint have no more webhooks; `reason` is for people.

        Raises:
            EndpointNotFoundError: there is none.
        """
        self._change(endpoint_id, state=EndpointState.DISABLED, disabled_reason=reason)

    def give_up_endpoint(self, endpoint: WebhookEndpoint, reason: str) -> bool:
        """Disable an endpoint because of an attempt; False when another has had an answer since.

        Or a failure, or somebody has enabled it: it is not any more what the attempt has seen.

        Args:
            endpoint: as it was read before the attempt.
            reason: for people.
        """
        statement = (
            update(EndpointRow)
            .where(
                EndpointRow.id == endpoint.id,
                EndpointRow.state == EndpointState.ENABLED,
                EndpointRow.failing_since.is_not_distinct_from(endpoint.failing_since),
            )
            .values(
                updated_at=self._database.moment(),
                state=EndpointState.DISABLED,
                disabled_reason=reason,
            )
        )
        with self._database.statement() as connection:
            return bool(connection.execute(statement).rowcount)

    def remove_endpoint(self, endpoint_id: UUID) -> None:
        """Delete an endpoint; what is on its way to it is not delivered.

        Raises:
            EndpointNotFoundError: there is none.
        """
        with self._database.statement() as connection:
            statement = delete(EndpointRow).where(EndpointRow.id == endpoint_id)
            if not connection.execute(statement).rowcount:
                raise EndpointNotFoundError(endpoint_id)

    def endpoint_failed(self, endpoint_id: UUID, *, now: datetime | None = None) -> None:
        """Remember since when an endpoint fails; does nothing when that is known."""
        statement = (
            update(EndpointRow)
            .where(EndpointRow.id == endpoint_id, EndpointRow.failing_since.is_(None))
            .values(failing_since=self._database.moment(now))
        )
        with self._database.statement() as connection:
            connection.execute(statement)

    def endpoint_answered(self, endpoint_id: UUID) -> None:
        """Forget since when an endpoint has failed."""
        statement = (
            update(EndpointRow)
            .where(EndpointRow.id == endpoint_id, EndpointRow.failing_since.is_not(None))
            .values(failing_since=None)
        )
        with self._database.statement() as connection:
            connection.execute(statement)

    def _change(self, endpoint_id: UUID, **values: Any) -> None:
        statement = (
            update(EndpointRow)
            .where(EndpointRow.id == endpoint_id)
            .values(updated_at=self._database.moment(), **values)
        )
        with self._database.statement() as connection:
            if not connection.execute(statement).rowcount:
                raise EndpointNotFoundError(endpoint_id)


def _endpoint(row: Any) -> WebhookEndpoint:
    values = {name: row[name] for name in _FIELDS}
    return WebhookEndpoint(**{**values, "event_types": tuple(row["event_types"])})
