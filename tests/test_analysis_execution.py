"""Dense beside sparse execution, from records made by hand."""

import copy
import json
from pathlib import Path

from ckasr.analysis import write_executions
from ckasr.analysis.execution import execution_pairs

SOURCE = Path(__file__).parents[1] / "results" / "cpu" / "records"


def test_the_same_run_in_two_folders_is_compared(tmp_path: Path):
    texts = [json.loads(path.read_text()) for path in sorted(SOURCE.glob("*.json"))]
    chosen = [t for t in texts if t["settings"]["sparsity"] == 0.995 and not t["settings"]["beta"]]
    assert len(chosen) == 3
    for record in chosen:
        other = copy.deepcopy(record)
        other["execution"] = "sparse"
        other["test_accuracy"] = round(record["test_accuracy"] + 0.01, 6)
        for folder, run in (("dense", record), ("sparse", other)):
            path = tmp_path / folder / "records" / f"{run['id']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(run))
    folders = [tmp_path / "dense", tmp_path / "sparse"]
    (folder,) = execution_pairs(folders)
    assert folder == tmp_path / "sparse"
    table, *figures = write_executions(folders)
    assert "The mean difference (sparse minus dense) is +1.00 points" in table.read_text()
    assert [path.name for path in figures] == ["executions.png", "executions.svg"]
    assert all(path.exists() for path in figures)
    assert write_executions([tmp_path / "dense"]) == []
