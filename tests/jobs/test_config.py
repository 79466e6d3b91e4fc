"""RunConfig: every section says whether it decides what the weights become."""

from dataclasses import fields

from jobs.config import RunConfig

IN_IDENTITY = {"volume", "model", "train"}  # by their identity(), in jobs.pretrain.identity_of
BY_PREPARED = {"cohort", "input", "prepare", "ehr"}  # by the tasks and the fingerprint of prepared/
NEITHER = {"name", "paths", "export", "eval", "report"}


def test_a_new_section_must_be_classified():
    """A section in none of the sets would resume a run that it changes."""
    assert {field.name for field in fields(RunConfig)} == IN_IDENTITY | BY_PREPARED | NEITHER
