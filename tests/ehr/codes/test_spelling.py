"""Codes that are meant and written otherwise: found by letters and digits, by their ending, or by what follows."""

import polars as pl
import pytest

from ehr.codes.ontology import from_metadata
from ehr.codes.spelling import other_spellings, spelling_counts
from ehr.schema import METADATA

DATA = pl.Series(
    ["SNOMED/59282003", "ICD10CM/I27.20", "HOSPITAL_ADMISSION//EW//ER", "LAB//7//mg", "DIAGNOSIS//ICD//10//I2720"]
)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("SNOMED//59282003", "SNOMED/59282003"),  # separators
        ("snomed/59282003", "SNOMED/59282003"),  # letter case
        ("SNOMED:59282003", "SNOMED/59282003"),
        ("SNOMEDCT_US/59282003", "SNOMED/59282003"),  # another prefix
        ("ICD10CM/I2720", "ICD10CM/I27.20"),  # the dot
        ("ICD-10-CM/I27.20", "ICD10CM/I27.20"),
        ("icd10cm/i27*", "ICD10CM/I27.20"),
        ("HOSPITAL_ADMISSION", "HOSPITAL_ADMISSION*"),  # what follows it
        ("LAB//7", "LAB//7*"),
        ("SNOMED/59282004", None),  # another code
        ("ICD10CM/I27", None),  # a category, which the data have no code of
        ("ICD9CM/416.0", None),
        ("SNOMED/5928*3", None),
        ("//", None),
    ],
)
def test_a_code_that_matches_nothing_is_looked_up_in_other_spellings(pattern, found):
    assert other_spellings([pattern], DATA).get(pattern) == found


def test_codes_known_and_spelled_otherwise_are_counted_and_local_ones_are_neither():
    data = pl.Series(["SNOMED//1", "SNOMED//2", "SNOMED/3", "LOCAL/x"])
    named = pl.Series(["SNOMED/1", "SNOMED/2", "SNOMED/3", "SNOMED/9"])
    assert spelling_counts(data, named) == {
        "codes_of_the_data": 4, "known": 1, "spelled_otherwise": 2, "such_as": ["SNOMED//1", "SNOMED/1"]
    }  # fmt: skip
    nothing = pl.Series([], dtype=pl.String)
    assert spelling_counts(data, nothing)["spelled_otherwise"] == spelling_counts(nothing, named)["known"] == 0


def test_an_ontology_names_codes_without_a_description_too():
    rows = [("a", None, ["b"]), ("c", "text", None)]
    assert sorted(from_metadata(pl.DataFrame(rows, schema=METADATA, orient="row")).named) == ["a", "c"]


def test_the_codes_of_sex_are_no_spelling_of_a_vocabulary():
    """OMOP's vocabulary has Gender/M; MEDS, and our conversion, write GENDER//M."""
    found = spelling_counts(pl.Series(["GENDER//M", "A/1"]), pl.Series(["Gender/M", "A/1"]))
    assert (found["codes_of_the_data"], found["known"], found["spelled_otherwise"]) == (1, 1, 0)
