"""Coverage-guided fuzzing of the inspection, outside the test suite.

    pip install atheris
    python tests/fuzz/fuzz_inspection.py -runs=1000000 -timeout=1 -rss_limit_mb=1024 -max_len=2048

An input is a config and a weights file, divided at the first zero byte after ``|``. Any exception
other than the ones an unreadable file may give, an answer later than a second, or more memory than
the limit ends the run, and the input is written beside. Seeds are made here; no file is needed.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["meteora_registry"]):
    from meteora_registry.inspection.adapter import inspect_files
    from meteora_registry.inspection.card import parse_license

DIVIDER = b"|\0"
FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
CONFIG, WEIGHTS = FOLDER / "config", FOLDER / "weights"


def check(data: bytes) -> None:
    """Inspect one input; every finding must be writable and printable."""
    config, _, weights = data.partition(DIVIDER)
    parse_license(config)
    CONFIG.write_bytes(config)
    WEIGHTS.write_bytes(weights)
    for finding in inspect_files(CONFIG, WEIGHTS).findings:
        if not finding.describe().isprintable() or not finding.to_bytes():
            raise AssertionError(f"{finding!r} cannot be printed")


def seeds() -> list[bytes]:
    """Return whole adapters, and parts of them that fail at different depths."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "use_rslora": True}
    rich = config | {
        "rank_pattern": {"l.0.q": 2, r".*\.(k|v)": 2},
        "alpha_pattern": {"(a+)+": 1, "(?!x)q": 2},
        "target_modules": r".*(q|k)",
        "modules_to_save": ["score"],
        "base_model_name_or_path": "./x",
        "init_lora_weights": "pissa",
        "task_type": "SEQ_CLS",
    }
    sets = (
        {"base_model.model.l.0.q.lora_A.weight": [2, 3], "base_model.model.l.0.q.lora_B.weight": [3, 2]},
        {
            "module.l.0.q.lora_A.default.weight": [2, 3],
            "l.0.q.lora_magnitude_vector": [3],
            "lm_head.weight": [2],
        },
        {"x.lora_embedding_A": [1], "diffusion_model.a": [1], "y.bias": [1], "trainable_tokens": [1, 2]},
    )
    configs = [json.dumps(value).encode() for value in (config, rich)]
    cards = [b"---\nlicense: mit\ntags: [a, b]\n---\n"]
    return [
        one + DIVIDER + _weights(each, dtype)
        for one in configs + cards
        for each in sets
        for dtype in ("F32", "BF16")
    ]


def _weights(shapes: dict[str, list[int]], dtype: str) -> bytes:
    header, position = {}, 0
    for name, shape in shapes.items():
        count = 4 if dtype == "F32" else 2
        for size in shape:
            count *= size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + count]}
        position += count
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + os.urandom(position)


def main() -> None:
    """Run the fuzzer with the given options of libFuzzer."""
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
