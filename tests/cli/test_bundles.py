"""Bring your own model: from a state dict to a calibrated bundle, by commands only."""

import json

import pytest
import torch
from typer.testing import CliRunner

from dicomguard import phantom
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


def test_a_state_dict_becomes_a_calibrated_bundle(weights, tmp_path, desk):
    out = tmp_path / "mine"
    words = ["--network", "EfficientNetLite0", "--args", '{"num_classes": 1}', "--name", "mine", "--size", "48x48"]
    norm = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--labels", "normal,opacity"]
    code, (described,) = run("bundle", "import", weights, "--out", out, *words, *norm, "--json")
    assert code == 0
    assert (described["name"], described["labels"], described["calibration"]) == ("mine", ["normal", "opacity"], None)
    with pytest.raises(BundleError, match="exists already"):
        run("bundle", "import", weights, "--out", out, *words, *norm)

    clean = tmp_path / "clean"
    clean.mkdir()
    for seed in range(20):
        phantom.make(seed, opacity=seed % 2 == 0, rows=64, columns=64).save_as(
            clean / f"{seed}.dcm", enforce_file_format=True
        )
    with pytest.raises(BundleError, match="too few"):
        run("bundle", "calibrate", out, "--clean", clean, "-c", desk.path)
    for seed in range(20, 90):
        phantom.make(seed, opacity=seed % 2 == 0, rows=64, columns=64).save_as(
            clean / f"{seed}.dcm", enforce_file_format=True
        )
    (clean / "README").write_text("no DICOM")
    code, (calibrated,) = run("bundle", "calibrate", out, "--clean", clean, "-c", desk.path, "--alpha", "0.1", "--json")
    assert code == 0
    assert (calibrated["calibration"]["images"], calibrated["calibration"]["alpha"]) == (90, 0.1)
    code, (shown,) = run("bundle", "show", out, "--json")
    assert shown == calibrated


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
        pytest.param(["--labels", "a"], id="one-label"),
        pytest.param(["--size", "48"], id="no-size"),
        pytest.param(["--mean", "x"], id="no-number"),
        pytest.param(["--args", "{"], id="no-json"),
    ],
)
def test_bad_usage_exits_with_2(weights, tmp_path, words):
    given = ["--network", "EfficientNetLite0", "--name", "x", "--labels", "a,b", "--out", tmp_path / "out", *words]
    assert run("bundle", "import", weights, *given)[0] == 2
