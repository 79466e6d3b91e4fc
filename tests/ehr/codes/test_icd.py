"""ICD's own hierarchy by spelling."""

import itertools
import random

import polars as pl
import pytest

from ehr.codes.icd import icd_parents

CHAINS = [
    ["ICD10CM/I27.20", "ICD10CM/I27.2", "ICD10CM/I27"],
    ["ICD10CM/S72.001A", "ICD10CM/S72.001", "ICD10CM/S72.00", "ICD10CM/S72.0", "ICD10CM/S72"],
    ["DIAGNOSIS//ICD//10//I2720", "DIAGNOSIS//ICD//10//I272", "DIAGNOSIS//ICD//10//I27"],
    ["ICD9CM/416.8", "ICD9CM/416"],
    ["ICD9CM/V12.51", "ICD9CM/V12.5", "ICD9CM/V12"],
    ["ICD9CM/E849.0", "ICD9CM/E849"],
    ["DIAGNOSIS//ICD//9//E8490", "DIAGNOSIS//ICD//9//E849"],
    ["DIAGNOSIS//ICD//10//E8490", "DIAGNOSIS//ICD//10//E849", "DIAGNOSIS//ICD//10//E84"],  # no external cause in ICD-10
    ["ICD10/E11.9", "ICD10/E11"],
    ["ICD-10-CM/I27.20 ", "ICD-10-CM/I27.2", "ICD-10-CM/I27"],
    ["icd9cm//e849.0", "icd9cm//e849"],
    ["ICD9CM/V1251", "ICD9CM/V125", "ICD9CM/V12"],
    ["DIAGNOSIS//ICD//9//4168", "DIAGNOSIS//ICD//9//416"],
]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0])
def test_a_code_is_a_kind_of_every_shorter_one_down_to_the_category(chain):
    found = icd_parents(pl.Series(chain[:1])).sort("code", descending=True)
    assert found.rows() == list(itertools.pairwise(chain))


@pytest.mark.parametrize(
    "code",
    ["ICD10CM/I27", "ICD9CM/E849", "ICD10PCS/0DJ08ZZ", "PROCEDURE//ICD//10//0DJ08ZZ", "PROCEDURE//ICD//9//3893",
     "ICD9Proc/38.93", "SNOMED/70995007", "ICD10CM/Chapter 9", "ICD10CM/", "LAB//ICD10CM/I27.20", "MEDS_DEATH", "",
     "ICD9/0066", "ICD9CM/4168", "ICD-9-CM//41401"],
)  # fmt: skip
def test_categories_procedures_and_other_vocabularies_have_no_such_parent(code):
    assert len(icd_parents(pl.Series([code]))) == 0


def test_many_codes_at_once_equal_each_alone():
    rng = random.Random(0)
    codes = [f"ICD10CM/{rng.choice('ABZ')}{rng.randrange(100):02d}.{rng.randrange(10**4)}" for _ in range(300)]
    each = {row for code in codes for row in icd_parents(pl.Series([code])).rows()}
    assert set(icd_parents(pl.Series(codes)).rows()) == each
