"""Records: what is one, how they travel, and what is left out."""

import json

import pytest
from digit_runs import digits

from ckasr import analysis
from ckasr.experiments import records


def test_records_travel_in_one_file(finished, tmp_path):
    record, _ = finished
    seed_1 = digits(seed=1)
    other = {**record, "id": seed_1.id, "settings": seed_1.to_dict()}
    records.save(other, tmp_path / "a")
    records.save(record, tmp_path / "a")
    lines = tmp_path / "all.jsonl"
    assert records.export_lines(tmp_path / "a", lines) == 2
    assert records.merge_lines(lines, tmp_path / "b") == (2, 0)
    assert records.merge_lines(lines, tmp_path / "b") == (0, 2)
    assert records.load_all(tmp_path / "b") == records.load_all(str(tmp_path / "a"))


def test_merging_a_broken_file_writes_nothing(finished, tmp_path):
    lines = tmp_path / "bad.jsonl"
    lines.write_text(json.dumps(finished[0]) + '\n{"schema": 1, "id"\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2 is not JSON"):
        records.merge_lines(lines, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    lines.write_text('{"schema": 99}\n')
    with pytest.raises(ValueError, match="line 1 is not a run record of schema 1"):
        records.merge_lines(lines, tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no file"):
        records.merge_lines(tmp_path / "none.jsonl", tmp_path / "b")


def edited(record: dict, **changes) -> dict:
    return json.loads(json.dumps(record)) | changes


BROKEN = {
    "an id of other settings": lambda r: edited(r, id="0123456789ab"),
    "a path as id": lambda r: edited(r, id="../../0123456789ab"),
    "an id of another type": lambda r: edited(r, id=12),
    "edited settings": lambda r: edited(r, settings=r["settings"] | {"seed": 7}),
    "no settings": lambda r: edited(r, settings={}),
    "settings that are none": lambda r: edited(r, settings=[1]),
    "a setting out of range": lambda r: edited(r, settings=r["settings"] | {"sparsity": 2.0}),
    "a setting of another version": lambda r: edited(r, settings=r["settings"] | {"depth": 3}),
    "another schedule": lambda r: edited(r, settings=r["settings"] | {"schedule": "full"}),
    "no status": lambda r: {k: v for k, v in r.items() if k != "status"},
    "an unknown status": lambda r: edited(r, status="done"),
    "finished without accuracy": lambda r: edited(r, test_accuracy=None),
    "an accuracy in percent": lambda r: edited(r, test_accuracy=93.5),
    "an accuracy as text": lambda r: edited(r, test_accuracy="0.9"),
    "a negative time": lambda r: edited(r, seconds=-1.0),
    "curves of two lengths": lambda r: edited(r, curves=r["curves"] | {"loss": [1.0]}),
    "more weights than there are": lambda r: edited(r, sparsity=r["sparsity"] | {"kept": 10**9}),
    "a matrix that is not square": lambda r: edited(
        r, layer_cka=r["layer_cka"] | {"matrix": [[1.0, 0.5]]}
    ),
    "a histogram without edges": lambda r: edited(r, weights={"histogram": {"counts": [1]}}),
    "another schema": lambda r: edited(r, schema=2),
    "a list": lambda r: [r],
}
TEXTS = {
    "no JSON": b'{"schema": 1',
    "NaN": b'{"schema": NaN}',
    "not UTF-8": '{"schema": "é"}'.encode("latin-1"),
    "too deep": b"[" * 100_000,
    "empty": b"",
}


@pytest.mark.parametrize("kind", [*BROKEN, *TEXTS])
def test_what_is_no_record_is_named_and_the_others_are_read(finished, tmp_path, kind):
    record, _ = finished
    text = TEXTS[kind] if kind in TEXTS else json.dumps(BROKEN[kind](record)).encode()
    good = edited(record, id=digits(seed=1).id, settings=digits(seed=1).to_dict())
    records.save(good, tmp_path)
    path = records.path_of(tmp_path, record["id"])
    path.write_bytes(text)
    with pytest.warns(RuntimeWarning, match=f"^left out: {path} is ") as caught:
        assert records.load_all(tmp_path) == [good]
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with pytest.raises(ValueError, match=f"^{path} is "):
        records.load(tmp_path, record["id"])

    lines = tmp_path / "all.jsonl"
    lines.write_bytes(json.dumps(good).encode() + b"\n" + text + b"\n")
    if text:  # an empty line is none
        with pytest.raises(ValueError, match=r"^nothing is merged: .*all\.jsonl, line 2 is "):
            records.merge_lines(lines, tmp_path / "in" / "there")
        assert not (tmp_path / "in").exists()


def test_a_record_under_another_name_is_left_out(finished, tmp_path):
    path = records.save(finished[0], tmp_path)
    path.rename(path.with_name("copy.json"))
    with pytest.warns(RuntimeWarning, match="rename it to "):
        assert records.load_all(tmp_path) == []


def test_fields_that_analysis_alone_reads_may_be_missing(finished, tmp_path):
    record = finished[0]
    few = {n: record[n] for n in ("schema", "id", "settings", "status", "test_accuracy")}
    records.save(few, tmp_path)
    (found,) = records.load_all(tmp_path)
    with pytest.warns(
        RuntimeWarning, match=f"{record['id']} is left out, because it has no curves"
    ):
        assert analysis.write_all([found], tmp_path / "written") == [
            tmp_path / "written" / "tables" / "runs.md"
        ]


def test_the_first_of_two_lines_is_kept(finished, tmp_path):
    first = finished[0]
    second = edited(first, test_accuracy=0.0123)
    lines = tmp_path / "all.jsonl"
    lines.write_text("".join(json.dumps(r) + "\n" for r in (first, second, first)))
    with pytest.warns(RuntimeWarning, match=r"all\.jsonl, line 2 is another record") as caught:
        assert records.merge_lines(lines, tmp_path) == (1, 2)
    assert len(caught) == 1
    assert records.load(tmp_path, first["id"]) == first
    lines.write_text(json.dumps(second))
    assert records.merge_lines(lines, tmp_path) == (0, 1)
    assert records.load(tmp_path, first["id"]) == first


def test_merging_mends_a_damaged_record(finished, tmp_path):
    record = finished[0]
    path = records.save(record, tmp_path)
    records.export_lines(tmp_path, tmp_path / "all.jsonl")
    path.write_text("")
    with pytest.warns(RuntimeWarning, match="left out"):
        assert records.merge_lines(tmp_path / "all.jsonl", tmp_path) == (1, 0)
    assert records.load(tmp_path, record["id"]) == record
