"""What a phenotype file may say (`configs/phenotypes/*.yaml`), checked once at the border."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ehr.config import EhrConfig, require_plain
from ttepretrain.config import read_yaml, require, require_choice
from ttepretrain.errors import ConfigError
from ttepretrain.log import log

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"  # becomes a folder of labels_meds/
LONGEST_DAYS = 1_000_000  # 2,700 years; as microseconds they still fit into an integer
LISTS = ("codes", "horizons_days", "window_days", "twins")


@dataclass(frozen=True)
class Phenotype:
    codes: list[str]  # with all descendants; a trailing * stands for any ending
    kind: str = "prognosis"  # prognosis | diagnosis
    horizons_days: list[float] = field(default_factory=list)  # binary labels; time to event is always written
    start_days: float | None = None  # prognosis: events count after t0 + max(this, ehr.blackout_days); None: blackout
    after_stay: bool = False  # prognosis: events count after the scan's own hospital stay only (readmission)
    prevalent: str | None = None  # keep | exclude studies with history; None: as ehr.recurrence, after_stay keeps
    death_before_horizon: str | None = None  # negative | censored; None: ehr.death_before_horizon
    window_days: list[float] = field(default_factory=lambda: [-1.0, 1.0])  # diagnosis: closed, around t0
    twins: list[str] = field(default_factory=list)  # other codes of the same event; they leave the tasks with `codes`

    def check(self, key: str) -> None:
        """ConfigError naming the key and the value that is not what it must be; YAML gives values of any type."""
        require_choice(f"{key}.kind", self.kind, ("prognosis", "diagnosis"))
        require(type(self.after_stay) is bool, f"{key}.after_stay", self.after_stay, "must be true or false, unquoted")
        for name, choices in (("prevalent", ("keep", "exclude")), ("death_before_horizon", ("negative", "censored"))):
            value = getattr(self, name)
            if value is not None:
                require_choice(f"{key}.{name}", value, choices)
        _require_codes(f"{key}.codes", self.codes)
        _require_codes(f"{key}.twins", self.twins)
        require(len(self.codes) > 0, f"{key}.codes", self.codes, "must hold a code")
        _require_days(f"{key}.horizons_days", self.horizons_days)
        _require_days(f"{key}.window_days", self.window_days)
        if self.start_days is not None:
            _require_days(f"{key}.start_days", [self.start_days])
        require(all(h > 0 for h in self.horizons_days), f"{key}.horizons_days", self.horizons_days, "must be positive")
        require(
            len(set(self.horizons_days)) == len(self.horizons_days),
            f"{key}.horizons_days", self.horizons_days, "must differ",
        )  # fmt: skip
        require(
            len(self.window_days) == 2 and self.window_days[0] <= self.window_days[1],
            f"{key}.window_days", self.window_days, "must be [from, to] in days around the scan, from not after to",
        )  # fmt: skip
        # the scan's own admission is always history, so nobody in hospital would stay
        require(
            not (self.after_stay and self.prevalent == "exclude"),
            f"{key}.prevalent", self.prevalent, "cannot be combined with after_stay, which counts later stays only",
        )  # fmt: skip


def _require_codes(key: str, codes: list) -> None:
    for code in codes:
        if isinstance(code, str):
            require_plain(key, [code])
        require(isinstance(code, str), key, code, "must be texts; put codes such as 250 or no in quotes")
        require(code.strip() == code and code.strip("*") != "", key, code, "must be codes, without blanks around them")


def _require_days(key: str, days: list) -> None:
    for number in days:
        # a bool is an int
        require(type(number) in (int, float), key, number, "must be numbers of days, unquoted")
        require(abs(number) <= LONGEST_DAYS, key, number, f"must be at most {LONGEST_DAYS:,} days")  # nan is not


def read_phenotypes(path: Path) -> dict[str, Phenotype]:
    """Phenotypes of a YAML file by name. ConfigError naming the key of what is wrong."""
    document = read_yaml(path)
    entries = document.get("phenotypes")
    if set(document) != {"phenotypes"} or not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{path}: expected one key `phenotypes` with a mapping of names")
    valid = [f.name for f in fields(Phenotype)]
    phenotypes = {}
    for name, values in entries.items():
        key = f"{path}: phenotypes.{name}"
        if not isinstance(name, str):
            raise ConfigError(f"{key}: the name must be text; got {name!r}, put it in quotes")
        if not re.fullmatch(NAME, name):
            raise ConfigError(f"{key}: a name has letters, digits, `_`, `-` and `.`, and names a folder")
        if not isinstance(values, dict) or "codes" not in values:
            raise ConfigError(f"{key} needs `codes: [...]`")
        for unknown in set(values) - set(valid):
            near = difflib.get_close_matches(str(unknown), valid, n=1)
            raise ConfigError(f"{key}: unknown key {unknown}" + (f"; did you mean {near[0]}?" if near else ""))
        for name_of_list in LISTS:
            value = values.get(name_of_list, [])
            require(isinstance(value, list), f"{key}.{name_of_list}", value, "must be a list; write [...]")
        phenotypes[name] = Phenotype(**values)
        phenotypes[name].check(key)
    return phenotypes


def under(config: EhrConfig, phenotypes: dict[str, Phenotype]) -> dict[str, Phenotype]:
    """The phenotypes with every field that the run decides filled in: start, prevalent cases, death.

    Warns of a start inside the blackout. Raises as `starts_of`.
    """
    starts = starts_of(config, phenotypes)
    prognoses = {name: p for name, p in phenotypes.items() if p.kind == "prognosis"}
    early = [name for name, p in prognoses.items() if p.start_days not in (None, starts[name])]
    if early:
        log.warning(
            f"{', '.join(early)}: start_days lies inside ehr.blackout_days = {config.blackout_days}; events count "
            "from the blackout's end, leave start_days out"
        )
    filled = {}
    for name, p in phenotypes.items():
        excluding = config.recurrence == "incident" and not p.after_stay
        filled[name] = replace(
            p,
            start_days=starts[name],
            prevalent=p.prevalent or ("exclude" if excluding else "keep"),
            death_before_horizon=p.death_before_horizon or config.death_before_horizon,
        )
    return filled


def starts_of(config: EhrConfig, phenotypes: dict[str, Phenotype]) -> dict[str, float]:
    """Days after the scan from which events count. ConfigError for a horizon that ends before its phenotype starts."""
    starts = {name: max(p.start_days or 0.0, config.blackout_days) for name, p in phenotypes.items()}
    for name, p in phenotypes.items():
        short = [h for h in p.horizons_days if h <= starts[name] and p.kind == "prognosis"]
        if short:
            raise ConfigError(
                f"{config.phenotypes}: phenotypes.{name}.horizons_days {short} end before events count, "
                f"{starts[name]:g} days after the scan; leave them out or lower start_days or ehr.blackout_days"
            )
    return starts
