"""Bad studies: one record each, and the limit beyond which they stop the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ttepretrain.errors import BadDataError, most_bad

MOST_DETAILS = 3  # of one reason code, in the message


@dataclass(frozen=True)
class Quarantined:
    """A study that was refused. `detail` holds no identifier and no path."""

    study_id: str | None  # None: the row has none
    stage: str  # table | volumes
    code: str  # reason code
    detail: str


class Quarantine:
    """The refused of `num_studies`. An error: more than half of all, or more than max(10, max_bad_fraction of all)."""

    def __init__(self, num_studies: int, max_bad_fraction: float):
        self.num_studies = num_studies
        self.limit = most_bad(num_studies, max_bad_fraction)
        self.records: list[Quarantined] = []

    def extend(self, records: Iterable[Quarantined]) -> None:
        """Raises BadDataError with the counts by reason as soon as there are too many."""
        self.records += records
        if len(self.records) > self.limit:
            codes = ", ".join(f"{code} {count} ({self._details(code)})" for code, count in self.counts().items())
            raise BadDataError(
                f"{len(self.records)} of {self.num_studies} studies are bad, at most {self.limit:g} may be: {codes}; "
                "quarantine.parquet names them; correct the input or raise prepare.max_bad_fraction"
            )

    def _details(self, code: str) -> str:
        """The commonest details of a reason code."""
        details = Counter(record.detail for record in self.records if record.code == code)
        shown = "; ".join(f"{detail}: {count}" for detail, count in details.most_common(MOST_DETAILS))
        return shown + (", ..." if len(details) > MOST_DETAILS else "")

    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(record.code for record in self.records).items()))
