from __future__ import annotations

from pathlib import Path

import pytest

import dicomguard
from dicomguard.lab.benchmark import provenance
from dicomguard.lab.benchmark.kinds import KINDS
from dicomguard.lab.measure import imports_of

ROOT = Path(dicomguard.__file__).parent


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_rests_on_the_module_that_makes_it(kind: str) -> None:
    module = KINDS[kind].__module__.removeprefix("dicomguard.").replace(".", "/") + ".py"
    assert module == f"lab/benchmark/kinds/{provenance._MODULES.get(kind, kind)}.py"
    rests_on = imports_of(module, without=provenance._NO_SAY)
    others = {f"lab/benchmark/kinds/{path.name}" for path in (ROOT / "lab/benchmark/kinds").glob("*.py")}
    assert set(rests_on) & others == {module, "lab/benchmark/kinds/opening.py"}, "kinds do not rest on one another"
    assert "scoring/scorer.py" in rests_on
    assert "torch " in provenance.made_by(kind)


def test_what_decides_is_among_it() -> None:
    def behind(module: str) -> tuple[str, ...]:
        return imports_of(f"lab/benchmark/kinds/{module}.py", without=provenance._NO_SAY)

    assert "enrol/cleanset.py" in behind("adaptive"), "which files fit, which set the threshold"
    assert {"attacks/attacked.py", "lab/imagenet.py"} <= set(behind("victims"))
    assert "lab/report/style.py" in behind("looks")
    assert all((ROOT / name).is_file() for name in provenance._NO_SAY)
