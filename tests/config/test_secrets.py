"""What a key calls a secret is in no file of a run; a reference to an environment variable stays, for a rerun to find it."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from fedprune.config.secrets import is_secret, masked_overrides, resolved


@pytest.mark.parametrize(
    "key", ["api_key", "logger.apikey", "wandb_api_key", "token", "auth_token", "PASSWORD", "db-secret", "private_key"]
)
def test_keys_of_secrets(key):
    assert is_secret(key)


@pytest.mark.parametrize("key", ["seed", "tokens", "key", "tokenizer", "secretary", "keys", "model.token.width", "monkey"])
def test_other_keys(key):
    assert not is_secret(key)


def test_secrets_are_masked_and_references_stay(monkeypatch):
    monkeypatch.setenv("MINE", "hunter2")
    config = OmegaConf.create(
        {
            "logger": {"api_key": "${oc.env:MINE}", "token": "hunter2", "password": None, "secret": ""},
            "seed": 3,
            "copy": "${seed}",
            "more": [{"auth_token": "hunter2"}, {"auth_token": "${oc.env:NONE,hunter2}"}],
        }
    )
    found = resolved(config)
    assert found == {
        "logger": {"api_key": "${oc.env:MINE}", "token": "***", "password": None, "secret": ""},
        "seed": 3,
        "copy": 3,
        "more": [{"auth_token": "***"}, {"auth_token": "***"}],
    }
    assert "hunter2" not in json.dumps(found)
    assert OmegaConf.create(found).logger.api_key == "hunter2"  # a rerun from config.yaml finds it


def test_what_was_typed_is_masked_too():
    typed = ["+logger.api_key=hunter2", "seed=3", "+logger.token='${oc.env:MINE}'", "~x", "+logger.password=null"]
    assert masked_overrides(typed) == ["+logger.api_key=***", *typed[1:]]


def test_no_file_of_a_run_has_a_secret(command, folder, monkeypatch):
    monkeypatch.setenv("MINE", "hunter3")
    words = ("rounds=1", "federated.clients=2", "federated.cohort=2", "local.epochs=null", "local.steps=1", "executor=serial")
    module = (
        "local.module._target_=helpers.secretive.WithToken",
        "+local.module.token=${oc.env:MINE}",
        "+local.module.api_key=hunter2",
    )
    result = command(*words, "partition=iid", "data=digits", "logger=none", *module)
    assert result.rc == 0, result.text
    texts = [path.read_bytes() for path in folder().rglob("*") if path.is_file()]
    assert not any(b"hunter" in text for text in texts)
    assert b"${oc.env:MINE}" in (folder() / "config.yaml").read_bytes()
