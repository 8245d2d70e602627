"""The two losses against a plain computation, and what reaches a gate of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from meteora_registry.fuser.refit import NewGates
from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import routing
from meteora_registry.runtime.active_bundles import overridden, route_as
from meteora_registry.runtime.fitting.sequences import NO_MEMBER
from meteora_registry.runtime.training.labelled_pass import LabelledPass
from meteora_registry.runtime.training.routed_model import routed_model, trained_parameters
from meteora_registry.runtime.training.trainer import language_losses
from support.gate_definitions import defined_logits
from support.models import some_tokens

from .conftest import Workplace

LABELS = torch.tensor([[NO_MEMBER, 0, 0, 0], [NO_MEMBER, 2, 2, NO_MEMBER]])
IDS = some_tokens(batch=2, length=4)


def model_of(workplace: Workplace) -> torch.nn.Module:
    config, fitted = workplace.bundle.config, workplace.fitted
    new = NewGates(fitted.describe("token"), config.top_k, config.temperature, fitted.values)
    return routed_model(workplace.base(), workplace.bundle, new)


def labelled(model: torch.nn.Module) -> tuple[LabelledPass, Tensor]:
    """Return the pass of two rows, and the model's logits."""
    passes: list[LabelledPass] = []

    def begin(router: object) -> LabelledPass:
        passes.append(LabelledPass(router.shared_routings(), LABELS))  # type: ignore[attr-defined]
        return passes[0]

    with overridden(model, begin):
        logits = model(input_ids=IDS).logits
    return passes[0], logits


def test_pass_with_labels_routes_as_the_bundle_does(training_workplace: Workplace) -> None:
    model = model_of(training_workplace)
    with routing(model) as record:
        found = labelled(model)[1]
        selections = {path: each.selection for path, each in record.modules.items()}
    with routing(model) as record:
        expected = model(input_ids=IDS).logits
    assert relative_error(found, expected) <= 1e-5
    assert selections.keys() == record.modules.keys()
    assert all(torch.equal(selections[path], each.selection) for path, each in record.modules.items())


def test_loss_of_gates_is_the_mean_over_gates_and_tokens_that_count(training_workplace: Workplace) -> None:
    model = model_of(training_workplace)
    inputs: dict[str, Tensor] = {}
    for path in training_workplace.fitted.values:
        module = model.base_model.model.get_submodule(path)
        module.register_forward_pre_hook(lambda _, args, path=path: inputs.update({path: args[0].detach()}))
    found = labelled(model)[0]
    losses, right = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for path, (rows, bias) in training_workplace.fitted.values.items():
        logits = defined_logits(inputs[path].double(), rows.double(), bias.double(), "normalised")
        for row in (0, 1):
            own = [place for place in range(4) if LABELS[row, place] >= 0]
            of_row = functional.cross_entropy(logits[row, own], LABELS[row, own])
            losses[row] += of_row / len(training_workplace.fitted.values)
            hits = (logits[row, own].argmax(dim=-1) == LABELS[row, own]).double().mean()
            right[row] += hits / len(training_workplace.fitted.values)
    assert relative_error(found.loss.detach(), losses) <= 1e-5
    assert torch.allclose(found.right.double(), right, atol=1e-6)


def test_loss_of_the_language_model_is_the_mean_over_the_tokens_of_the_answer() -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0], [1, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    # A text, an answer behind two tokens, and a prompt whose answer was cut off.
    found = language_losses(logits, ids, mask, torch.tensor([0, 2, 2]))
    chances = logits.log_softmax(dim=-1)
    text = -(chances[0, 0, 2] + chances[0, 1, 3] + chances[0, 2, 4]) / 3
    assert torch.allclose(found, torch.stack([text, -chances[1, 1, 3], torch.tensor(0.0)]))


@pytest.mark.parametrize("top_k", [1, 2])
def test_one_slot_gets_its_gradient_from_the_cross_entropy_alone(
    training_workplace: Workplace, top_k: int
) -> None:
    model = model_of(training_workplace)
    with route_as(model, top_k=top_k):
        found, logits = labelled(model)
    gates = list(trained_parameters(model).values())
    language = language_losses(logits, IDS, torch.ones_like(IDS), torch.zeros(2)).mean()
    # With one slot not even the base's own graph is kept.
    assert language.requires_grad == (top_k == 2)
    if language.requires_grad:
        of_language = torch.autograd.grad(language, gates, retain_graph=True, allow_unused=True)
        assert any(each is not None and bool(each.any()) for each in of_language)
    of_gates = torch.autograd.grad(found.loss.mean(), gates)
    assert all(bool(each.any()) for each in of_gates)


def test_gates_alone_are_trained(training_workplace: Workplace) -> None:
    model = model_of(training_workplace)
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert len(trained) == len(trained_parameters(model)) == 2 * len(training_workplace.fitted.values)
