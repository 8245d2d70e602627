"""The five ways to use a bundle that may be forged, and what each of them answers."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from meteora_registry.bundle import Bundle
from meteora_registry.bundle.files import write_record
from meteora_registry.fuser.fuse_member import MemberFiles
from meteora_registry.fuser.refit import NewGates, refit_bundle
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from meteora_registry.runtime import load_bundle
from meteora_registry.schemas.bundle import Fitting, FittingData, Gate, RequestGates
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.verification import Level
from support.byte_tokens import byte_tokenizer
from support.forging.catalogue import FORGERIES
from support.forging.forger import CONFIG, WEIGHTS, Forger
from support.forging.of_requests import FEATURES, OBSERVED
from support.hub import LoopbackHub
from support.hub_commands import Machine, Result, Workplace, machine, workplace
from support.hub_server import serve
from support.models import save_base, tiny_llama
from support.small_adapters import make_adapter

WAYS = ("integrity", "source", "push", "pull", "load")
Answers = dict[str, dict[str, str]]


@dataclass
class Workshop:
    """A home that fused sound bundles, a Hub, and the model that the bundles are for."""

    folder: Path
    machine: Machine
    hub: LoopbackHub

    def __post_init__(self) -> None:
        self.empty_catalog = self._empty_catalog()
        self.home = workplace(self.folder / "fused", self.machine, self.empty_catalog)
        self.base = save_base(tiny_llama(), self.folder / "base")
        byte_tokenizer().save_pretrained(self.base)
        self.sound = self._fuse()
        self._elsewhere: Workplace | None = None

    def _empty_catalog(self) -> Path:
        home = Home(self.folder / "empty")
        Catalog.open(home).close()
        return home.catalog_file

    def _fuse(self) -> dict[str, Path]:
        made = self.folder / "adapters"
        make_adapter(made / "alpha", rank=4, alpha=8, targets=("q_proj", "v_proj"), seed=1)
        make_adapter(made / "beta", rank=8, alpha=4, rslora=True, targets=("q_proj", "o_proj"), seed=2)
        make_adapter(made / "gamma", rank=4, alpha=2, targets=("q_proj", "o_proj"), seed=3)
        names = ("alpha", "beta", "gamma")
        self._must("add", *(made / name for name in names))
        options = {"plain": (), "experts": ("--with-experts",), "cast": ("--dtype", "bfloat16")}
        for name, own in options.items():
            self._must("fuse", *names, "--out", self.folder / name, "--name", name, *own)
        self._observe(made)
        return {name: self.folder / name for name in (*options, "observed")}

    def _observe(self, made: Path) -> None:
        """Write the plain bundle with a request gate, drawn by chance, where no member has factors."""
        bundle, folder = Bundle.open(self.folder / "plain"), self.folder / "observed"
        names, generator = bundle.config.names, torch.Generator().manual_seed(0)
        gate = Gate(
            kind="normalised",
            scope="prompt",
            bias=True,
            eps=1e-6,
            sources={},
            request=RequestGates(
                modules=(OBSERVED,),
                observed={OBSERVED: FEATURES},
                background=("general",),
                forms=("plain",),
                template=None,
                centre=0.0,
                spread=1.0,
                quantiles=None,
                held_out=None,
            ),
            initialisation=None,
            fitted=Fitting(
                method="by chance",
                data=tuple(
                    FittingData(member=name, sha256=Digest.of_bytes(name.encode()), samples=32)
                    for name in names
                ),
            ),
        )
        values = {
            path: (torch.randn(len(names), shape[0], generator=generator), torch.zeros(len(names)))
            for path, shape in bundle.shapes.items()
        }
        rows = torch.randn(len(names) + 1, FEATURES, generator=generator)
        request = {OBSERVED: (rows, torch.zeros(len(names) + 1), torch.eye(len(names)))}
        folder.mkdir()
        refit_bundle(bundle, NewGates(gate, 1, 1.0, values, request), folder)
        own = {name: made / name for name in names}
        sources = {name: MemberFiles(path / CONFIG, path / WEIGHTS) for name, path in own.items()}
        write_record(folder, verify_bundle(folder, level=Level.SOURCE, sources=sources))

    def _must(self, *arguments: object) -> None:
        result = self.home.run(*arguments)
        assert result.code == 0, result.err

    def forge(self, name: str) -> Path:
        """Return a forged copy of a sound bundle."""
        forgery = FORGERIES[name]
        folder: Path = shutil.copytree(self.sound[forgery.start], self.folder / "forged" / name / "bundle")
        forgery.forge(Forger(folder))
        return folder

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of a forgery, without the reason."""
        answers = self.answers(self.forge(name))
        return {"name": name, "forged": FORGERIES[name].forged, "answers": answers}

    def answers(self, bundle: Path) -> Answers:
        """Return what each way answers for a bundle."""
        asked: dict[str, Callable[[Path], dict[str, str]]] = {
            "integrity": lambda bundle: self._verify(bundle, "integrity"),
            "source": lambda bundle: self._verify(bundle, "source"),
            "push": self._push,
            "pull": self._pull,
            "load": self._load,
        }
        return {way: ask(bundle) for way, ask in asked.items()}

    def _verify(self, bundle: Path, level: str) -> dict[str, str]:
        result = self.home.run("verify", bundle, "--level", level, "--format", "json")
        if not result.out:
            return self._read(result)
        found = result.data
        told = [*found["problems"], *found["unchecked"]]
        assert bool(told) == (result.code != 0), result
        return self._read(dataclasses.replace(result, out="", err=told[0] if told else result.err))

    def _push(self, bundle: Path) -> dict[str, str]:
        self.hub.forget()
        answer = self._read(self.home.run("push", bundle, "org/copy"))
        # What is refused must not be there.
        assert answer["answer"] != "refused" or "org/copy" not in self.hub.repositories
        return answer

    def _pull(self, bundle: Path) -> dict[str, str]:
        self.hub.forget()
        self.hub.create("org/forged", bundle)
        elsewhere = self._elsewhere or workplace(
            bundle.parent / "elsewhere", self.machine, self.empty_catalog
        )
        result = elsewhere.run("pull", "org/forged", "--out", "pulled", "--name", "pulled")
        answer = self._read(result)
        # Nothing is left by a refusal, so the next bundle may go to the same home.
        self._elsewhere = elsewhere if answer["answer"] == "refused" else None
        if answer["answer"] == "refused":
            left = sorted(path.name for path in elsewhere.folder.iterdir())
            assert (left, elsewhere.blobs()) == (["home"], set())
        return answer

    def _read(self, result: Result) -> dict[str, str]:
        lines = [*result.err.splitlines(), *result.out.splitlines()]
        assert result.code in (0, 1, 2, 3), lines
        assert not any("Traceback" in line or "a defect of" in line for line in lines), lines
        if result.code != 0:
            answer = "inconclusive" if result.code == 3 else "refused"
            told = [line for line in lines if line.startswith("error: ")] or lines
            return self._answer(answer, told[0].removeprefix("error: "))
        warned = next((line for line in lines if line.startswith("warning: ")), None)
        return self._answer("accepted", "") if warned is None else self._answer("warned", warned)

    def _load(self, bundle: Path) -> dict[str, str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                loaded = load_bundle(bundle, self._model())
                with torch.no_grad():
                    logits = loaded.model(torch.arange(8)[None], attention_mask=torch.ones(1, 8)).logits
            except Exception as error:  # noqa: BLE001  # whatever the loader raises is its answer
                return self._answer("refused", f"{type(error).__name__}: {error}".splitlines()[0])
        if not logits.isfinite().all():
            return self._answer("accepted", "and its answers are not finite")
        told = [str(each.message) for each in caught if "GateNotFitted" not in each.category.__name__]
        told = [text for text in told if "is_gradient_checkpointing" not in text]
        return self._answer("warned", told[0]) if told else self._answer("accepted", "")

    def _model(self) -> PreTrainedModel:
        model = tiny_llama()
        model.name_or_path = os.fspath(self.base)
        return model

    def _answer(self, answer: str, message: str) -> dict[str, str]:
        return {"answer": answer, "message": plain(message, self.folder)}


@contextmanager
def workshop(folder: Path) -> Iterator[Workshop]:
    """Yield a workshop; its machine has no Triton, whose interpreter takes seconds to start."""
    without_triton = 'import sys; sys.modules["triton"] = None'
    with serve() as hub, machine(folder / "machine", hub, prelude=without_triton) as made:
        yield Workshop(folder, made, hub)


def plain(message: str, folder: Path) -> str:
    """Return a message without what differs from run to run."""
    message = re.sub(re.escape(str(folder)) + r"[\w./-]*/(?=[\w.]+)", "", message)
    message = re.sub(r"\b[0-9a-f]{64}\b|`[0-9a-f]{12}`", "DIGEST", message)
    message = re.sub(r"\b[0-9a-f]{40}\b", "COMMIT", message)
    # Errors of the arithmetic differ from processor to processor.
    message = re.sub(r"off by [0-9.e+-]+", "off by NUMBER", message)
    message = re.sub(r"\b\d\.\d{9,}(e-\d+)?", "NUMBER", message)
    return message if len(message) <= 240 else message[:237] + "..."
