"""Properties of the frozen tables and of the draw of latents."""

from __future__ import annotations

import numpy as np
import pytest

from data.cohort.exam import BIOMARKERS, LATENTS, PHENOTYPES, VISIBLE, draw_latents, weight_vector
from data.cohort.timelines.catalogue import build_catalogue
from data.cohort.timelines.families import FAMILIES

NEGATIVE_CONTROLS = ("bone_density", "spleen_size")


@pytest.fixture(scope="module")
def latents():
    return draw_latents(np.random.default_rng(5), 20_000)


@pytest.fixture(scope="module")
def catalogue():
    return build_catalogue(1.0)


def test_scores_are_standardised(latents):
    scores = latents.scores_NL
    age = LATENTS.index("age")  # clipped to a plausible range
    others = np.arange(scores.shape[1]) != age
    np.testing.assert_allclose(scores[:, others].mean(0), 0, atol=0.03)
    np.testing.assert_allclose(scores[:, others].std(0), 1, atol=0.03)
    assert abs(scores[:, age].std() - 1) < 0.05


def test_severities_lie_between_absent_and_worst(latents):
    assert latents.severity_NJ.min() >= 0
    assert latents.severity_NJ.max() <= 1
    absent = (latents.severity_NJ == 0).mean(0)
    np.testing.assert_allclose(absent, [1 - b.present for b in BIOMARKERS], atol=0.02)


def test_hidden_factors_are_independent_of_what_the_image_shows(latents):
    correlation = np.corrcoef(latents.scores_NL.T)
    first_hidden = len(BIOMARKERS)
    across = correlation[:first_hidden, first_hidden : LATENTS.index("age")]
    assert np.abs(across).max() < 0.03
    assert np.abs(correlation[LATENTS.index("age"), first_hidden : LATENTS.index("age")]).max() < 0.03


def test_negative_controls_drive_codes_but_no_probe_phenotype():
    for phenotype in PHENOTYPES:
        assert not set(phenotype.weights) & set(NEGATIVE_CONTROLS)
    for name in NEGATIVE_CONTROLS:
        assert any(name in family.weights for family in FAMILIES)


def test_every_driver_of_a_phenotype_also_drives_other_codes():
    """The phenotypes are excluded from the pretraining tasks: what predicts them must be learnable from the rest."""
    elsewhere = {name for family in FAMILIES for name in family.weights}
    for phenotype in PHENOTYPES:
        assert set(phenotype.weights) <= elsewhere


def test_sensitivities_are_between_30_and_60_percent():
    stated = [row.sensitivity for row in (*PHENOTYPES, *FAMILIES) if row.sensitivity]
    assert len(stated) > 15
    assert min(stated) >= 0.3
    assert max(stated) <= 0.6


def test_codes_form_a_tree_of_several_levels(catalogue):
    parents = dict(zip(catalogue.codes, catalogue.parents))
    assert len(parents) == len(catalogue.codes) >= 3000
    depth = dict.fromkeys((c for c, up in parents.items() if not up), 0)
    for code, up in parents.items():  # a parent precedes its children
        if up:
            depth[code] = 1 + max(depth[p] for p in up)
    assert len(depth) == len(parents)
    assert max(depth.values()) >= 3


def test_a_phenotype_and_its_descendants_share_one_log_linear_hazard(catalogue):
    for phenotype in PHENOTYPES:
        if not phenotype.descendants:
            continue
        members = [
            i
            for i, (code, up) in enumerate(zip(catalogue.codes, catalogue.parents))
            if code == phenotype.code or phenotype.code in up
        ]
        assert len(members) == 1 + len(phenotype.descendants) == 4
        assert np.ptp(catalogue.weights_CL[members], axis=0).max() == 0
        np.testing.assert_array_equal(catalogue.weights_CL[members[0]], weight_vector(phenotype.weights))
        assert catalogue.per_year_C[members].sum() == pytest.approx(phenotype.per_year)


def test_catalogue_does_not_depend_on_who_asks(catalogue):
    again = build_catalogue(1.0)
    assert again.codes == catalogue.codes
    np.testing.assert_array_equal(again.per_year_C, catalogue.per_year_C)


def test_most_common_codes_depend_on_the_image(catalogue):
    common = catalogue.per_year_C > 0.01
    visible = (catalogue.weights_CL[:, VISIBLE] != 0).any(1)
    assert (common & visible).sum() > 800
    assert (common & ~visible).sum() > 100
