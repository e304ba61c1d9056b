"""The digest of code changes with what it does, and not with what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicomguard.lab import measure


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measure.dicomguard, "__file__", str(tmp_path / "__init__.py"))
    path = tmp_path / "part" / "one.py"
    path.parent.mkdir()
    return path


def test_words_and_layout_do_not_count(part: Path) -> None:
    part.write_text('"""Says."""\n\ndef one(x):\n    """Adds."""\n    return x + 1  # why\n')
    was = measure.code_digest("part")
    part.write_text('"""Says more."""\ndef one(x):\n\n    return (x +\n            1)\n')
    assert measure.code_digest("part") == was == measure.code_digest("part/one.py")
    part.write_text('"""Says."""\n\ndef one(x):\n    """Adds."""\n    return x + 2  # why\n')
    assert measure.code_digest("part") != was


def test_a_part_that_is_not_there_is_an_error(part: Path) -> None:
    with pytest.raises(ValueError, match="no part other"):
        measure.code_digest("other")


def test_what_a_module_imports_is_found_through_modules_functions_and_packages(part: Path) -> None:
    root = part.parent.parent
    for name, text in {
        "part/__init__.py": "from dicomguard.deep import far",
        "part/one.py": "import numpy\nfrom dicomguard import two\ndef late():\n    from dicomguard.deep.near import x",
        "two.py": "import dicomguard.three",
        "three.py": "from dicomguard.two import back",
        "deep/__init__.py": "",
        "deep/near.py": "from dicomguard.part import name",
        "deep/far.py": "",
        "alone.py": "",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    found = measure.imports_of("part/one.py")
    assert found == (
        "deep/__init__.py",
        "deep/far.py",
        "deep/near.py",
        "part/__init__.py",
        "part/one.py",
        "three.py",
        "two.py",
    )
    assert measure.imports_of("part/one.py", without={"two.py", "part/__init__.py"}) == ("deep/near.py", "part/one.py")
