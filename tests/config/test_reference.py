"""docs/configuration.md names every key with its default, and no other."""

import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from dicomguard.config import Config

DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
# Said in words, as what stands in their place is worked out.
WORKED_OUT = {"ledger", "site_key_file", "bundles[].enrolment", "bundles[].fingerprint", "bundles[].enrolment_sha256"}


def keys(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every leaf by its dotted name, with its default; `...` where there is none."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        annotation = field.annotation
        inner = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
        section = next((one for one in inner if issubclass(one, BaseModel)), None)
        if section is not None:
            many = "[]" if section is not annotation else ""
            found |= keys(section, f"{prefix}{name}{many}.")
        else:
            found[prefix + name] = ... if field.is_required() else field.get_default(call_default_factory=True)
    return found


def test_every_key_is_explained_with_its_default() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| \S", DOCS.read_text("utf-8"), re.MULTILINE)
    written = dict(rows)
    expected = keys(Config)
    assert len(written) == len(rows), "no key twice"
    assert set(written) == set(expected)
    assert len(expected) > 40
    for key, default in expected.items():
        if key in WORKED_OUT:
            assert default is None
        elif default is ...:
            assert written[key] == "required"
        elif default == ():
            assert written[key] == "none"
        elif default == {}:
            assert written[key] == "fits all"
        elif isinstance(default, str):
            assert written[key] == f"`{default}`"
        else:
            assert float(written[key].strip("`")) == default
