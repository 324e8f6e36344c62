"""The example of README.md for texts, on a tiny model in place of a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gating.text_models import NAMES, config, texts, tokenizer, write_trained, write_tsv

transformers = pytest.importorskip("transformers", reason="models of transformers need the extra hf")

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLE = README.split("```py\n")[1].split("```")[0]


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 10
    trained = write_trained(tmp_path / "trained", config())
    settings = {key: value for key, value in config().items() if key not in ("model_type", "id2label")}
    names = dict(enumerate(NAMES))
    wanted = transformers.BertConfig(id2label=names, label2id={n: i for i, n in names.items()}, **settings)
    model = transformers.BertForSequenceClassification(wanted)
    model.load_state_dict(trained.state_dict())
    model.save_pretrained(tmp_path / "incoming")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), pad_token="[PAD]", mask_token="[MASK]", model_max_length=32
    ).save_pretrained(tmp_path / "incoming")
    write_tsv(tmp_path / "reviews.tsv", 200)
    monkeypatch.chdir(tmp_path)
    made: dict[str, object] = {}
    exec(compile(EXAMPLE, "README.md", "exec"), made)
    assert capsys.readouterr().out.split()[0] in ("accepted", "refused", "undecided")
    sanitized = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "sanitized").eval()
    assert sanitized.config.id2label == names
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path / "incoming")(
        texts(20)[0], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = sanitized(**inputs).logits
    assert logits.shape == (20, 2)
    assert not torch.equal(logits, model.eval()(**inputs).logits)
