"""When an attempt that failed is followed by another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from captioner.domain import JobFailure
from captioner.errors import ErrorCode
from captioner.retrying import retry
from captioner.settings import RetrySettings
from captioner.store import Store, create_store_engine, upgrade
from stored import NOON, claimed

PASSING = JobFailure(ErrorCode.FETCH_FAILED, "HTTP status 503", retryable=True)


@pytest.mark.parametrize(
    ("retries", "longest"), [(0, 4.0), (2, 16.0), (9, 60.0), (999, 60.0), (2_000, 60.0)]
)
def test_each_pause_is_twice_as_long_up_to_the_longest(
    sqlite_url: str, retries: int, longest: float
) -> None:
    upgrade(sqlite_url)
    with Store(create_store_engine(sqlite_url)) as store:
        (job,) = claimed(store)
    settings = RetrySettings(max_retries=1_000, first_delay_seconds=4, max_delay_seconds=60)
    # Crashes count as retries too, so that more of these are possible than may follow failures.
    again = retry(replace(job, retries=retries), PASSING, settings, NOON, crashed=retries > 1_000)
    assert again
    assert again.not_before
    assert longest / 2 <= (again.not_before - NOON).total_seconds() <= longest
