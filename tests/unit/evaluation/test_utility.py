"""lm-eval's figures with intervals, and a local task on a tiny model where lm-eval is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from dat_ray.config.evaluation import UtilityConfig
from dat_ray.config.models import TargetConfig
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.intervals import wilson
from dat_ray.evaluation.side_effects import require_lm_eval
from dat_ray.evaluation.utility import Benchmarked, task_figures
from tests.unit.models.tiny import make_model, make_tokenizer

INSTALLED = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: local_arithmetic
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""


def test_shares_take_wilsons_interval_and_other_figures_a_normal_one() -> None:
    values = {"alias": "x", "acc,none": 0.75, "acc_stderr,none": 0.2, "word_perplexity,none": 20.0}
    values |= {"word_perplexity_stderr,none": "N/A", "f1,strict": 0.4, "f1_stderr,strict": 0.1}
    found = task_figures(values, 8, 0.95)
    expected = wilson(6, 8)
    assert found["acc"] == {"value": 0.75, "low": expected.low, "high": expected.high, "stderr": 0.2, "n": 8}
    assert found["word_perplexity"]["low"] is None
    assert found["f1,strict"]["high"] == pytest.approx(0.4 + 1.95996 * 0.1, abs=1e-4)
    assert set(found) == {"acc", "word_perplexity", "f1,strict"}


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_it_says_what_to_install() -> None:
    with pytest.raises(InputError, match="utility"):
        require_lm_eval()


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed (extra `utility`)")
def test_a_local_task_runs_offline(tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    rows = [{"question": f"How are {i}", "choices": [" you", " zq"], "answer": 0} for i in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local.yaml").write_text(TASK.format(data=data))
    tokenizer = make_tokenizer()
    folder = tmp_path / "model"
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    engine = Benchmarked(TargetConfig(model=str(folder), dtype="float32", max_model_len=64), 1, None)
    config = UtilityConfig(tasks=("local_arithmetic",), include_path=str(tmp_path), limit=5)
    found = engine.run(config, 0.95, seed=0)
    figures = found["local_arithmetic"]["acc"]
    assert figures["n"] == 5
    assert 0 <= figures["low"] <= figures["value"] <= figures["high"] <= 1
    with pytest.raises(DatError, match="lm-eval failed on no_such_task"):
        engine.run(UtilityConfig(tasks=("no_such_task",)), 0.95, seed=0)
