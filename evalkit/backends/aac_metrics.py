"""`aac-metrics`: the reference implementation of caption measures, isolated."""

from __future__ import annotations

from pathlib import Path

from evalkit.registry import BackendInfo, backend

PACKAGES = (
    "annotated-doc==0.0.7",
    "annotated-types==0.8.0",
    "anyio==4.16.0",
    "certifi==2026.10.19.post1",
    "charset-normalizer==3.5.2",
    "click==8.5.1",
    "cloudpickle==3.1.3",
    "filelock==4.2.12",
    "fsspec==2026.9.0",
    "h11==0.16.0",
    "hf-xet==1.8.0",
    "httpcore2==2.16.2",
    "httpx2==2.16.2",
    "huggingface_hub==2.4.0",
    "idna==3.20",
    "Jinja2==3.1.6",
    "joblib==1.6.0",
    "lightning-utilities==0.15.3",
    "markdown-it-py==4.3.0",
    "MarkupSafe==3.0.4",
    "mdurl==0.1.2",
    "mpmath==1.3.0",
    "narwhals==2.29.0",
    "networkx==3.6.1",
    "numpy==2.4.6",
    "packaging==26.3",
    "pydantic==2.14.4",
    "pydantic_core==2.50.5",
    "Pygments==2.21.0",
    "PyYAML==6.0.4",
    "regex==2026.11.19",
    "requests==2.34.2",
    "rich==15.0.0",
    "safetensors==0.8.0",
    "scikit-learn==1.9.1",
    "scipy==1.17.1",
    "sentence-transformers==6.2.0",
    "setuptools==84.2.1",
    "shellingham==1.5.4",
    "sympy==1.14.0",
    "threadpoolctl==3.8.0",
    "tokenizers==0.23.3",
    "torch==2.13.0",
    "torchmetrics==1.9.0",
    "tqdm==4.70.1",
    "transformers==5.24.0",
    "truststore==0.10.5",
    "typer==0.29.2",
    "typing-inspection==0.4.5",
    "typing_extensions==4.16.0",
    "urllib3==2.8.0",
    "--no-deps pythonwrench==0.6.8",
    "--no-deps aac-metrics==0.6.0",
)
"""All that pip resolved on CPython 3.11 (x86-64 Linux) for what aac-metrics 0.6.0 imports. It declares a release of
pythonwrench that was withdrawn, and msclap with its own old versions: so it comes without its dependencies, and msclap
not at all (the worker puts an empty module in its place)."""

AAC_METRICS = backend(
    BackendInfo(
        name="aac-metrics",
        worker=str(Path(__file__).with_name("aac_metrics_worker.py")),
        version="0.6.0",
        packages=PACKAGES,
        summary="reference implementation of BLEU, ROUGE-L, CIDEr-D, vocabulary; its METEOR and SBERT similarity",
        python=">=3.11,<3.15",
        needs="nothing for the n-gram measures",
        licence="MIT",
    )
)
