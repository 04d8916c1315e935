"""What `talktrack erase`, `retention` and `rekey` print.

Here: words for the person at the terminal. Not here: what is removed or changed (`erasure`,
`retention`, `rekey`).

The terminal never says whether somebody was a customer, and shows no count below 20: the erasure log, which only the
owner reads, holds the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from orchestration.console import console, night_display
from orchestration.ingest.pseudonyms import KEY_VARIABLE, PREVIOUS_KEY_VARIABLE
from orchestration.lock import workspace_lock
from orchestration.personal_data.erasure import KEPT, ErasureReport, erase
from orchestration.personal_data.erasure_log import INCOMPLETE, NOT_HELD, NOTHING_LEFT, ErasureLog
from orchestration.personal_data.rekey import RekeyReport, rekey, retire_previous_key
from orchestration.personal_data.retention import RetentionReport, apply_retention, first_kept_day
from orchestration.settings import TalktrackSettings
from orchestration.warehouse import data_clock
from rl.errors import DataError, TalktrackError
from rl.shown_counts import count_text


class ErasureIncompleteError(TalktrackError):
    """Something of an erased customer was found afterwards."""


def erase_customers(
    settings: TalktrackSettings, customer_id: str | None, source: str | None, request_id: str | None, reapply: bool
) -> None:
    """Erase the customers given by id, or one a line in the file `source` ("-": standard input), and say what was done.

    Raises ErasureIncompleteError if a file still holds something of them afterwards.
    """
    ids = [*([customer_id] if customer_id else []), *(_lines(source) if source else [])]
    with night_display():
        report = erase(settings, ids, request_id=request_id, reapply=reapply)
    log = ErasureLog(settings.paths.erasures)
    if report.outcome in (NOTHING_LEFT, NOT_HELD):
        console.print(f"Workspace {settings.workspace!r} holds nothing of the customers of this request.")
    else:
        _print_removed(report)
        _print_what_stays(report, settings)
    console.print(
        f"Request {report.request_id} is on record in {log.path} ({log.verify()} rows, whole).", soft_wrap=True
    )
    if report.outcome == INCOMPLETE and report.scan is not None:
        raise ErasureIncompleteError(_found_message(report.scan.found))


def remove_expired(settings: TalktrackSettings, *, dry_run: bool) -> None:
    """Remove what `retention` says has expired, or say what would go."""
    if dry_run:
        first = first_kept_day(settings)
        days = sorted(folder.name for folder in settings.paths.marts.glob("fct_dialogues/day=*"))
        n_days = sum(first is not None and name < f"day={first}" for name in days)
        console.print(_rule(settings, first) + f" {n_days} of {len(days)} days would leave.", soft_wrap=True)
        return
    with night_display(), workspace_lock(settings.paths.root, exclusive=True, holder="talktrack retention"):
        report = apply_retention(settings)
        clock = data_clock(settings.paths.landing)
        retired = retire_previous_key(settings, clock.date()) if clock else None
    console.print(_rule(settings, report.first_kept_day), soft_wrap=True)
    _print_rows(report.rows)
    _print_released(report)
    if retired:
        console.print(f"The pseudonym key {retired} was kept for one more window; it is destroyed now.")


def change_key(settings: TalktrackSettings, reason: str, *, compromised: bool) -> None:
    """Give the workspace a new pseudonym key and say what follows from it."""
    with night_display():
        report = rekey(settings, reason=reason, compromised=compromised)
    console.print(
        f"Pseudonyms of workspace {settings.workspace!r} are now made with the key {report.to_key_id}. "
        f"{report.n_files_read_again} files were read again; in {report.n_files_mapped} whose source is gone every "
        f"customer has the new pseudonym; in {report.n_files_left} some keep the old one."
    )
    _print_keys(report, compromised)
    console.print(
        "Working database and marts were removed: run `talktrack nightly` to build them. Who trains a policy and who "
        "judges it depends on the pseudonym: from this night on the split is another one, and a live policy may be "
        "judged on customers it was trained on. Compare it with new candidates after one data window, not before."
    )
    if compromised:
        console.print(
            "No window up to today's releases anything more: whoever had the key could tell customers in them apart. "
            "What they had left is booked (`talktrack privacy status`); the next window starts afresh.",
            style="yellow",
        )


def _lines(source: str) -> list[str]:
    """Ids from a file or from standard input, so that they stay out of the shell's history."""
    try:
        with click.open_file(source, encoding="utf-8") as stream:
            return str(stream.read()).splitlines()
    except OSError as error:
        raise DataError(
            f"{source} cannot be read: {error.strerror}. Name a file with one customer id a line."
        ) from None


def _print_removed(report: ErasureReport) -> None:
    console.print("Erased. Rows that left, by store:")
    _print_rows(report.rows)
    if report.scan is not None:
        mega = report.scan.n_bytes / 1e6
        console.print(f"Searched {report.scan.n_files:,} files ({mega:,.0f} MB) for ids, pseudonyms and their words.")
        for path in report.scan.unreadable:
            console.print(f"  {path} could not be opened; only its bytes were searched.", style="yellow")


def _print_rows(rows: Mapping[str, int]) -> None:
    for name, n in sorted(rows.items()):
        console.print(f"  {name:<40}{count_text(n):>10}")


def _print_what_stays(report: ErasureReport, settings: TalktrackSettings) -> None:
    if report.models:
        console.print(f"{len(report.models)} models were trained on days on which they may have spoken:")
        for model in report.models:
            window = " to ".join(model.window) if model.window else "days unknown"
            held = f", alias {', '.join(model.aliases)}" if model.aliases else ""
            console.print(f"  {model.where} ({window}{held}): {model.what_to_do}.", soft_wrap=True)
    if report.sources:
        console.print(
            f"{len(report.sources)} source files still hold them; they are not Talktrack's to change. They stay out "
            "when these files, or later ones, are read:"
        )
        for path in report.sources:
            console.print(f"  {path}", soft_wrap=True)
    if any(settings.paths.released.glob("releases/*-*-*")):
        console.print(f"Kept: {KEPT[0].lower()}{KEPT[1:]}", soft_wrap=True)


def _found_message(files: tuple[Path, ...]) -> str:
    named = ", ".join(str(path) for path in files[:10])
    return (
        f"{len(files)} file(s) still hold something of an erased customer: {named}. Remove these files, or what they "
        "say, and run the same command again; it searches once more."
    )


def _rule(settings: TalktrackSettings, first: object) -> str:
    if first is None:
        return "Nothing expires: nothing is landed, or retention.restricted_days is empty."
    days = settings.retention.restricted_days
    return f"Dialogues stay {days} days on the data's clock: those before {first} leave."


def _print_released(report: RetentionReport) -> None:
    if report.releases:
        console.print(f"{len(report.releases)} releases were older than retention.released_days, and are deleted.")


def _print_keys(report: RekeyReport, compromised: bool) -> None:
    if report.key_file is not None:
        console.print(f"The new key is in {report.key_file}, readable by its owner only. Back it up.", soft_wrap=True)
    old = ", ".join(report.from_key_ids) or "none"
    if compromised:
        console.print(f"The old key ({old}) is destroyed. Remove it from backups, and from {PREVIOUS_KEY_VARIABLE}.")
    elif report.keep_until is not None and report.from_key_ids:
        where = (
            "" if report.key_file else f" (leave it in {PREVIOUS_KEY_VARIABLE} until then, and {KEY_VARIABLE} as is)"
        )
        console.print(f"The old key ({old}) is kept until the data's clock shows {report.keep_until}{where}.")
