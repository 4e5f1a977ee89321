"""The same module under a plain Trainer, in the lean loop, and on its own."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fedprune.local.module import LocalModule, SquaredError
from fedprune.local.recipe import Recipe
from fedprune.local.train import fit
from fedprune.types import Subnet


@pytest.fixture(scope="module")
def digits() -> TensorDataset:
    data = load_digits()
    return TensorDataset(torch.tensor(data.data[:256] / 16, dtype=torch.float32), torch.tensor(data.target[:256]))


def local_module() -> LocalModule:
    torch.manual_seed(0)
    return LocalModule(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), partial(torch.optim.SGD, lr=0.3, momentum=0.5)
    )


def trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", devices=1, **quiet, **options)


@pytest.mark.filterwarnings("ignore")
def test_it_trains_under_a_plain_trainer_and_takes_the_very_steps_of_the_lean_loop(digits):
    batches = DataLoader(digits, batch_size=32)
    module = local_module()
    sent = {name: value.clone() for name, value in module.net.state_dict().items()}
    before = float(F.cross_entropy(module(digits.tensors[0]), digits.tensors[1]).detach())

    training = trainer(max_epochs=3)
    training.fit(module, batches, batches)

    after = float(F.cross_entropy(module(digits.tensors[0]), digits.tensors[1]).detach())
    assert after < before / 2
    lean = fit(local_module(), Subnet(sent, {}), [batch for _ in range(3) for batch in batches], Recipe())
    torch.testing.assert_close(dict(module.net.state_dict()), lean.params)

    hits = (module(digits.tensors[0]).argmax(1) == digits.tensors[1]).float().mean()
    logged = training.callback_metrics
    assert float(logged["val/loss"]) == pytest.approx(after, rel=1e-5)
    assert float(logged["val/accuracy"]) == pytest.approx(float(hits))
    assert "train/loss" in logged


@pytest.mark.filterwarnings("error")
def test_outside_a_trainer_logging_is_harmless_and_silent(digits):
    module = local_module()
    x, y = digits[:16]
    assert module.log("anything", torch.tensor(1.0), on_epoch=True) is None
    loss = module.training_step((x, y), 0)
    assert loss.requires_grad
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(module.net(x), y).detach()))
    assert module.validation_step((x, y), 0) is None


def test_outcomes_are_per_example_and_by_hand():
    # Logits (2, 0) for both; labels 0 and 1: losses log(1 + e^-2) = 0.126928 and log(1 + e^2) = 2.126928.
    net = nn.Linear(1, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0], [0.0]]))
        net.bias.zero_()
    loss, correct = LocalModule(net, partial(torch.optim.SGD, lr=0.1)).outcome((torch.ones(2, 1), torch.tensor([0, 1])))
    assert loss.tolist() == pytest.approx([0.126928, 2.126928], abs=1e-6)
    assert correct.tolist() == [True, False]


def test_every_job_gets_an_optimizer_of_its_own_for_all_parameters():
    module = local_module()
    first, second = module.configure_optimizers(), module.configure_optimizers()
    assert first is not second
    assert [p for group in first.param_groups for p in group["params"]] == list(module.net.parameters())


class Logits(nn.Module):
    """A network that gives these."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits[inputs]


@pytest.mark.parametrize("kind", [LocalModule, SquaredError])
def test_an_example_of_a_sequence_counts_by_the_mean_over_its_places(kind):
    # Two sequences of two places, two classes, p = (3/4, 1/4) everywhere. Labels 0, 0: both right, loss log 4/3. Labels 0, 1:
    # half right, loss (log 4/3 + log 4) / 2. Squared errors of outputs log 3 and 0 to (1, -1) or (-1, 1).
    three = torch.tensor(3.0).log()
    module = kind(Logits(torch.stack([three, torch.zeros(())])[None, :, None].expand(1, 2, 2).clone()), None)
    batch = (torch.zeros(2, dtype=torch.int64), torch.tensor([[0, 0], [0, 1]]))
    right, wrong = (
        (torch.tensor(4 / 3).log(), torch.tensor(4.0).log())
        if kind is LocalModule
        else ((three - 1) ** 2 + 1, (three + 1) ** 2 + 1)
    )
    losses, correct = module.outcome(batch)
    torch.testing.assert_close(losses, torch.stack([right, (right + wrong) / 2]))
    assert correct.tolist() == [1.0, 0.5]
    torch.testing.assert_close(module.training_step(batch, 0), losses.mean())
