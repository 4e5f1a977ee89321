"""Tables of a user's own."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedprune.data.own.table import table
from fedprune.errors import DataError

SIX = """id,age,town,member,who,split,bought
0,20,Ulm,true,ann,train,no
1,40,Bonn,false,bob,train,yes
2,60,Ulm,true,ann,train,no
3,80,Bonn,false,bob,train,yes
4,50,Ulm,true,ann,test,no
5,70,Kiel,false,bob,test,yes
"""


@pytest.fixture
def six(tmp_path: Path) -> Path:
    path = tmp_path / "six.csv"
    path.write_text(SIX)
    return path


def test_numbers_are_standardised_by_the_training_rows_and_words_become_categories(six):
    data = table(str(six), "bought", users="who", split="split", ignore=["id"])
    assert data.classes == 2 and data.y.tolist() == [0, 1, 0, 1] and data.test_y.tolist() == [0, 1]  # no, yes
    assert data.users == ("ann", "bob") and data.groups.tolist() == [0, 1, 0, 1]
    # age, town=Bonn, town=Ulm, member; of the training rows age has the mean (20 + 40 + 60 + 80) / 4 = 50 and the variance
    # (900 + 100 + 100 + 900) / 4 = 500. Kiel is no town of a training row, so both towns are 0.
    assert data.mean == (50.0, 0.0, 0.0, 0.0) and data.std == pytest.approx((500**0.5, 1, 1, 1))
    assert data.normalise(data.test_x).tolist() == [
        pytest.approx([0, 0, 1, 1]),
        pytest.approx([20 / 500**0.5, 0, 0, 0]),
    ]
    assert data.shape == (4,) and data.x.dtype == torch.float32


def test_a_regression_is_found_out_and_is_in_standard_deviations(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "t.csv"
    path.write_text("size,price,part\n1,1.5,train\n2,2.5,train\n3,3.5,test\n")
    data = table(str(path), "price", split="part")
    # Training targets 1.5 and 2.5: mean 2, standard deviation 0.5.
    assert data.classes == 1 and data.y.tolist() == [-1.0, 1.0] and data.test_y.tolist() == [3.0]
    assert data.y.dtype == torch.float32 and "price is a real number (if it is not: data.task=classes)" in caplog.text
    assert "in units of 0.5 (its standard deviation) from 2 (its mean)" in caplog.text


def test_whole_numbers_are_classes_if_few_and_can_be_told_otherwise(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x;y\n" + "".join(f"{k};{10 * (k % 3)}\n" for k in range(30)))  # semicolons are found out, too
    data = table(str(path), "y")
    assert data.classes == 3 and {*data.y.tolist()} == {0, 1, 2} and data.class_names == ("0", "10", "20")
    assert data.y.bincount().tolist() == [8, 8, 8] and data.test_y.bincount().tolist() == [2, 2, 2]
    again = table(str(path), "y")
    assert torch.equal(data.x, again.x)
    assert table(str(path), "y", task="regression").classes == 1
    assert table(str(path), "y", task="regression").class_names == ()
    assert table(str(path), "x").classes == 1  # 30 different values


def test_a_file_of_test_rows(six, tmp_path):
    more = tmp_path / "more.csv"
    more.write_text("bought,age\nyes,30\n")
    rows = tmp_path / "rows.csv"
    rows.write_text("age,bought\n10,yes\n20,no\n")
    data = table(str(rows), "bought", test_path=str(more))
    assert (len(data.y), data.test_x.tolist(), data.test_y.tolist()) == (2, [[30.0]], [1])
    with pytest.raises(DataError, match=r"more.csv lacks columns of .*six.csv: id, town, member, who, split"):
        table(str(six), "bought", test_path=str(more))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "bougt"}, "data.target=bougt: the table has no such column: type data.target=bought"),
        ({"target": "Bought"}, "type data.target=bought"),
        ({"target": "zzz"}, "its columns are id, age, town, member, who and 2 more"),
        ({"users": "whom"}, "data.users=whom: .* type data.users=who"),
        ({"ignore": ["ids"]}, "type data.ignore=id"),
        ({"ignore": "id"}, r"type data.ignore=\[id\]"),
        ({"ignore": ["who"], "users": "who"}, "leaves out who, which is data.users"),
        ({"split": "town"}, "its values are to be train and test, and there is bonn, kiel, ulm"),
        ({"task": "classify"}, "type data.task=classes or data.task=regression"),
        ({"task": "regression"}, "the column bought holds no numbers: type data.task=classes"),
        ({"test": 2}, "type data.test=0.2"),
        ({"missing": "fill"}, "type data.missing=stop or data.missing=drop"),
        ({"target": None}, "type data.path=FILE.csv data.target=COLUMN"),
    ],
)
def test_what_does_not_fit_is_said(six, options, says):
    with pytest.raises(DataError, match=says):
        table(**{"path": str(six), "target": "bought", **options})


def test_missing_values_are_named_and_can_be_dropped(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("a,b,y\n1,,0\n2,x,1\n,y,0\n4,x,1\ninf,x,0\n6,x,1\n")
    with pytest.raises(DataError, match=r"missing in 3 of 6 rows, by column: a \(2\), b \(1\): .*data.missing=drop .*\[a,b\]"):
        table(str(path), "y")
    data = table(str(path), "y", missing="drop", test=0.4, task="regression")
    assert len(data.y) + len(data.test_y) == 3
    with pytest.raises(DataError, match="no column is left as an input: shorten data.ignore"):
        table(str(path), "y", ignore=["a", "b"], test=0.5)


def test_a_file_that_is_none_is_said(tmp_path):
    with pytest.raises(DataError, match="there is no file .*nowhere.csv: type data.path=FILE"):
        table(str(tmp_path / "nowhere.csv"), "y")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="empty.csv cannot be read as a table"):
        table(str(tmp_path / "empty.csv"), "y")
    (tmp_path / "head.csv").write_text("a,y\n")
    with pytest.raises(DataError, match="has no rows below its first line"):
        table(str(tmp_path / "head.csv"), "y")


def test_names_are_no_categories(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("name,x,y\n" + "".join(f"n{k},{k},{k % 2}\n" for k in range(80)))
    with pytest.raises(DataError, match=r"column name holds 64 different words, .* data.ignore=\[name\]"):
        table(str(path), "y")
    assert table(str(path), "y", ignore=["name"]).shape == (1,)


def test_parquet_needs_a_package_that_is_named(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match="type `pip install pyarrow` .*, or save it as CSV"):
        table(str(path), "y")


def test_parquet_is_read(six, tmp_path):
    pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    pd = pytest.importorskip("pandas")
    path = tmp_path / "six.parquet"
    pd.read_csv(six).to_parquet(path)
    columns = {"target": "bought", "users": "who", "split": "split", "ignore": ["id"]}
    assert torch.equal(table(str(path), **columns).x, table(str(six), **columns).x)


def test_a_run_on_a_table(tmp_path, perform):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 3))
    lines = [f"{a:.4f},{b:.4f},{c:.4f},u{k % 6},{'up' if a + b > 0 else 'down'}" for k, (a, b, c) in enumerate(x)]
    (tmp_path / "t.csv").write_text("a,b,c,user,way\n" + "\n".join(lines) + "\n")
    result = perform(
        *(tmp_path, "data=table", "data.path=t.csv", "data.target=way", "data.users=user", "partition=natural", "model=mlp"),
        *("federated.clients=6", "federated.cohort=6", "rounds=4", "eval_every=4", "local.optimizer.lr=0.3", "density=0.5"),
        *("how_often=one_shot", "logger=none", "executor=serial", "local.batch_size=8"),
    )
    assert result.rc == 0, result.text
    rows = [json.loads(line) for line in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines()]
    assert rows[-1]["test/accuracy"] > 0.85
