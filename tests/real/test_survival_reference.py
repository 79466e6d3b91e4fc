"""Harrell's C against R's survival::concordance on R's own data sets."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ttepretrain.evaluation.concordance import harrell_c

REFERENCE = (
    Path(os.environ.get("TTE_FIXTURES", Path(__file__).parents[3] / "shared/fixtures"))
    / "surv_reference_R/benchmark_data/benchmark_cindex.json"
)


@pytest.mark.skipif(not REFERENCE.exists(), reason="fixture surv_reference_R is not there (TTE_FIXTURES)")
def test_c_equals_r_survival_to_its_printed_digits():
    cases = json.loads(REFERENCE.read_text())
    assert len(cases) > 3
    for case in cases:
        event = np.array(case["test_status"], bool)
        value = harrell_c(event, np.array(case["test_time"], float), np.array(case["estimate"], float))
        assert value == pytest.approx(case["c_Harrell_survival"][0], abs=5.1e-5)
