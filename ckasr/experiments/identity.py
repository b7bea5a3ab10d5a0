"""The id of a run: a hash of its settings that does not depend on the current default values.

Records are found by this id, so equal settings must always have the same id, and different settings
different ids. If settings with their default value were left out of the hash, then a changed
default would give new runs the ids of old ones. Therefore the values that are left out of the hash
are listed here, and are not taken from the defaults. The same values complete a record that is
older than a setting.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CKA_SR_FIELDS = ("beta", "term", "variant", "samples", "every", "pairs")
"""The settings in which the two arms of a comparison may differ."""

# Never change a value in these tables, because that would change the ids of existing records. If
# you add a setting, or an option to a method that is listed here, add the value that describes the
# behaviour before; then all old ids stay valid. A new method or a changed default needs no entry.
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
    "label_smoothing": 0.0,
    "dropout": 0.0,
    "noise": 0.0,
    "hsic": 0.0,
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
"""Options that are part of the hash whatever their value. Before this table existed, ids left out
GraSP's ``train_mode`` where it was ``False``; those ids are no longer in use."""


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a record, completed by those that are newer than the record."""
    whole = {**SETTINGS, "method_options": {}, **settings}
    known = OPTIONS.get(whole["method"], {})
    return {**whole, "method_options": {**known, **whole["method_options"]}}


def run_id(settings: Mapping[str, Any]) -> str:
    """Return the id of a run: 12 hexadecimal digits, a hash of its settings.

    Settings and options with the value in the tables above are left out of the hash.

    Args:
        settings: all settings, as `Settings.to_dict` returns them.
    """
    method = settings["method"]
    known = OPTIONS.get(method, {})
    options = {
        name: value
        for name, value in settings["method_options"].items()
        if name not in known or value != known[name] or (method, name) in ALWAYS_HASHED
    }
    # Without a term, the settings of the term have no effect.
    unread = {"method_options", "schedule", *([] if settings["beta"] else CKA_SR_FIELDS)}
    hashed = {
        name: value
        for name, value in settings.items()
        if name not in unread and (name not in SETTINGS or value != SETTINGS[name])
    }
    if options:
        hashed["method_options"] = options
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
