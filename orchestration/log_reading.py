"""One reading of a workspace's logs into its landing, with everything that the settings and the keys say about it.

Here: the call of ingest that the landing step and a re-keying share. Not here: ingest itself
(`orchestration.ingest.landing`), which keys there are (`orchestration.personal_data.rekey`).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date

from orchestration.console import progress
from orchestration.ingest.landing import IngestReport, ingest
from orchestration.ingest.pseudonyms import PseudonymKey
from orchestration.ingest.tombstones import read_tombstones
from orchestration.sample import log_source
from orchestration.settings import TalktrackSettings
from orchestration.warehouse import forget_build
from orchestration.workspace import configured_catalogue


def read_logs(
    settings: TalktrackSettings, key: PseudonymKey, *, up_to: date | None = None, rekeyed: Collection[str] = ()
) -> IngestReport:
    """Land what is new in the workspace's logs, and `rekeyed` sources again; erased customers stay out.

    Raises what `orchestration.ingest.landing.ingest` raises.
    """
    paths = settings.paths
    return ingest(
        log_source(settings),
        settings.logs.format,
        landing=paths.landing,
        quarantine=paths.quarantine,
        catalogue=configured_catalogue(settings),
        key=key,
        start_date=settings.logs.start_date,
        attribution_days=settings.logs.attribution_days,
        up_to=up_to,
        scrubbing=settings.scrubbing,
        progress=lambda done, total: progress("ingest", done, total),
        tombstones=read_tombstones(paths.erasures, paths.secrets),
        rekeyed=rekeyed,
        before_rows_change=lambda: forget_build(paths.root),
    )
