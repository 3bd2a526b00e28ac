"""The model card of an exported network, `card.md` filled from the network's record: no number is typed by hand."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from ser_kd_utils import metrics, records
from ser_kd_utils.report.write import card as protocol_of


def card(run: records.Run, format: str, module: str) -> ModelCard:
    """Of a run's network, exported as `format` (of `deploy.export.FORMATS`).

    module: of the network's class; unless it is transformers' own, it must be imported to read the network.
    """
    parts = _parts(records.predictions([run]), run.info["train_noise"])
    scores = {
        name: {score: metrics.interval(part, score) for score in ("UA", "WA", "macro_f1")} for name, part in parts
    }
    cells = pd.DataFrame(scores).T.map(lambda ends: "{:.1f} ({:.1f} to {:.1f})".format(*(100 * end for end in ends)))
    library = "transformers" if format == "hub" else "onnx"
    about = ModelCardData(library_name=library, pipeline_tag="audio-classification", tags=["speech-emotion"])
    told = {"module": module, "format": format, "card": protocol_of([run]), "table": cells.to_markdown()}
    return ModelCard.from_template(about, str(Path(__file__).with_name("card.md")), **run.info, **told)


def _parts(table: pd.DataFrame, heard: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Clean speech, all noise, each type and each SNR of predictions, with their names."""
    noisy = table[table["condition"] != "clean"]
    yield from (("clean", table.drop(noisy.index)), ("all noise", noisy))
    for kind, part in noisy.groupby("condition"):
        yield f"{kind}{'' if kind in heard else ' (not heard in training)'}", part
    for snr_db, part in sorted(noisy.groupby("snr_db"), reverse=True):
        yield f"{snr_db:g} dB", part
