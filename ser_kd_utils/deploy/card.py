"""The model card of an exported network, `card.md` filled from the network's record: no number is typed by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub import ModelCard, ModelCardData
from scipy.special import softmax

from ser_kd_utils import metrics, records
from ser_kd_utils.data.corpora.emodb import GENDERS
from ser_kd_utils.report.write import card as protocol_of

# how the name of an utterance tells a woman's voice (F) from a man's (M); other corpora's names do not
GENDER_OF = {"emodb": lambda u: GENDERS[u[:2]], "iemocap": lambda u: u[-4], "ravdess": lambda u: "FM"[int(u[-2:]) % 2]}


def card(run: records.Run, format: str, module: str, **more: object) -> ModelCard:
    """The card of a run's network, exported as `format` (of `deploy.export.FORMATS`, or several of them).

    module: of the network's class; unless it is transformers' own, it must be imported to read the network. more: what
    `card.md` tells where it is known: `chosen`, `licences`, `not_heard` and `rounded`.
    """
    table = records.predictions([run])
    noisy, base = table[table["condition"] != "clean"], run.info["corpus"].split("-")[0]
    parts = {"clean": table.drop(noisy.index), "all noise": noisy}
    heard = noisy["condition"].isin(run.info["train_noise"]).map({True: "noise heard", False: "noise not heard"})
    gender = noisy["utterance"].map(GENDER_OF.get(base, {})).map({"F": "women, all noise", "M": "men, all noise"})
    for names in (heard + " in training", noisy["condition"], noisy["snr_db"].map("{:g} dB".format), gender):
        parts |= dict(iter(noisy.groupby(names, sort=False)))
    told = run.info | more | {"module": module, "format": format, "card": protocol_of([run]), "parts": parts}
    told |= {"interval": metrics.interval, "calibration_error": calibration_error}
    return ModelCard.from_template(ModelCardData(), str(Path(__file__).with_name("card.md")), **told)


def calibration_error(table: pd.DataFrame, bins: int = 15) -> float:
    """Mean distance of confidence from accuracy over equal bins of confidence (ECE, Guo et al. 2017), in [0, 1].

    table: predictions, with the columns label, prediction and logits.
    """
    confidence = softmax(np.stack(table["logits"]).astype(float), axis=1).max(1)
    surplus = confidence - (table["prediction"] == table["label"])
    return surplus.groupby(np.ceil(confidence * bins)).sum().abs().sum() / len(table)
