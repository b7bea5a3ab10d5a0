"""The name of a run's record: a hash of its settings in which no default has a say.

Records are found by this name, so the same settings must always get the same name, and other
settings another one. Defaults change: were a setting left out of the hash because it has the
default of the day, then a new default would get the name of the old one, and a record would be
read as a run that never was. So what is left out of the hash, and what a setting that a record
does not hold stands for, is written down here and is not taken from the defaults.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CKA_SR_FIELDS = ("beta", "term", "variant", "samples", "every", "pairs")
"""The settings in which the two arms of a comparison may differ."""

# Never change a value in these tables: it would rename records. Whoever adds a setting, or adds
# an option to a method that is listed here, also adds the value that stands for what was done
# before, and all old names stay valid. A new method needs no entry, and a changed default none.
SETTINGS: dict[str, Any] = {
    "dataset": "cifar100",
    "model": "resnet20",
    "method": "random",
    "distribution": "erk",
    "sparsity": 0.0,
    "beta": 0.0,
    "term": "cka_sr",
    "variant": "official",
    "samples": 8,
    "every": 5,
    "pairs": "",
    "epochs": 160,
    "batch_size": 128,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "milestones": [0.5, 0.75],
    "decay": 0.1,
    "augment": "default",
    "validation": 5000,
    "precision": "fp32",
    "seed": 0,
    "order_seed": -1,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "snip": {"samples": 10, "train_mode": True},
    "grasp": {"samples": 10, "temperature": 200.0, "train_mode": False, "official": False},
    "synflow": {"steps": 100},
    "lth": {"rate": 0.2, "levels": "", "rewind": 0},
    "dlth": {"schedule": "budgeted", "share": 0.5, "ceiling": 1.0, "learning_rate": 1e-3},
    "gmp": {"begin": 0.0, "end": 0.75, "every": 100},
    "set": {"every": 100, "fraction": 0.3, "end": 0.75, "anneal": "cosine"},
    "rigl": {"every": 100, "fraction": 0.3, "end": 0.75, "anneal": "cosine"},
    "l0": {
        "finetune": 0.0,
        "finetune_rate": 0.01,
        "unit": "weight",
        "strength": 1.0,
        "droprate": 0.3,
        "rate": 1.0,
        "dual_rate": 0.05,
        "dual_per": "step",
    },
    "l1": {"finetune": 0.5, "finetune_rate": 0.01, "strength": 1e-5},
    "structured": {
        "finetune": 0.5,
        "finetune_rate": 0.01,
        "criterion": "group",
        "weights": "",
        "gamma_l1": 0.0,
        "term": "both",
    },
}
ALWAYS_HASHED = {("grasp", "train_mode")}
"""Options that are part of the hash whatever their value. Names from before this table existed
left GraSP's ``train_mode`` out where it was ``False``; those names are not in use any more."""


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A record's settings with those that it does not hold, each with the value it stands for.

    Since when this module exists, records hold all of them; older ones do not.
    """
    whole = {**SETTINGS, "method_options": {}, **settings}
    known = OPTIONS.get(whole["method"], {})
    return {**whole, "method_options": {**known, **whole["method_options"]}}


def run_id(settings: Mapping[str, Any]) -> str:
    """Name of the record of a run: 12 hexadecimal digits, a hash of its settings.

    settings: all of them, as `Settings.to_dict` gives them. Left out of the hash is what has the
    value in the tables above.
    """
    method = settings["method"]
    known = OPTIONS.get(method, {})
    options = {
        name: value
        for name, value in settings["method_options"].items()
        if name not in known or value != known[name] or (method, name) in ALWAYS_HASHED
    }
    # Without a term its other settings are not read.
    unread = {"method_options", "schedule", *([] if settings["beta"] else CKA_SR_FIELDS)}
    told = {
        name: value
        for name, value in settings.items()
        if name not in unread and (name not in SETTINGS or value != SETTINGS[name])
    }
    if options:
        told["method_options"] = options
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
