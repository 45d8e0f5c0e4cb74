"""Bringing recorded events to whom plugins name: expanding, delivering, trying again.

Two threads decide and many deliver. Everything is in SQL: what a killed worker had in hand is
delivered by another when the leases end, so a target may hear of an event twice, and never not.
"""

from __future__ import annotations

from captioner.delivering.service import DeliveryService

__all__ = ["DeliveryService"]
