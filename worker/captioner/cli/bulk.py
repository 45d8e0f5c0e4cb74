"""`submit --from FILE` and `submit FOLDER`: many jobs, and one line for each that is refused."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from uuid import UUID

from captioner.cli.items import Item
from captioner.cli.output import plain, print_json, progress_bar, remarks
from captioner.domain import CaptionRequest
from captioner.errors import CaptionerError
from captioner.jobs import Jobs


def submit_items(
    jobs: Jobs, items: Iterable[Item], total: int | None, *, as_json: bool, keep_ids: bool
) -> tuple[Counter[str], list[UUID]]:
    """Submit items as they come, and report on standard error what is refused.

    Args:
        jobs: where to.
        items: what, with the place of each for people.
        total: how many there will be, if that is known.
        as_json: print a line of JSON for each job.
        keep_ids: return the jobs' ids, which takes memory for each.

    Returns:
        How many items are `new`, `known` and `refused`, and the ids.
    """
    counts: Counter[str] = Counter()
    ids: list[UUID] = []
    places: deque[str] = deque()

    with progress_bar() as progress:
        task = progress.add_task("submitting", total=total)

        def refuse(place: str, error: CaptionerError) -> None:
            counts["refused"] += 1
            remarks.print(f"[red]{plain(place)}[/]: {plain(str(error))}", soft_wrap=True)

        def requests() -> Iterator[CaptionRequest]:
            for place, request in items:
                progress.advance(task)
                if isinstance(request, CaptionerError):
                    refuse(place, request)
                else:
                    places.append(place)
                    yield request

        for result in jobs.submit_each(requests()):
            place = places.popleft()
            if isinstance(result, CaptionerError):
                refuse(place, result)
                continue
            counts["new" if result.created else "known"] += 1
            if keep_ids:
                ids.append(result.job.id)
            if as_json:
                print_json(result.job.as_mapping(), indent=None)
    return counts, ids


def report(counts: Counter[str]) -> str:
    """What became of all items, in a phrase."""
    parts = [f"{counts['new']} submitted"]
    parts += [f"{counts['known']} were there before"] if counts["known"] else []
    parts += [f"{counts['refused']} refused"] if counts["refused"] else []
    return ", ".join(parts)
