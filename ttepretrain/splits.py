"""The names of the splits, in the order in which every table and report lists them."""

from __future__ import annotations

# Fit on train, choose on tuning, report held_out.
SPLITS = ("train", "tuning", "held_out")
