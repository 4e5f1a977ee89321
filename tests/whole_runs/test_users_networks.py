"""Networks that are not ours: served, or refused when the run is built, by layer, with what to type instead."""

from __future__ import annotations

import re

import pytest
import torch

from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.evidence.gates import is_companion
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.ticket.torch_prune import from_torch_prune
from helpers.user_networks import Named

MODEL, MODULE = (f"{key}._target_=helpers.user_networks." for key in ("model", "local.module"))
NAMED = f"{MODEL}Named"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (["in_one_memory"], "back.weight and there.weight lie in the same memory .* tie parameters by assigning one"),
        (["buffer_of_weight"], "fc.weight and row lie in the same memory .* register a clone"),
        (["quantised"], r"2 \(Linear\) keeps (scale|_packed_params) besides parameters and buffers"),
        (["no_network"], r"gives \(1, 8, 8, 10\) and no torch.nn.Module"),
        (["Uncalled"], r"extra \(LazyLinear\) get no size from one pass over zeros .they are not called.: give them"),
        (["no_parameters"], "has no parameters, so there is nothing to train"),
        (["Named", "+model._partial_=true"], "gives a function and no torch.nn.Module.*leave out model._partial_"),
        (["other_arguments"], "missing a required argument: 'size'.*called with those of shape=.* write a function of these"),
        (["no_layer"], "no conv or linear or recurrent or attention layer to prune: choose another model"),
        (["embedded"], r"layer to prune: choose another model, or what=weights_global with what.layers=\[embedding\]"),
        (["Named", "+model.name=a,b"], "'a,b.weight' has ',' in its name: rename it with letters, digits and _"),
        (["Named", "+model.name=größe"], "'größe.weight' has 'ö' in its name"),
        (["Named", "+model.extra=weight_score"], "fc.weight_score has the name of what federated/client=sampled_masks learns"),
        (["normed"], r"layer 1 \(ParametrizedLinear\) computes its weight from .*original0 .* choose what.skip=\[1\]"),
        (
            ["normed", "+model.old=true"],
            r"layer 1 \(Linear\) computes its weight from 1.weight_g and 1.weight_v ",
        ),
        (["normed", "+model.how=spectral_norm"], r"layer 1 .* computes its weight .* choose what.skip=\[1\]"),
        (["normed", "+model.old=true", "+model.how=spectral_norm"], r"layer 1 .* computes its weight from 1.weight_orig"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_served_is_refused_when_the_run_is_built(model, said, tiny):
    with pytest.raises(ConfigError) as caught:
        tiny(f"{MODEL}{model[0]}", *model[1:])
    assert re.search(said, str(caught.value)), caught.value


@pytest.mark.parametrize("words", [["+model.old=true"], [], ["+model.how=spectral_norm"]], ids=" ".join)
def test_the_advice_for_a_weight_that_is_computed_works(words, tiny, play):
    state, _ = play(tiny(f"{MODEL}normed", *words, "what.skip=[1]", "how_often=one_shot", "rounds=1"))[-1]
    assert list(state.server.mask) == ["3.weight"]


def test_movement_is_refused_where_the_network_cannot_be_copied(tiny):
    words = (f"{MODEL}normed", "+model.old=true", "what.skip=[1]", "how_often=one_shot")
    with pytest.raises(Incompatible, match="Sequential cannot be copied .*choose criterion=taylor"):
        tiny(*words, "criterion=movement")
    tiny(*words, "criterion=taylor")


def test_lazy_layers_get_their_sizes_and_the_same_weights_from_the_same_seed(tiny, play, equal):
    """8x8 -> 6x6 with 4 channels: 144 inputs of the last layer."""
    experiment = tiny(f"{MODEL}lazy", "how_often=one_shot", "rounds=1")
    assert experiment.net[4].weight.shape == (10, 144)
    assert equal(dict(experiment.net.state_dict()), tiny(f"{MODEL}lazy").loop(None).start().server.params)
    assert play(experiment)[-1][0].server.mask["4.weight"].shape == (10, 144)


# --- names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b", "a b", "10%2F", "a:b", "x" * 300], ids=["slash", "space", "escape", "colon", "long"])
def test_any_name_that_is_allowed_is_kept_by_a_checkpoint(name, tiny, play, tmp_path, differences):
    words = (NAMED, f"+model.name={name}", "federated=fedavgm", "federated.optimizer_state=kept", "whose=personal")
    experiment = tiny(*words, "how_often=one_shot", "rounds=2")
    (state, metrics), *_ = play(experiment, stop=1)
    save_state(state, tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors")
    assert not differences(state, loaded)
    assert list(loaded.server.params) == [f"{name}.weight", f"{name}.bias"]
    assert f"density/layer/{name}" in metrics
    assert not differences(play(experiment, state=loaded)[-1][0], play(experiment)[-1][0])


@pytest.mark.parametrize("name", ["a/b", "a b", "10%", "a:b"])
def test_a_layer_of_any_name_can_be_named_on_the_command_line(name, compose, tiny):
    """Typed as messages say it: what.skip=[NAME], without quotes."""
    config, _ = compose(f"what.skip=[{name}]")
    assert list(config.what.skip) == [name]
    with pytest.raises(Incompatible, match="leaves nothing to prune"):
        tiny(NAMED, f"+model.name={name}", f"what.skip=[{name}]")


@pytest.mark.parametrize("key", ["a_b", "a:b", "optimizer:0", "control"])
def test_a_client_keeps_its_batchnorm_whatever_its_layers_are_called(key, tiny, play):
    """Its running mean is 0.9 x 0 + 0.1 x the mean of its own examples; another client's is another one."""
    words = (f"{MODEL}Normed", f"+model.key={key}", "federated.batchnorm=local", "rounds=1")
    experiment = tiny(*words, "how_often=never", "federated.cohort=4", "local.steps=1", "local.batch_size=1000")
    state, _ = play(experiment)[-1]
    name = f"layers.{key}.running_mean"
    for client, part in enumerate(experiment.clients.train):
        mean = experiment.dataset.normalise(experiment.dataset.x[part]).mean((0, 2, 3))
        torch.testing.assert_close(state.kept[client].batchnorm[name], 0.1 * mean)
    assert not torch.equal(state.kept[0].batchnorm[name], state.kept[1].batchnorm[name])


def test_a_parameter_of_the_network_itself_has_companions_too():
    assert is_companion("weight_score") and is_companion("fc.weight_log_alpha") and not is_companion("fc.my_weight_score")


def test_a_buffer_that_is_called_a_mask_is_no_half_of_a_pruned_pair():
    causal = torch.full((2, 2), -torch.inf).triu(1)
    subnet = from_torch_prune({"w_orig": torch.ones(2), "w_mask": torch.tensor([1.0, 0.0]), "causal_mask": causal})
    assert list(subnet.mask) == ["w"] and torch.equal(subnet.params["causal_mask"], causal)
    assert list(from_torch_prune({"key_mask": torch.ones(2, dtype=torch.bool)}).params) == ["key_mask"]


def test_what_is_named_is_what_torch_allows():
    with pytest.raises(KeyError):
        Named((1, 8, 8), 10, name="a.b")
    with pytest.raises(KeyError):
        Named((1, 8, 8), 10, name="")


# --- outputs that are no tensor --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "grasp", "movement"])
def test_a_network_that_puts_out_a_dict_trains_as_its_logits_do(criterion, tiny, play):
    """Right: the same network with nothing but its logits; weights, operations, bytes and paths."""
    method = ("how_often=one_shot", "when=before_training", f"criterion={criterion}", "local.compact=never", "rounds=2")
    dicts = play(tiny(f"{MODEL}Telling", f"{MODULE}OfLogits", *method))
    plain = play(tiny(f"{MODEL}OnePath", *method))
    for (one, metrics), (two, expected) in zip(dicts, plain, strict=True):
        assert all(torch.allclose(one.server.params[name], tensor, atol=1e-5) for name, tensor in two.server.params.items())
        assert metrics["flops/train"] == expected["flops/train"] > 0
        assert metrics["wire/up_bytes"] == expected["wire/up_bytes"]
        assert metrics.get("test/accuracy") == expected.get("test/accuracy")


def test_operations_that_cannot_be_counted_are_absent_and_said_once(tiny, play, caplog):
    experiment = tiny(f"{MODEL}Telling", f"{MODULE}OfMany", "rounds=1")
    (message,) = [message for message in caplog.messages if "flops/train" in message]
    assert "OfMany.training_step cannot be counted on two examples (ValueError: three examples at least)" in message
    assert "flops/train" not in play(experiment)[-1][1]
