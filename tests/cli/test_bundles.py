"""Bring your own model: from a state dict to a bundle, by commands only. See test_enrol.py for what comes next."""

import json

import pytest
import torch
from typer.testing import CliRunner

from dicomguard.cli.app import app
from dicomguard.errors import BundleError
from tests.scoring.small import write_small

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state dict as training code saves it."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("trained")
    bundle = write_small(folder / "bundle")
    path = folder / "model.pt"
    state = {name: tensor.float() for name, tensor in load_file(bundle / "models" / "model.safetensors").items()}
    torch.save({"state_dict": state}, path)
    return path


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_state_dict_becomes_a_bundle(weights, tmp_path):
    out = tmp_path / "mine"
    words = ["--network", "EfficientNetLite0", "--args", '{"num_classes": 1}', "--name", "mine", "--size", "48x48"]
    norm = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--labels", "normal,opacity"]
    code, (described,) = run("bundle", "import", weights, "--out", out, *words, *norm, "--json")
    assert code == 0
    assert (described["name"], described["labels"], described["head"]) == ("mine", ["normal", "opacity"], "softmax")
    with pytest.raises(BundleError, match="exists already"):
        run("bundle", "import", weights, "--out", out, *words, *norm)
    code, (shown,) = run("bundle", "show", out, "--json")
    assert (code, shown) == (0, described)
    with pytest.raises(BundleError, match="is not enrolled"):
        run("enrol", out, "--show")


def test_several_findings_are_imported_as_such(tmp_path):
    from safetensors.torch import load_file

    bundle = write_small(tmp_path / "b", size=16, labels=("effusion", "mass", "nodule"), head="multilabel")
    torch.save(load_file(bundle / "models" / "model.safetensors"), tmp_path / "model.pt")
    words = ["--network", "EfficientNetLite0", "--name", "mine", "--size", "16x16", "--out", tmp_path / "mine"]
    more = ["--labels", "effusion,mass,nodule", "--args", '{"num_classes": 3}', "--head", "multilabel", "--json"]
    code, (described,) = run("bundle", "import", tmp_path / "model.pt", *words, *more)
    assert (code, described["head"], described["labels"]) == (0, "multilabel", ["effusion", "mass", "nodule"])
    with pytest.raises(BundleError, match="2 multilabel labels"):
        run("bundle", "import", tmp_path / "model.pt", *words[:-1], tmp_path / "n", *more, "--labels", "a,b")


def test_calibrate_is_gone(weights, tmp_path):
    assert run("bundle", "calibrate", tmp_path)[0] == 2


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Evil()))
    words = ["--network", "EfficientNetLite0", "--name", "x", "--labels", "a,b", "--out", tmp_path / "out"]
    with pytest.raises(BundleError):
        run("bundle", "import", path, *words)
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--size", "48"], id="no-size"),
        pytest.param(["--mean", "x"], id="no-number"),
        pytest.param(["--args", "{"], id="no-json"),
        pytest.param(["--head", "sigmoid"], id="no-head"),
    ],
)
def test_bad_usage_exits_with_2(weights, tmp_path, words):
    given = ["--network", "EfficientNetLite0", "--name", "x", "--labels", "a,b", "--out", tmp_path / "out", *words]
    assert run("bundle", "import", weights, *given)[0] == 2
