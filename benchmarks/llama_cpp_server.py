"""llama.cpp's server (package `llama-cpp-python[server]`) with a .gguf, on loopback, for `server_agreement.py`.

    python benchmarks/llama_cpp_server.py FILE.gguf PORT

Weights are left as they are in memory: llama.cpp's repacked ones (AMX) end in a segmentation fault on some
virtual machines.
"""

from __future__ import annotations

import sys
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as binding
from llama_cpp.server.__main__ import main


def _without_repacking() -> Any:
    params = _defaults()
    params.use_extra_bufts = False
    return params


_defaults = binding.llama_model_default_params
binding.llama_model_default_params = llama_cpp.llama_model_default_params = _without_repacking

file, port = sys.argv[1:]
# logits_all: without it this server tells no log-probabilities
sys.argv[1:] = ["--model", file, "--model_alias", "model", "--host", "127.0.0.1", "--port", port]
sys.argv += ["--n_ctx", "1024", "--logits_all", "true", "--verbose", "false"]
main()
