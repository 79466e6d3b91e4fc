"""What the first bytes of OMOP and Athena tables tell, known in seconds: before any row is read."""

from __future__ import annotations

from pathlib import Path

from ehr.sources.omop import TABLES
from ehr.sources.table_rows import check_header
from ehr.sources.tables import Tables, find_tables
from ttepretrain.errors import ConfigError

VOCABULARY = {  # columns without which a table is of no use
    "concept": ("concept_id", "vocabulary_id", "concept_code"),
    "concept_relationship": ("concept_id_1", "concept_id_2", "relationship_id"),
    "concept_ancestor": ("descendant_concept_id", "ancestor_concept_id", "min_levels_of_separation"),
}


def check_headers(ehr: Path, ontology: Path | None) -> None:
    """ConfigError where an OMOP extract, or vocabulary tables, cannot be read for a reason that files' headers show.

    A table that is there twice, a column that is missing or there twice, a file that is no such table or is not UTF-8
    in its first line, no concept table. A MEDS data set passes; its vocabulary is checked. IntegrityError for a parquet
    or compressed file that is cut short.
    """
    tables = find_tables(ehr)
    given = [find_tables(ontology)] if ontology is not None else []
    if "person" in tables.files:
        for name, table in TABLES.items():
            _check(tables, name, table.columns, table.required, "input.ehr")
        if not any("concept" in found.files for found in (tables, *given)):
            unread = [name for found in (tables, *given) for name in found.unread if "concept" in name.lower()]
            also = f"; not read, though named like it: {', '.join(unread[:10])}" if unread else ""
            raise ConfigError(
                f"input.ehr: no concept table; put CONCEPT beside the OMOP tables, or set input.ontology{also}"
            )
        given.insert(0, tables)
    for found in given:
        key = "input.ehr" if found is tables else "input.ontology"
        for name, columns in VOCABULARY.items():
            _check(found, name, columns, columns, key)


def _check(tables: Tables, name: str, columns: tuple[str, ...], required: tuple[str, ...], key: str) -> None:
    files = tables.files.get(name, ())
    names = [check_header(tables.folder, file, columns, required) for file in files]
    if name in ("person", "concept") and files and not any(names):
        raise ConfigError(f"{key}: table {name} is empty: {', '.join(files[:3])} has no column names; export it again")
