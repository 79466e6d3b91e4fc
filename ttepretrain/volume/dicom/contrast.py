"""Whether a contrast agent was given, as ContrastBolusAgent says it: free text, in the language of the hospital."""

from __future__ import annotations

import re

from ttepretrain.volume.dicom.tags import PLACEHOLDERS, Values, text

# Words that a denial begins with. NON alone denies, as in NON-CONTRAST and NON INJECTE; a NON-IONIC agent is one.
NO_CONTRAST = re.compile(
    r"(NO|NON|NOT|NONE|NIL|N|0+|FALSE|WITHOUT|PRE|OHNE|KEIN\w*|NEIN|NICHTS?|NATIVE?|NATIF|NATIVO|SANS|PAS|AUCUNE?"
    r"|SIN|NINGUNO|SENZA|SEM|NENHUM|ZONDER|GEEN|UTAN|INGEN|UDEN|PLAIN|UNENHANCED|(NON|NO|PRE)-?(ENHANCED|CON(TRAST)?)"
    r"|NCCT|NECT)(?![A-Z0-9])(?!\W*IONIC)"
)
# What is asked, before the answer: `IV contrast: none`
ASKED = re.compile(r"((IV|I\.V\.?|ORAL|CE|CM|KM|PDC|MDC|[CK]ONTRAST\w*|INJECTION|AGENT|BOLUS)\b[ .]*)+[:=]?\s*")
DENIED_BY_SIGN = re.compile(r"(?:C|CE|CM|IV|KM|I\.V\.?)\s?-")  # C+ and C- are written under radiographs
UNKNOWN = re.compile(r"N[./ ]*[AD]\.?|\W+|NOT? (KNOWN|STATED|RECORDED|SPECIFIED|AVAILABLE|APPLICABLE|DATA)")


def has_contrast(values: Values) -> bool | None:
    """Whether a contrast agent is named, in text or as a code; False where it says that there was none, None if unsaid.

    Several agents are separated: "no oral, Omnipaque" names one.
    """
    said = [text(values, "ContrastBolusAgent")]
    coded = values.get("ContrastBolusAgentSequence")
    said += [str(item.get("CodeMeaning") or item.get("CodeValue") or "") for item in coded or []]
    found = [_is_agent(part) for agent in said for part in re.split(r"[,;+&|]|\bAND\b|\bUND\b", _spelled(agent))]
    return True if True in found else False if False in found else None


def _spelled(agent: str) -> str:
    """In capital letters, with one spelling of `without`."""
    return re.sub(r"\bW\s?[/.]?\s?O\b|(?<![A-Z])S/", "WITHOUT ", " ".join(agent.upper().split()))


def _is_agent(part: str) -> bool | None:
    if DENIED_BY_SIGN.fullmatch(part.strip()):
        return False
    part = part.strip(" .\"'()[]_")
    if part in ("", *PLACEHOLDERS) or UNKNOWN.fullmatch(part):
        return None
    asked = ASKED.match(part)
    return not (NO_CONTRAST.match(part) or (asked and NO_CONTRAST.match(part, asked.end())))
