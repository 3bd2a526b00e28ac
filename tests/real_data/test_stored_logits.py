"""A teacher's stored logits, as published: WavLM's of EMO-DB, whose classes are nouns, and of IEMOCAP."""

from __future__ import annotations

import pandas as pd
import torch

from ser_kd_utils.corpora import load_corpus
from ser_kd_utils.decoupled import stored_logits


def test_stored_logits_of_emodb_agree_with_its_labels(shared_data):
    corpus = load_corpus("emodb", shared_data / "emodb")
    assert corpus.labels == ("angry", "happy", "neutral", "sad")
    logits = stored_logits(shared_data / "metadata" / "teacher_logits_emodb_wavlm_base_plus.csv", corpus.labels)
    assert len(logits) == 535 and {tuple(row.shape) for row in logits.values()} == {(4,)}
    # anger, happiness, neutral and sadness of the file's first row
    assert logits["03a01Fa"].tolist() == torch.tensor([1.212544, 6.254539, -2.717533, -3.346620]).tolist()
    rows = corpus.manifest
    assert len(rows) == 339 and set(rows.utterance) <= logits.keys()
    right = [corpus.labels[logits[u].argmax()] == label for u, label in zip(rows.utterance, rows.label, strict=True)]
    assert sum(right) > 0.9 * 339
    for label in corpus.labels:  # in each class: no two columns are exchanged
        own = [each for each, named in zip(right, rows.label, strict=True) if named == label]
        assert sum(own) > 0.8 * len(own)


def test_stored_logits_of_iemocap_agree_with_its_labels(shared_data):
    labels = ("angry", "happy", "neutral", "sad")
    metadata = shared_data / "metadata"
    logits = stored_logits(metadata / "teacher_logits_iemocap_wavlm_base_plus.csv", labels)
    ids = pd.read_csv(metadata / "iemocap_4class_ids.csv")
    assert len(logits) == len(ids) == 5531 and set(ids.utterance) == logits.keys()
    said = pd.Series({utterance: labels[row.argmax()] for utterance, row in logits.items()})
    names = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
    truth = ids.set_index("utterance").label_iemocap.map(names)
    right = said[truth.index] == truth
    assert right.groupby(truth).mean().min() > 0.5  # in each class: no two columns are exchanged
