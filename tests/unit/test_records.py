"""Records: whole or absent, small, and stale as soon as what made them changes."""

from __future__ import annotations

import json
import re
import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ser_kd_utils import records
from ser_kd_utils.files import digest
from ser_kd_utils.records import Run, content_sha256, predictions, read_runs, run_id, write_run

LABELS = ("angry", "sad")
SETTINGS = {"noise": {"train_snr_db": [0.0, 20.0]}}
PROTOCOL = {
    "protocol": "speaker-groups",
    "mark": "",
    "optimistic": False,
    "noise": "generated: pink, white",
    "speech level": "active",
}
P1 = PROTOCOL | {"mark": "P1", "optimistic": True, "protocol": "random"}
P2 = PROTOCOL | {"mark": "P2"}


def table(checkpoints=("best", "last"), angry=1.0) -> pd.DataFrame:
    rows = [
        (utterance, 1, 0, "clean", np.nan, checkpoint, "sad", np.array([angry, sad], dtype=np.float16))
        for checkpoint in checkpoints
        for utterance, sad in (("u1", 0.5), ("u2", 1.5))
    ]
    columns = ["utterance", "fold", "seed", "condition", "snr_db", "checkpoint", "label", "logits"]
    return pd.DataFrame(rows, columns=columns)


def info(**changes) -> dict:
    history = [{"epoch": 1, "loss": 1.5, "dev_UA": 0.5}, {"epoch": 2, "loss": 1.0, "dev_UA": 0.6}]
    about = {"method": "mlkd", "variant": "v", "labels": LABELS, "fingerprint": "abc", "history": history}
    about |= {"corpus": "demo", "protocol": PROTOCOL, "audio_fingerprint": "cc", "noise_fingerprint": "dd"}
    return about | {"settings": SETTINGS} | changes


def published(folder: Path, *runs: Run) -> Path:
    """The folder with these runs in its two files."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [run.stored.assign(run=run.id) for run in runs]
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
    lines = [json.dumps({"run": run.id, **run.info}) for run in runs]
    (folder / "runs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "demo-tiny" / "runs" / run_id("mlkd", "v", 1, 0)


def test_a_record_comes_back_as_written(folder):
    assert folder.name == "mlkd__v__fold-1__seed-0"
    run = write_run(folder, table(), info())
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.parquet", "run.json"]
    read = run.predictions
    assert read["prediction"].tolist() == ["angry", "sad"] * 2
    assert set(read["method"]) == {"mlkd"} and set(read["variant"]) == {"v"}
    assert read["logits"][0].dtype == np.float16 and read["logits"][1].tolist() == [1.0, 1.5]
    assert read["snr_db"].isna().all() and read["label"].tolist() == ["sad"] * 4
    assert run.id == folder.name
    assert run.history.loc[2, "dev_UA"] == 0.6 and list(run.history.index) == [1, 2]
    assert run.info["labels"] == list(LABELS)


def test_complete_means_here_with_weights_and_made_with_this_fingerprint(folder):
    assert not Run(folder).complete("abc")
    write_run(folder, table(), info())
    assert not Run(folder).complete("abc")  # as in a clone: weights are not committed
    (folder / "model").mkdir()
    assert Run(folder).complete("abc") and not Run(folder).complete("abd")
    (folder / "run.json").unlink()
    assert not Run(folder).complete("abc")


def test_a_new_record_replaces_the_old(folder):
    folder.mkdir(parents=True)
    (folder / "litter").write_text("from an interrupted run")
    write_run(folder, table(), info(), lambda model: model.mkdir())
    write_run(folder, table(angry=9.0), info(fingerprint="new"), lambda model: model.mkdir())
    assert sorted(path.name for path in folder.iterdir()) == ["model", "predictions.parquet", "run.json"]
    assert Run(folder).complete("new") and Run(folder).predictions["logits"][0][0] == 9.0


def test_weights_are_part_of_the_record_and_replace_the_old(folder):
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "old").write_text("w")

    def save(model):
        model.mkdir()
        (model / "weights").write_text("w")

    run = write_run(folder, table(), info(), save)
    assert run.complete("abc") and list(run.info["files"]) == ["model/weights"]
    assert [path.name for path in (folder / "model").iterdir()] == ["weights"]
    (folder / "model" / "weights").write_text("v")
    assert not Run(folder).complete("abc")


@pytest.mark.parametrize("step", ["predictions", "info", "weights"])
def test_a_failed_write_leaves_the_old_record_whole(folder, step, monkeypatch):
    def full(*_, **__):
        raise OSError("disk full")

    def save(model):
        model.mkdir()
        (model / "weights").write_text("w")

    write_run(folder, table(), info(), save)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if step == "predictions":
        monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    new = info(broken=object()) if step == "info" else info(fingerprint="new")
    with pytest.raises(TypeError if step == "info" else OSError):
        write_run(folder, table(angry=9.0), new, full if step == "weights" else None)
    assert len(before) == 3 and {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [run.folder for run in read_runs(folder.parents[1])] == [folder]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_read_runs_takes_complete_records_by_name(tmp_path):
    runs = tmp_path / "demo-tiny" / "runs"
    for variant in ("b", "a"):
        write_run(runs / run_id("mlkd", variant, 1, 0), table(), info(variant=variant))
    (runs / "mlkd__c__fold-1__seed-0" / "checkpoints").mkdir(parents=True)
    write_run(runs / ".writing-x", table(), info(variant="killed while it was written"))
    assert [run.info["variant"] for run in read_runs(tmp_path / "demo-tiny")] == ["a", "b"]


def test_published_runs_are_read_as_those_in_folders(tmp_path):
    """Whatever order the file has, with an id's rows together and in their order."""
    runs = [
        write_run(tmp_path / "x" / "runs" / run_id("mlkd", variant, 1, 0), table(angry=angry), info(variant=variant))
        for variant, angry in (("b", 1.0), ("a", 2.0))
    ]
    read = read_runs(published(tmp_path / "demo-tiny", *runs))
    assert [run.id for run in read] == [runs[1].id, runs[0].id] and read == [Run(run.folder) for run in read]
    for run, local in zip(read, reversed(runs), strict=True):
        assert run.info == local.info
        pd.testing.assert_frame_equal(run.predictions, local.predictions)
        pd.testing.assert_frame_equal(run.history, local.history)
        assert not run.folder.exists() and not run.complete("abc")  # without weights


def test_runs_of_ones_own_come_before_published_ones(tmp_path):
    old = write_run(tmp_path / "x" / "runs" / run_id("mlkd", "old", 1, 0), table(), info())
    own = write_run(tmp_path / "demo-tiny" / "runs" / run_id("mlkd", "own", 1, 0), table(), info())
    assert read_runs(published(tmp_path / "demo-tiny", old)) == [own]


@pytest.mark.parametrize("form", ["local", "published"])
@pytest.mark.parametrize("damage", ["a logit", "a class", "a row", "half a file"])
def test_predictions_that_are_not_their_records_are_refused_by_name(folder, form, damage):
    run = write_run(folder, table(), info())
    path = folder / "predictions.parquet"
    if form == "published":
        published(folder.parents[1], run)
        path = folder.parents[1] / "predictions.parquet"
        (folder / "run.json").unlink()
    rows = pd.read_parquet(path)
    if damage == "a logit":
        rows.at[3, "logits"] = np.nextafter(rows.at[3, "logits"], np.float16(9))
    rows.loc[0, "label"] = "angry" if damage == "a class" else rows.loc[0, "label"]
    (rows[1:] if damage == "a row" else rows).to_parquet(path, index=False)
    if damage == "half a file":
        path.write_bytes(path.read_bytes()[:-500])
    (run,) = read_runs(folder.parents[1])
    with pytest.raises(ValueError, match=rf"predictions.parquet of {folder.name} is damaged"):
        _ = run.predictions
    (folder / "model").mkdir(exist_ok=True)
    assert not run.complete("abc")


def test_the_checksum_is_of_what_is_predicted_not_of_its_file():
    rows = table()
    known = "e5e3483ee723dbdd1b5876414cff62f524258b2efd3e092773ed67dd02a0093c"
    assert content_sha256(rows) == known  # stands in published records: never to change
    assert content_sha256(rows.assign(run="x", snr_db=rows["snr_db"].astype(object))[rows.columns[::-1]]) == known
    changes = [{"fold": 2}, {"snr_db": 0.0}, {"checkpoint": "last"}, {"utterance": ["u1", "u2", "u2", "u1"]}]
    assert len({content_sha256(rows.assign(**change)) for change in changes} | {known}) == 5


def test_a_damaged_record_is_named(folder):
    write_run(folder, table(), info())
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match=f"record of {folder.name} is damaged"):
        read_runs(folder.parents[1])


def test_no_records_is_one_error_that_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No records in demo-tiny.*ser-kd reproduce"):
        read_runs(tmp_path / "demo-tiny")


@pytest.mark.parametrize(
    ("key", "other"),
    [("protocol", "random"), ("noise", "generated: babble, white"), ("speech level", "overall")],
)
def test_records_that_cannot_share_a_table_are_one_error(tmp_path, key, other):
    for variant, value in (("a", PROTOCOL[key]), ("b", other), ("c", other)):
        name = run_id("mlkd", variant, 1, 0)
        write_run(tmp_path / "demo-tiny" / "runs" / name, table(), info(protocol=PROTOCOL | {key: value}))
    both = "; ".join(sorted((PROTOCOL[key], other)))
    with pytest.raises(ValueError, match=re.escape(f"records in demo-tiny differ in {key} ({both})")):
        read_runs(tmp_path / "demo-tiny")


def test_folders_of_noise_are_told_apart_by_their_samples(tmp_path):
    protocol = PROTOCOL | {"noise": "folder: babble"}
    for fold, samples in ((1, "aa"), (2, "bb")):
        about = info(protocol=protocol, noise_fingerprint=samples)
        write_run(tmp_path / "demo-tiny" / "runs" / run_id("mlkd", "v", fold, 0), table(), about)
    with pytest.raises(ValueError, match="differ in noise .*samples aa; .*samples bb"):
        read_runs(tmp_path / "demo-tiny")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"audio_fingerprint": "dd"}, "corpus content"),
        ({"corpus": "other"}, "corpus"),
        ({"labels": ["angry", "happy"]}, "labels"),
        ({"settings": SETTINGS | {"MLKD": {"epochs": 2}}}, "settings of v"),
    ],
)
def test_other_sound_or_settings_cannot_stand_in_one_table(tmp_path, change, what):
    for fold, about in ((1, info()), (2, info(**change))):
        write_run(tmp_path / "demo-tiny" / "runs" / run_id("mlkd", "v", fold, 0), table(), about)
    with pytest.raises(ValueError, match=f"differ in .*{what}"):
        read_runs(tmp_path / "demo-tiny")


def test_records_may_differ_in_what_a_fold_changes(tmp_path):
    for fold in (1, 2):
        about = info(protocol=PROTOCOL | {"fold": fold, "speakers": {"test": [f"s{fold}"]}})
        write_run(tmp_path / "demo-tiny" / "runs" / run_id("mlkd", "v", fold, 0), table(), about)
    assert len(read_runs(tmp_path / "demo-tiny")) == 2


def test_a_protocol_of_its_own_stands_beside_the_others(tmp_path):
    runs = tmp_path / "demo-tiny" / "runs"
    write_run(runs / run_id("mlkd", "e", 1, 0), table(), info())
    write_run(runs / run_id("dkdfmh", "v", 1, 0), table(), info(protocol=P2))
    optimistic = write_run(runs / run_id("dkdfmh", "v", 1, 0, "P1"), table(), info(protocol=P1))
    assert optimistic.id == "dkdfmh__v+P1__fold-1__seed-0" and len(read_runs(tmp_path / "demo-tiny")) == 3


def test_an_optimistic_protocol_may_hear_a_part_of_the_corpus_and_no_other_may(tmp_path):
    runs, part = tmp_path / "demo-tiny" / "runs", {"audio_fingerprint": "improvised", "labels": ["angry", "excited"]}
    write_run(runs / run_id("mlkd", "e", 1, 0), table(), info())
    write_run(runs / run_id("dkdfmh", "v", 1, 0, "P1"), table(), info(protocol=P1, **part))
    assert len(read_runs(tmp_path / "demo-tiny")) == 2
    for protocol, own in ((P1, " under P1"), (P2, "")):
        for key, what in (("audio_fingerprint", "corpus content"), ("labels", "labels")):
            other = write_run(runs / run_id("dkdfmh", "v", 2, 0), table(), info(protocol=protocol, **{key: part[key]}))
            if own:  # what P1's other record does not hear
                write_run(runs / other.id, table(), info(protocol=P1, **part | {key: info()[key]}))
            with pytest.raises(ValueError, match=rf"differ in {what}{own} \("):
                read_runs(tmp_path / "demo-tiny")


@pytest.mark.parametrize(
    ("protocol", "settings", "what"),
    [
        (P1 | {"protocol": "dialogues"}, SETTINGS, "protocol under P1 (dialogues; random)"),
        (P1, SETTINGS | {"dkdfmh": {"epochs": 2}}, "the settings of v under P1"),
        (P1 | {"noise": "generated: babble"}, SETTINGS, "noise (generated: babble; generated: pink, white)"),
        (P2 | {"protocol": "leave-one-out"}, SETTINGS, "protocol (leave-one-out; speaker-groups)"),
    ],
)
def test_records_of_each_protocol_must_stand_in_one_table(tmp_path, protocol, settings, what):
    runs = tmp_path / "demo-tiny" / "runs"
    write_run(runs / run_id("mlkd", "e", 1, 0), table(), info(variant="e"))
    write_run(runs / run_id("dkdfmh", "v", 1, 0, "P1"), table(), info(protocol=P1))
    write_run(runs / run_id("dkdfmh", "v", 2, 0, "x"), table(), info(protocol=protocol, settings=settings))
    with pytest.raises(ValueError, match=re.escape(f"differ in {what}")):
        read_runs(tmp_path / "demo-tiny")


def test_predictions_joins_runs_and_takes_one_checkpoint(tmp_path):
    runs = [write_run(tmp_path / name, table(), info(variant=name)) for name in ("x", "y")]
    best = predictions(runs)
    assert list(best.index) == [0, 1, 2, 3] and set(best["checkpoint"]) == {"best"}
    assert best["variant"].tolist() == ["x", "x", "y", "y"]
    assert set(predictions(runs, "last")["checkpoint"]) == {"last"}


@pytest.mark.parametrize(
    ("trained", "wanted"),
    [
        ([0.0, 20.0], [True, True, True, True, False, False]),
        ([-5, 5], [True, False, False, True, True, False]),
    ],
)
def test_the_snrs_that_were_trained_on_and_clean_speech_are_in_range(folder, trained, wanted):
    snrs = [np.nan, 20.0, 10.0, 0.0, -5.0, 25.0]
    conditions = ["clean", *["babble"] * 5]
    rows = pd.concat([table(("best",))[:1]] * 6, ignore_index=True).assign(condition=conditions, snr_db=snrs)
    run = write_run(folder, rows, info(settings={"noise": {"train_snr_db": trained}}))
    assert run.predictions["in_range"].tolist() == wanted and predictions([run])["in_range"].dtype == bool


def test_a_record_is_small(folder):
    rng = np.random.default_rng(0)
    rows = pd.concat([table(("best",))] * 5000, ignore_index=True)
    rows["logits"] = list(rng.normal(size=(len(rows), 4)).astype(np.float16))
    write_run(folder, rows, info())
    assert (folder / "predictions.parquet").stat().st_size < 12 * len(rows)  # 8 bytes of logits and little else


def test_results_go_where_the_argument_or_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SER_KD_RESULTS", str(tmp_path / "env"))

    def root(folder: str = "") -> Path:
        return records.results_folder(folder, "demo", "tiny").parent

    assert root(str(tmp_path / "asked")) == tmp_path / "asked"
    assert root() == tmp_path / "env"
    monkeypatch.delenv("SER_KD_RESULTS")
    assert root() == records.PACKAGE.parent / "results" / "local"
    monkeypatch.setattr(records, "IN_CLONE", False)
    assert root() == Path("results")


def test_a_commands_own_runs_and_evidence_have_one_name(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "EVIDENCE", tmp_path / "evidence")
    about = {
        "corpus": "manifest",
        "name": "mine",
        "profile": "tiny",
        "overrides": "",
        "results": str(tmp_path / "here"),
    }
    assert records.folders(Namespace(**about)) == (tmp_path / "here" / "mine-tiny", tmp_path / "evidence" / "mine-tiny")
    about |= {"corpus": "demo", "name": ""}
    own, committed = records.folders(Namespace(**about))
    assert own.name == committed.name == "demo-tiny" and records.evidence(own) == []
    published(committed, write_run(own / "runs" / run_id("mlkd", "v", 1, 0), table(), info()))
    assert [run.id for run in records.evidence(own)] == ["mlkd__v__fold-1__seed-0"]


def test_a_folders_name_says_corpus_profile_and_changed_settings():
    def name(*overrides: str) -> str:
        return records.results_folder("", "demo", "tiny", *overrides).name

    assert name() == "demo-tiny"
    assert name("mlkd.epochs=2, mlkd.lr=1") == "demo-tiny+mlkd.epochs=2,_mlkd.lr=1"
    assert len(name("x" * 300)) < 150 and name("x" * 300) != name("x" * 299 + "y")


def test_the_environment_says_versions_commit_and_hardware():
    found = records.environment()
    assert json.loads(json.dumps(found)) == found
    assert set(records.VERSIONED) == found["versions"].keys()
    assert found["commit"] is None or len(found["commit"].split()[0]) == 40
    assert found["hardware"]["cpu_threads"] >= 1
    assert found["hardware"]["processor"] and found["hardware"]["instruction_set"]


def test_the_commit_is_marked_when_the_package_differs(tmp_path, monkeypatch):
    package = tmp_path / "clone" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("1")
    monkeypatch.setattr(records, "PACKAGE", package)
    assert records._commit() is None

    def git(*arguments) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x"]
        return subprocess.run(["git", *who, *arguments], cwd=package, check=True, capture_output=True, text=True).stdout

    git("init"), git("add", "."), git("commit", "-m", "x")
    commit = git("rev-parse", "HEAD").strip()
    (package.parent / "notes").write_text("beside it")
    assert records._commit() == commit
    (package / "code.py").write_text("2")
    assert records._commit() == f"{commit} with local changes"


def test_a_digest_ignores_order_and_notices_every_value():
    parts = {"settings": {"lr": 1e-3, "teacher_layers": (2, 4)}, "seed": 0}
    again = {"seed": 0, "settings": {"teacher_layers": [2, 4], "lr": 1e-3}}
    assert digest(parts) == digest(again)
    changes = [
        parts | {"seed": 1},
        parts | {"more": None},
        parts | {"settings": {"lr": 1e-3, "teacher_layers": (4, 2)}},
        parts | {"settings": {"lr": 1.0001e-3, "teacher_layers": (2, 4)}},
    ]
    assert len({digest(each) for each in [parts, *changes]}) == 5
