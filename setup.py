"""Packaging of espnet_todm; the build system and the tools are configured in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

MINI = ["espeakng-loader"]
DEPLOY = ["onnx", "onnxruntime", "sherpa-onnx", "kaldi-native-fbank"]
SEARCH = ["optuna"]
# k2 on the package index is for one Python and one torch. For others it comes from its own site, built for their torch.
K2 = [f"{one}; python_version == '3.9'" for one in ("k2==1.23.4", "torch==1.13.1", "torchaudio==0.13.1", "numpy<2")]
# submitit 1.5.4 does not start where importlib.metadata is that of Python 3.9.
SLURM = ["submitit", "submitit<1.5.4; python_version < '3.10'"]
LM = ["flashlight-text"]
ZOO = ["espnet_model_zoo"]  # for ESPnet's from_pretrained
MICROPHONE = ["sounddevice"]
DOCS = ["pdoc"]
TEST = ["jiwer", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "mypy", "types-PyYAML", "types-tqdm"]
# What is made of ONNX needs a torch that exports it and a runtime of the same age; with k2's Python those tests are skipped.
TEST_DEPLOY = [f"{package}; python_version >= '3.10'" for package in (*DEPLOY, *SEARCH)]

setup(
    name="espnet_todm",
    version="0.1.0",
    description="Train one speech recognition supernet with ESPnet, deploy many small models from it",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    classifiers=[  # the Pythons that the tests ran on: 3.9 with constraints-k2.txt, the others with constraints.txt
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
    packages=find_packages(include=["espnet_todm", "espnet_todm.*"]),
    package_data={"espnet_todm": ["py.typed", "report/page.html"]},
    entry_points={"console_scripts": ["espnet-todm=espnet_todm.bin.main:entry"]},
    install_requires=[
        "espnet>=202402",
        "torch>=1.13.1",
        "torchaudio>=0.13.1",
        "numpy",
        "PyYAML",
        "lhotse",
        "kaldiio",
        "sentencepiece",
        "safetensors",
        "soundfile",
        "rapidfuzz",
        "scipy",
        "matplotlib",
        "jinja2",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "k2": K2,
        "deploy": DEPLOY,
        "search": SEARCH,
        "docs": DOCS,
        "lm": LM,
        "microphone": MICROPHONE,
        "mini": MINI,
        "slurm": SLURM,
        "zoo": ZOO,
        "test": TEST + MINI + LM + SLURM + TEST_DEPLOY,
    },
)
