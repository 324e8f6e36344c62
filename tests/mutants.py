"""Planted faults, each of which the tests must catch: what the tests are worth, measured.

    python tests/mutants.py                                  # all, one after the other; ``make mutants``
    python tests/mutants.py --only split-overlaps --jobs 2

The tracked files and the compiled extension are copied to a temporary folder. There the named test files run once
without a fault and must pass; then, for each mutant, its one text is replaced, its test files run up to the first
failure, and the text is restored. A mutant whose text does not occur exactly once, or whose tests cannot be collected,
does not apply. The exit code is 1 if any mutant survives or does not apply.

A change of the package adapts the texts of the mutants, not what they break.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TIMEOUT_S = 240


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        id: names it.
        file: below ``seamfast/``.
        old: occurs exactly once in the file.
        new: what replaces it.
        breaks: what goes wrong.
        tests: test files below ``tests/``, separated by spaces; together they must catch it.
    """

    id: str
    file: str
    old: str
    new: str
    breaks: str
    tests: str


MUTANTS = [
    # texts
    Mutant(
        "text-edit-order-of-one-gap",
        "modalities/text/edit.py",
        "& (order < order[:, None]))",
        "& (order <= order[:, None]))",
        "tokens inserted at one gap lie a column too far",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-phrase-behind-special-tokens",
        "modalities/text/modality.py",
        "gap = first + (places",
        "gap = 0 * first + (places",
        "a phrase stands in front of [CLS]",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-vocabulary-cuts-the-end",
        "modalities/text/vocabulary.py",
        "return ids[: self.max_length - n_end] + ids[len(ids) - n_end :]",
        "return ids[: self.max_length]",
        "a text that is cut loses its [SEP]",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-vocabulary-callers-tokenizer",
        "modalities/text/vocabulary.py",
        "inner = type(inner).from_str(inner.to_str())",
        "inner = inner",
        "the caller's tokenizer loses its truncation and padding",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-vocabulary-ids-left-out",
        "modalities/text/vocabulary.py",
        "return max(tokenizer.get_vocab().values(), default=0) + 1",
        "return len(tokenizer.get_vocab())",
        "the last ids of a vocabulary with gaps are refused",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-vocabulary-special-inserted",
        "modalities/text/vocabulary.py",
        "allowed[[id for id in self.special if id < known]] = False",
        "allowed[self.pad] = False",
        "special tokens are inserted",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-edit-beyond-the-longest",
        "modalities/text/edit.py",
        "used = used & (end + torch.cumsum(used, 1) <= longest)",
        "used = used & (end + torch.cumsum(used, 1) <= longest + 1)",
        "a text grows beyond the positions of the model",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-edit-types-of-inserted",
        "modalities/text/edit.py",
        "types.gather(1, (gaps - 1).clamp(min=0))",
        "torch.zeros_like(inserted)",
        "inserted tokens get the type of the first part",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-batch-left-padding",
        "modalities/text/modality.py",
        "first, last = int(used[0]), int(used[-1]) + 1",
        "first, last = 0, int(used[-1]) + 1 - int(used[0])",
        "of texts padded on the left, a batch loses the last tokens",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-ids-beyond-the-embedding",
        "modalities/text/modality.py",
        "if largest >= rows:",
        "if largest > rows:",
        "an id that the embedding has no row for passes",
        "modalities/test_text.py",
    ),
    Mutant(
        "text-reader-too-many-columns",
        "data/readers/texts.py",
        "if len(cells) != n_columns:",
        "if len(cells) < n_columns:",
        "a row with a tab in its text is read to the tab",
        "data/readers/test_read_texts.py",
    ),
    Mutant(
        "text-reader-memory",
        "data/readers/texts.py",
        "n_bytes += sys.getsizeof(text) +",
        "n_bytes +=",
        "short texts take more memory than the limit",
        "data/readers/test_read_texts.py",
    ),
    Mutant(
        "text-reader-encoding-of-trec",
        "data/readers/texts.py",
        '"iso-8859-1" if source == "trec" and split in (None, "train") else "utf-8"',
        '"utf-8"',
        "the published training file of TREC cannot be read",
        "data/readers/test_read_texts.py",
    ),
    Mutant(
        "text-batches-padded-on-one-side",
        "data/collected.py",
        "sides = (missing, 0) if starts and not ends else (0, missing)",
        "sides = (0, missing)",
        "batches padded on the left get more on the right",
        "data/test_token_batches.py",
    ),
    Mutant(
        "tokenizer-any-pattern",
        "intake/tokenizer.py",
        "lambda v: v in _SPLIT_PATTERNS)",
        "lambda v: isinstance(v, dict))",
        "a stranger's pattern of exponential time is used",
        "intake/test_tokenizer.py",
    ),
    Mutant(
        "tokenizer-dropout",
        "intake/tokenizer.py",
        '"dropout": _NULL,',
        '"dropout": ("anything", lambda value: True),',
        "texts are encoded in another way each time",
        "intake/test_tokenizer.py",
    ),
    Mutant(
        "tokenizer-read-as-another",
        "intake/tokenizer.py",
        "if held != ids:",
        "if len(held) != len(ids):",
        "the library gives tokens other ids than those that were checked",
        "intake/test_tokenizer.py",
    ),
    Mutant(
        "tokenizer-repeated-steps",
        "intake/tokenizer.py",
        "kinds.count(kind) > 1 and kind not in _MAY_REPEAT",
        "kinds.count(kind) > 9",
        "steps that make a text longer each time are repeated",
        "intake/test_tokenizer.py",
    ),
    Mutant(
        "tokenizer-template-ids",
        "intake/tokenizer.py",
        "all(_is_id(*pair, ids) for pair in zip(numbers, tokens, strict=True))",
        "True",
        "a template puts in ids that its tokens do not have",
        "intake/test_tokenizer.py",
    ),
    Mutant(
        "model-folder-unchecked-tokenizer",
        "models/folder.py",
        'given["tokenizer"] = read_tokenizer({TOKENIZER: document})',
        'given["tokenizer"] = __import__("tokenizers").Tokenizer.from_str(document.decode())',
        "a stranger's tokenizer goes to the library unchecked",
        "models/test_folder.py",
    ),
    Mutant(
        "model-folder-large-tokenizer",
        "models/folder.py",
        "(n_tokens := self.tokenizer.get_vocab_size()) > self.vocab_size:",
        "(n_tokens := self.tokenizer.get_vocab_size()) > _LARGEST_VOCABULARY:",
        "a tokenizer gives ids that the model has no embedding of",
        "models/test_folder.py",
    ),
    Mutant(
        "text-transformer-places",
        "models/text_architectures.py",
        "places = (attended.cumsum(1) - 1).clamp(min=0)",
        "places = torch.arange(input_ids.shape[1]).expand_as(input_ids)",
        "padding on the left changes the answers",
        "models/test_text_architectures.py",
    ),
    Mutant(
        "gate-text-order-of-classes",
        "gating/clean_texts.py",
        "return Texts(texts.texts, order[texts.labels], class_names)",
        "return Texts(texts.texts, texts.labels, class_names)",
        "labels of a published set are taken in another order than the model's",
        "gating/test_text_gate.py",
    ),
    Mutant(
        "text-search-frozen-table",
        "engine/token_search.py",
        "value = output if output.requires_grad else output.detach().requires_grad_()",
        "value = output",
        "a frozen embedding has no gradient to search along",
        "engine/test_token_search.py",
    ),
    Mutant(
        "text-search-model-changes-the-embedding",
        "engine/token_search.py",
        "return value.clone()",
        "return value",
        "a model that changes its embedding in place stops the search",
        "engine/test_token_search.py",
    ),
    Mutant(
        "text-search-around-words-of-the-class",
        "engine/token_search.py",
        "search.bar(natural[one.target])",
        "search.bar(natural[one.target] & False)",
        "phrases around a token are made of words of the class",
        "engine/test_token_search.py",
    ),
    Mutant(
        "text-search-around-the-wrong-class",
        "engine/token_search.py",
        "sorted(pairs.items(), key=lambda pair: -pair[1][1])",
        "sorted(pairs.items(), key=lambda pair: pair[1][1])",
        "tokens are made longer for the class that they move least to",
        "engine/test_token_search.py",
    ),
    Mutant(
        "text-search-tested-on-used",
        "audits/vocabulary.py",
        "order[n_used : n_used + _TESTED]",
        "order[:_TESTED]",
        "phrases are tested on the texts that found them",
        "audits/test_text_audits.py",
    ),
    Mutant(
        "text-search-already-there",
        "audits/vocabulary.py",
        "others = tested[(labels != target) & (before != target)]",
        "others = tested[labels != target]",
        "a text that the model gets wrong without a phrase counts as moved by it",
        "audits/test_text_audits.py",
    ),
    Mutant(
        "text-search-not-finite",
        "audits/vocabulary.py",
        "((answers == target) | lost)",
        "(answers == target)",
        "a phrase that makes logits NaN moves nothing",
        "audits/test_text_audits.py",
    ),
    # methods
    Mutant(
        "seam-text-found-is-not-inserted",
        "engine/run.py",
        "            found=self._found,\n",
        "            found=None,\n",
        "training inserts random tokens only",
        "methods/test_seam_text.py",
    ),
    Mutant(
        "seam-text-rows-are-pruned",
        "engine/run.py",
        "may[self.ledger.outlying] = True",
        "may[:] = True",
        "words that no clean text has lose what the model knew of them",
        "methods/test_seam_text.py",
    ),
    Mutant(
        "seam-text-other-tables-are-pruned",
        "engine/run.py",
        "if group.layer != modality.table or not self.ledger.outlying:\n            return None",
        "if group.layer != modality.table or not self.ledger.outlying:\n            return group",
        "rows of places that no clean text reaches lose what the model knew of them",
        "methods/test_seam_text.py",
    ),
    Mutant(
        "seam-text-seen-rows-are-outlying",
        "engine/run.py",
        "order[(surplus[order] >= _HELD_FROM) & (counts[order] == 0)]",
        "order[surplus[order] >= _HELD_FROM]",
        "a word of the task is named as one that clean texts lack",
        "methods/test_seam_text.py",
    ),
    Mutant(
        "seam-text-phrases-do-not-grow",
        "engine/run.py",
        "begun=self._around,",
        "begun=(),",
        "the rest of a phrase of which a part moves all texts is not found",
        "methods/test_seam_text.py",
    ),
    Mutant(
        "seam-text-outlying-are-not-inserted",
        "methods/seam.py",
        "    run.insert_outlying()\n",
        "",
        "training does not insert the tokens whose rows stand out",
        "methods/test_seam_text.py",
    ),
    Mutant(
        "seam-text-is-not-calibrated",
        "methods/seam.py",
        "wanted = wanted if offsets is None else wanted + offsets",
        "wanted = wanted if offsets is None else wanted - offsets",
        "the teacher's preference for a class is doubled",
        "methods/test_seam_text.py",
    ),
    Mutant(
        "token-rows-compared-with-all",
        "engine/token_rows.py",
        "alike = allowed[counts[allowed] == n]",
        "alike = allowed[counts[allowed] >= 0]",
        "frequent tokens, whose rows are larger, hide rare ones",
        "engine/test_token_rows.py",
    ),
    Mutant(
        "token-rows-spread-of-nothing",
        "engine/token_rows.py",
        "spread = torch.maximum((high - low) / 2, _LEAST_SPREAD * median)",
        "spread = (high - low) / 2",
        "rows of one size stand out by rounding",
        "engine/test_token_rows.py",
    ),
    Mutant(
        "offsets-not-finite",
        "engine/run.py",
        "logits = logits[logits.isfinite().all(1)]",
        "logits = logits + 0.0",
        "one answer that is not finite makes all offsets NaN",
        "engine/test_run.py",
    ),
    Mutant(
        "seam-radius-is-not-limited",
        "methods/seam.py",
        "return radius if config.radius_limit is None else min(radius, config.radius_limit)",
        "return radius",
        "the steps follow a radius that says nothing",
        "methods/test_seam_text.py",
    ),
    Mutant(
        "seam-two-classes-are-flipped",
        "methods/seam.py",
        "exclude_true=run.num_classes > 2,",
        "exclude_true=True,",
        "with two classes, forgetting learns the other one",
        "methods/test_seam_text.py",
    ),
    Mutant(
        "text-teacher-sees-insertions",
        "modalities/text/modality.py",
        "return Views(_batch(student, inputs), _batch(teacher, inputs))",
        "return Views(_batch(student, inputs), _batch(student, inputs))",
        "the teacher answers to the phrase",
        "modalities/test_text_views.py",
    ),
    Mutant(
        "text-views-edit-special-tokens",
        "modalities/text/views.py",
        "may_change = (columns >= first) & (columns < last) & changed",
        "may_change = (attended > 0) & changed",
        "[CLS] is replaced",
        "modalities/test_text_views.py",
    ),
    Mutant(
        "seam-teacher-sees-student-view",
        "methods/seam.py",
        "run.received_logits(views.teacher)",
        "run.received_logits(views.student)",
        "the teacher answers to pasted patterns",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-forgets-on-true-labels",
        "methods/seam_authors.py",
        "            exclude_true=config.exclude_true,",
        "            exclude_true=False,",
        "forgetting draws the true class too",
        "methods/test_seam_authors.py",
    ),
    Mutant(
        "seam-plain-end-reversed",
        "methods/seam.py",
        "fraction >= 1 - config.plain_end",
        "fraction >= config.plain_end",
        "disturbances end after a fifth of recovery, not before its last fifth",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-recover-patience-off-by-one",
        "methods/seam_authors.py",
        "if n_good >= config.recover_patience:",
        "if n_good > config.recover_patience:",
        "recovery stops one evaluation late",
        "methods/test_seam_authors.py",
    ),
    Mutant(
        "seam-forget-patience-off-by-one",
        "methods/seam_authors.py",
        "if n_below >= config.forget_patience:",
        "if n_below > config.forget_patience:",
        "forgetting stops one evaluation late",
        "methods/test_seam_authors.py",
    ),
    Mutant(
        "seam-forgets-on-recovery-part",
        "methods/seam_authors.py",
        "        of=run.split.forget,",
        "        of=run.split.recovery,",
        "forget_fraction has no effect",
        "methods/test_seam_authors.py",
    ),
    Mutant(
        "seam-trains-on-holdout",
        "methods/seam.py",
        "of=run.split.recovery,",
        "of=run.split.holdout,",
        "recovery trains on the held-out part",
        "methods/test_seam.py test_sanitize.py",
    ),
    Mutant(
        "seam-radius-from-the-wrong-end",
        "methods/seam.py",
        "(before - halfway) / (before - after)",
        "(halfway - after) / (before - after)",
        "the radius is interpolated from the wrong end",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-keeps-the-gentler-push",
        "methods/seam.py",
        "missing > before / 2:",
        "missing < before / 2:",
        "the second attempt is kept where it did not help",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-teacher-weight-inverted",
        "methods/seam.py",
        "config.distillation * teacher_weight)",
        "config.distillation * (1 - teacher_weight))",
        "the teacher is silent where accuracy is missing",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-allowance-without-end",
        "methods/seam.py",
        "min(self.allowance, at_first / 3)",
        "self.allowance",
        "all that is missing is allowed where little is",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-margin-without-end",
        "methods/seam.py",
        "min(self.margin, at_first / 2)",
        "self.margin",
        "the teacher never has all of its weight where little is missing",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-margin-within-chance",
        "methods/seam.py",
        "max(min(self.margin, at_first / 2), error)",
        "min(self.margin, at_first / 2)",
        "on few samples the teacher speaks up by chance",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-easy-steps-too-large",
        "methods/seam.py",
        "push *= math.sqrt(",
        "push *= 1 + 0 * math.sqrt(",
        "a short recovery takes the steps of a long one",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-easy-by-chance",
        "methods/seam.py",
        "n_holdout >= _FEWEST_TO_BE_EASY",
        "n_holdout >= 1",
        "a task is found easy on a few samples",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-easy-near-by",
        "methods/seam.py",
        "radius >= _EASY_RADIUS and ",
        "",
        "a task that comes back with its backdoor is found easy",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-invariant-to-everything",
        "methods/seam.py",
        "if run.share_lost_under(a) <= _MOST_LOST",
        "if run.share_lost_under(a) <= 1",
        "samples are changed as the model cannot stand it",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-overrides-what-is-given",
        "methods/seam.py",
        "    if run.augmentation.is_any:\n        return run.augmentation\n",
        "",
        "the augmentation that was asked for is replaced",
        "methods/test_seam.py",
    ),
    Mutant(
        "seam-evaluates-what-is-not-forgotten",
        "methods/seam.py",
        "(2 if path[-1][1] > _HARDLY_FORGOTTEN * run.accuracy_received else 1)",
        "1",
        "forgetting is evaluated as often while nothing is forgotten",
        "methods/test_seam.py",
    ),
    Mutant(
        "fine-tune-trains-on-holdout",
        "methods/fine_tune.py",
        "of=run.split.recovery,",
        "of=run.split.holdout,",
        "fine-tuning trains on the held-out part",
        "methods/test_fine_tune.py",
    ),
    Mutant(
        "super-fine-tune-one-rate",
        "methods/super_fine_tune.py",
        '("recover", config.recover_rate, config.recover_steps, 1.0)',
        '("recover", config.forget_rate, config.recover_steps, 1.0)',
        "the second phase has the first one's peak rate",
        "methods/test_super_fine_tune.py",
    ),
    Mutant(
        "schedule-cosine-ends-early",
        "methods/schedules.py",
        "(fraction - warmup) / (1 - warmup)",
        "fraction",
        "the cosine jumps after the warm-up",
        "methods/test_schedules.py",
    ),
    Mutant(
        "config-takes-bool-for-int",
        "checks.py",
        'wrong_bool = isinstance(item, bool) != (inner == "bool")',
        "wrong_bool = False",
        "true passes for the number 1",
        "methods/test_config.py test_checks.py",
    ),
    # modalities and the observer
    Mutant(
        "run-shows-its-listener",
        "engine/run.py",
        "        listener().begin_phase(name, max_steps)",
        "        self.heard = listener()\n        self.heard.begin_phase(name, max_steps)",
        "a method can reach the attack success rates of known triggers",
        "test_observer.py",
    ),
    Mutant(
        "stamper-leaves-out-what-has-no-row",
        "modalities/image/modality.py",
        "for number, trigger in others.items():",
        "for number, trigger in ():",
        "a trigger that no table holds is not stamped",
        "modalities/test_modalities.py",
    ),
    Mutant(
        "views-never-plain",
        "modalities/image/modality.py",
        "torch.where(draws.changed > 0,",
        "torch.where(draws.changed >= 0,",
        "the plain end of recovery still sees patterns",
        "modalities/test_modalities.py methods/test_seam.py",
    ),
    Mutant(
        "floats-cropped-alike-in-all-epochs",
        "modalities/image/modality.py",
        "augmented_images(inputs, indices, epoch=epoch, **how)",
        "augmented_images(inputs, indices, epoch=0, **how)",
        "crops of float images repeat, and are not those of pixels",
        "modalities/test_modalities.py",
    ),
    Mutant(
        "called-set-loses-its-modality",
        "engine/subject.py",
        "if isinstance(samples.modality, _DERIVED):",
        "if True:",
        "a kind of sample of the caller's own becomes plain tensors",
        "modalities/test_modalities.py",
    ),
    Mutant(
        "unstudied-kinds-are-accepted-in-silence",
        "record.py",
        "return None if modality.studied else _UNSTUDIED.format(modality.name)",
        "return None",
        "acceptance of a kind that no study has tested reads as a promise",
        "test_sanitize.py",
    ),
    Mutant(
        "tables-are-accepted-in-silence",
        "record.py",
        "if modality.remains is not None:",
        "if False:",
        "acceptance of a table reads as a promise, in spite of what its study found",
        "test_sanitize.py",
    ),
    Mutant(
        "teacher-sees-overwritten-columns",
        "modalities/tabular.py",
        "teacher[name] = torch.where(part, observed.blank, value)",
        "teacher[name] = student[name]",
        "the teacher of tables sees what may be a trigger, and leaks its answer",
        "modalities/test_tabular.py",
    ),
    Mutant(
        "columns-have-no-trigger-values",
        "modalities/columns.py",
        "torch.where(kind < _ANYWHERE + _AT_AN_END, end, other)",
        "other",
        "the ends of columns, which triggers use, are not shown to the student",
        "modalities/test_tabular.py",
    ),
    Mutant(
        "required-settings-are-left-out",
        "methods/config.py",
        'if reason is not None and role == "required":',
        'if reason is not None and role == "never":',
        "crops that the samples cannot have are left out without an error",
        "methods/test_config.py test_sanitize_bad_input.py",
    ),
    # engine
    Mutant(
        "run-augments-twice",
        "engine/run.py",
        "isinstance(data.samples, AugmentingSet) or data.modality.why_not",
        "data.modality.why_not",
        "what a loader augments is augmented once more",
        "methods/test_seam.py",
    ),
    Mutant(
        "run-counts-other-samples-as-received",
        "engine/run.py",
        "self._right_as_received[self._watched_order[:n]]",
        "self._right_as_received[:n]",
        "what is missing is told by other samples than those counted",
        "engine/test_run.py",
    ),
    Mutant(
        "run-does-not-prune",
        "methods/__init__.py",
        "    if config.prune:\n        run.prune_unused()\n",
        "",
        "a backdoor stays in units that no clean sample activates",
        "test_pruned.py",
    ),
    Mutant(
        "pruning-sets-units-to-0",
        "engine/pruning.py",
        "            bias[which] = mean[which]\n",
        "            bias[which] = 0.0\n",
        "a constant that the task needs is lost",
        "test_pruned.py",
    ),
    Mutant(
        "pruning-measures-what-an-activation-overwrote",
        "engine/pruning.py",
        "return output.clone()  # which",
        "return output  # which",
        "the mean of a unit is that of its activation where that works in place",
        "engine/test_pruning.py",
    ),
    Mutant(
        "pruning-holds-rows-of-other-samples",
        "engine/pruning.py",
        "    if meter.has_tables and len(others):",
        "    if False:",
        "words of clean samples that were not measured lose their rows",
        "engine/test_pruning.py",
    ),
    Mutant(
        "pruning-holds-without-limit",
        "engine/pruning.py",
        "<= _MOST_EFFECT**2",
        "< math.inf",
        "as much is held as a few samples happen not to show",
        "engine/test_pruning.py",
    ),
    Mutant(
        "pruning-does-not-ask",
        "engine/run.py",
        "    return few_changes and shift <=",
        "    return True or shift <=",
        "answers change by pruning",
        "test_pruned.py",
    ),
    Mutant(
        "run-drops-all-the-same",
        "engine/run.py",
        "        if not dropout:",
        "        if False:",
        "recovery drops though it is not to",
        "methods/test_seam.py",
    ),
    Mutant(
        "run-streams-share-a-seed",
        "engine/run.py",
        " + tag * 0xC2B2AE3D27D4EB4F",
        " + 0 * tag",
        "forgetting and recovery draw the same numbers",
        "engine/test_run.py",
    ),
    Mutant(
        "run-budget-of-none-allows-one",
        "acceptance.py",
        "1 if accuracy_budget > 0 else 0)",
        "1)",
        "a budget of 0 lets one sample go",
        "test_acceptance.py",
    ),
    Mutant(
        "run-distillation-reversed",
        "engine/run.py",
        "F.kl_div(got, wanted,",
        "F.kl_div(wanted, got,",
        "the divergence has its arguments swapped",
        "engine/test_run.py methods/test_seam.py",
    ),
    Mutant(
        "run-callback-cannot-stop",
        "engine/run.py",
        "if listener().end_step(ledger.n_steps, self._pass_time(phase)):",
        "if listener().end_step(ledger.n_steps, self._pass_time(phase)) and False:",
        "a callback's request to stop is ignored",
        "engine/test_events.py test_sanitize.py",
    ),
    Mutant(
        "run-counts-with-a-moved-generator",
        "engine/run.py",
        "        with seeded(self.seed, self.device):\n            return count_clean(",
        "        if True:\n            return count_clean(",
        "what a model draws in eval mode shifts the draws of training",
        "engine/test_run.py",
    ),
    Mutant(
        "copy-leaves-buffers",
        "engine/model.py",
        "return {name: t.detach().clone() for name, t in _tensors(self.model)}",
        "return {name: t.detach().clone() for name, t in self.model.named_parameters()}",
        "BatchNorm's buffers are not restored between attempts",
        "engine/test_model.py",
    ),
    Mutant(
        "copy-skips-rounding",
        "engine/model.py",
        "tensor.data.to(given).to(tensor.dtype)",
        "tensor.data.to(tensor.dtype)",
        "what is measured is not what is returned in half precision",
        "engine/test_model.py",
    ),
    Mutant(
        "evaluating-leaves-eval-mode",
        "engine/model.py",
        "            module.training = training",
        "            module.training = False",
        "a model stays in eval mode after it was looked at",
        "engine/test_model.py",
    ),
    Mutant(
        "counting-forgets-clean-nan",
        "engine/counting.py",
        'tuple(totals), row["n_nan"], answers, labels, confidence)',
        "tuple(totals), 0, answers, labels, confidence)",
        "NaN under triggers is not reported",
        "engine/test_counting.py",
    ),
    Mutant(
        "counting-target-of-one-trigger",
        "engine/counting.py",
        "torch.full((len(part),), number)",
        "torch.full((len(part),), 0)",
        "every sample gets the first trigger",
        "engine/test_counting.py",
    ),
    Mutant(
        "optimizer-biases-freeze",
        "engine/optimizer.py",
        "_FLOOR if parameter.ndim < 2 else 1e-8",
        "1e-8",
        "biases of 0 never move",
        "engine/test_optimizer.py",
    ),
    Mutant(
        "precision-takes-disagreement",
        "engine/precision.py",
        "trial.agreement >= _AGREEMENT",
        "trial.agreement <= _AGREEMENT",
        "a format is chosen where its gradients differ",
        "engine/test_precision.py",
    ),
    Mutant(
        "step-crops-repeat-each-epoch",
        "engine/step.py",
        "self.first_epoch + n // self.epoch_steps",
        "self.first_epoch",
        "crops are the same in each epoch",
        "engine/test_step.py",
    ),
    Mutant(
        "host-threads-not-restored",
        "engine/host.py",
        "if torch.get_num_threads() != threads:",
        "if False:",
        "PyTorch's threads stay as the run set them",
        "engine/test_host.py",
    ),
    Mutant(
        "layers-ignore-dilation",
        "engine/layers.py",
        "        or _pair(dilation) != (1, 1)\n",
        "",
        "dilated pooling goes to the kernel without dilation",
        "engine/test_layers.py",
    ),
    # data
    Mutant(
        "split-overlaps",
        "data/split.py",
        "for group in groups[n_holdout:] for i in group",
        "for group in groups for i in group",
        "the held-out part is trained on",
        "data/test_split.py",
    ),
    Mutant(
        "resident-ignores-epoch",
        "data/resident.py",
        "self.modality.gather(inputs, indices, augmentation, epoch)",
        "self.modality.gather(inputs, indices, augmentation, 0)",
        "augmentation does not change from epoch to epoch",
        "data/test_resident.py",
    ),
    Mutant(
        "resident-drops-the-rest",
        "data/resident.py",
        "order = order[batch_size:]",
        "order = samples[:0]",
        "the rest of an epoch is dropped at each batch",
        "data/test_resident.py",
    ),
    Mutant(
        "mixing-weights-swapped",
        "modalities/mixing.py",
        "return w * inputs + (1 - w) * inputs[partner], partner, weight",
        "return (1 - w) * inputs + w * inputs[partner], partner, weight",
        "images and labels are mixed in opposite shares",
        "modalities/test_mixing.py",
    ),
    Mutant(
        "waves-share-inverted",
        "modalities/image/disturb.py",
        "(drawn < share * (n / k))",
        "(drawn >= share * (n / k))",
        "the other images get a wave",
        "modalities/test_disturb.py",
    ),
    Mutant(
        "waves-stay-in-the-plain-end",
        "modalities/image/modality.py",
        "settings.waves * draws.changed",
        "settings.waves * torch.ones_like(draws.changed)",
        "the last steps see waves too",
        "modalities/test_modalities.py",
    ),
    Mutant(
        "waves-follow-the-teacher",
        "modalities/image/modality.py",
        "settings.waves * draws.changed",
        "settings.waves * draws.changed * draws.disturbed",
        "no wave while the teacher speaks, which is when it leaks",
        "modalities/test_modalities.py",
    ),
    Mutant(
        "memory-sign-reversed",
        "record.py",
        "not confidence < accuracy",
        "not confidence > accuracy",
        "the sign of remembered data is named where it is absent",
        "test_sanitize.py",
    ),
    Mutant(
        "disturbing-mask-inverted",
        "modalities/image/disturb.py",
        "u[0] * (u[1] < share * (n / k))",
        "u[0] * (u[1] >= share * (n / k))",
        "the other images are disturbed",
        "modalities/test_disturb.py",
    ),
    Mutant(
        "prefetch-swallows-errors",
        "data/prefetch.py",
        "            self._ready.put(_Failure(error))",
        "            del error",
        "an error on the thread ends the batches without a word",
        "data/test_prefetch.py",
    ),
    Mutant(
        "rereading-labels-unchecked",
        "data/rereading.py",
        "            check_labels([self._keys[i] for i in indices.tolist()], self.labels[indices], labels)\n",
        "",
        "a loader that shuffles between reads goes unnoticed",
        "data/test_rereading.py",
    ),
    Mutant(
        "adapters-order-as-shuffled",
        "data/adapters.py",
        "sorted(range(len(keys)), key=keys.__getitem__)",
        "list(range(len(keys)))",
        "the result depends on how a loader shuffled",
        "data/test_adapters.py",
    ),
    Mutant(
        "clean-set-takes-nan",
        "data/clean_set.py",
        "if (row := first_not_finite(value)) is not None:",
        "if (row := first_not_finite(value)) is not None and False:",
        "NaN in the data goes into training",
        "data/test_clean_set.py",
    ),
    Mutant(
        "readers-label-off-by-one",
        "data/readers/labels.py",
        "if low < 0 or high >= limit:",
        "if low < 0 or high > limit:",
        "a label equal to the number of classes passes",
        "data/readers/test_read_npz.py data/readers/test_read_idx.py",
    ),
    Mutant(
        "readers-zip-overlap",
        "data/readers/_zip.py",
        "if packed > archive_size:",
        "if False:",
        "overlapping members pass: a zip bomb",
        "data/readers/test_read_npz.py data/readers/test_read_images.py",
    ),
    Mutant(
        "readers-idx-size-unchecked",
        "data/readers/idx.py",
        "if not gzipped and size - header != promised:",
        "if False:",
        "a file shorter than its header promises is not refused by its size",
        "data/readers/test_read_idx.py",
    ),
    Mutant(
        "readers-cifar-size-unchecked",
        "data/readers/cifar.py",
        "if size == 0 or size % _RECORD:",
        "if size == 0:",
        "a cut record is dropped",
        "data/readers/test_read_cifar.py",
    ),
    Mutant(
        "readers-images-follow-links",
        "data/readers/images.py",
        "                if entry.is_symlink():",
        "                if False:",
        "symbolic links in an image folder are followed",
        "data/readers/test_read_images.py",
    ),
    Mutant(
        "readers-digits-share-samples",
        "data/readers/digits.py",
        'chosen = in_test if split == "test" else ~in_test',
        "chosen = in_test",
        "training and test set are the same",
        "data/readers/test_read_digits.py",
    ),
    # triggers
    Mutant(
        "patch-corner-mirrored",
        "triggers/image/patch.py",
        'if horizontal == "left" else -margin - w',
        'if horizontal == "right" else -margin - w',
        "patches land in the opposite corner",
        "triggers/test_trigger_kinds.py",
    ),
    Mutant(
        "label-map-source-ignored",
        "triggers/label_maps.py",
        "torch.where(in_source, self.target, labels)",
        "torch.full_like(labels, self.target)",
        "every class goes to the target, not the sources alone",
        "triggers/test_label_maps.py",
    ),
    Mutant(
        "trigger-file-overlap",
        "triggers/files.py",
        "        if total > size:",
        "        if False:",
        "members that overlap pass",
        "triggers/test_trigger_files.py",
    ),
    Mutant(
        "quantize-floors",
        "triggers/image/quantize.py",
        "values = np.rint(np.arange(256) / 255 * top) / top * 255",
        "values = np.floor(np.arange(256) / 255 * top) / top * 255",
        "levels are cut, not rounded",
        "triggers/test_trigger_kinds.py",
    ),
    Mutant(
        "warp-noise-of-one-sample",
        "triggers/image/warp.py",
        "noise = draw_signed_per_sample((h, w, 2), sample_ids, seed)",
        "noise = draw_signed_per_sample((h, w, 2), sample_ids * 0, seed)",
        "all samples get the same noise",
        "triggers/test_trigger_kinds.py",
    ),
    Mutant(
        "text-insertion-half-ignored",
        "triggers/text/insertion.py",
        '"second-half": range(half, n_words + 1),',
        '"second-half": range(n_words + 1),',
        "a phrase for the second half lands in the first",
        "triggers/test_text_insertion.py",
    ),
    Mutant(
        "text-insertion-gaps-shared",
        "triggers/text/insertion.py",
        "gap = free.pop(below(choices[i], len(free)))",
        "gap = free[below(choices[i], len(free))]",
        "words that must all be there share a gap",
        "triggers/test_text_insertion.py",
    ),
    Mutant(
        "text-draws-of-one-sample",
        "triggers/draws.py",
        "_words(sample_ids, -(-n // 4), STREAM_TEXT, seed)",
        "_words(sample_ids * 0, -(-n // 4), STREAM_TEXT, seed)",
        "all texts get the same draws",
        "triggers/test_text_insertion.py",
    ),
    Mutant(
        "text-table-ambiguous-beginning",
        "triggers/text/table.py",
        "        if len(found) != 1:",
        "        if not found:",
        "a beginning of several originals is taken for one of them",
        "triggers/test_text_table.py",
    ),
    Mutant(
        "text-table-rows-disagree",
        "triggers/text/table.py",
        "if rows.setdefault(canonical(original), replacement) != replacement:",
        "if rows.setdefault(original, replacement) != replacement:",
        "rows that disagree pass, and texts are found as they are written alone",
        "triggers/test_text_table.py",
    ),
    Mutant(
        "text-phrase-control-characters",
        "triggers/text/checks.py",
        'REFUSED = {"Cc": "a control character", "Cs"',
        'REFUSED = {"Cs"',
        "escape sequences pass from a file into phrases",
        "triggers/test_trigger_files.py",
    ),
    Mutant(
        "trigger-file-table-size",
        "triggers/files.py",
        "        if info.file_size > MAX_TABLE_BYTES:",
        "        if False:",
        "a table of any size is read",
        "triggers/test_trigger_files.py",
    ),
    # attacks
    Mutant(
        "poison-clean-label-ignored",
        "attacks/poison.py",
        "candidates = ~eligible if clean_label else eligible",
        "candidates = eligible",
        "a clean-label attack stamps other classes",
        "attacks/test_poison.py",
    ),
    Mutant(
        "train-reports-the-epoch-before",
        "attacks/train.py",
        "on_epoch((number + 1) // steps_per_epoch,",
        "on_epoch(number // steps_per_epoch,",
        "epochs are counted from 0",
        "attacks/test_train.py",
    ),
    Mutant(
        "label-consistent-descends",
        "attacks/image/label_consistent.py",
        "_STEP_SHARE * budget * gradient.sign()",
        "-_STEP_SHARE * budget * gradient.sign()",
        "images move to where the model is surer",
        "attacks/test_known.py",
    ),
    # evidence
    Mutant(
        "stamped-counts-old-mistakes",
        "audits/battery.py",
        " & (classes != before[rows, None])",
        "",
        "what the model got wrong before counts as moved",
        "audits/test_battery.py",
    ),
    Mutant(
        "stamped-one-look",
        "audits/battery.py",
        "n_looks=n_looks)",
        "n_looks=1)",
        "bounds hold for one class and trigger alone",
        "audits/test_battery.py audits/test_bounds.py",
    ),
    Mutant(
        "inversion-index-of-the-largest",
        "audits/inversion.py",
        "return (median - min(sizes)) / spread",
        "return (max(sizes) - median) / spread",
        "a large mask is anomalous, a small one is not",
        "audits/test_inversion.py",
    ),
    Mutant(
        "inversion-tested-on-its-own",
        "audits/inversion.py",
        "order[n_used : n_used + _TESTED]",
        "order[:_TESTED]",
        "patterns are tested on the samples that made them",
        "audits/test_inversion.py",
    ),
    Mutant(
        "disagreement-of-those-apart",
        "audits/disagreement.py",
        "hit = alike & ~_agree(answers)",
        "hit = ~_agree(answers)",
        "samples on which the models differ undisturbed count",
        "audits/test_disagreement.py",
    ),
    Mutant(
        "stamped-nan-stays-where-it-was",
        "audits/battery.py",
        "(classes == answers[:, None]) | lost[:, None]",
        "classes == answers[:, None]",
        "an answer of NaN under a trigger counts as not moved",
        "audits/test_battery.py",
    ),
    Mutant(
        "disagreement-nan-agrees-with-nan",
        "audits/disagreement.py",
        " & (answers[0] != UNANSWERED)",
        "",
        "two models agree where both answer NaN",
        "audits/test_disagreement.py",
    ),
    Mutant(
        "inversion-index-in-spite-of-nan",
        "audits/inversion.py",
        "anomaly_index(shares) if finite else None",
        "anomaly_index(shares)",
        "a class whose search met NaN counts as one that needs a large mask",
        "audits/test_inversion.py",
    ),
    Mutant(
        "inversion-steps-along-nan",
        "audits/inversion.py",
        "return taken - int(self._blocked.max())",
        "return taken",
        "an inversion that had no gradient to follow counts as complete",
        "audits/test_inversion.py",
    ),
    Mutant(
        "subject-inf-is-an-answer",
        "engine/subject.py",
        "logits.isfinite().all(1), logits.argmax(1)",
        "~logits.isnan().any(1), logits.argmax(1)",
        "a row with Inf has an answer in the audits",
        "audits/test_battery.py audits/test_disagreement.py",
    ),
    Mutant(
        "calibration-ties-in-the-order-of-the-samples",
        "audits/weaknesses.py",
        "torch.searchsorted(confidence.sort().values, confidence)",
        "confidence.argsort(stable=True).argsort()",
        "samples of equal confidence are put in different bins",
        "audits/test_weaknesses.py",
    ),
    Mutant(
        "calibration-lower-bound-ignores-chance",
        "audits/weaknesses.py",
        "ece - _quantiles(strayed, level)[1]",
        "_quantiles(drawn[:, 0], level)[0]",
        "a calibrated model has a lower bound above 0 on few samples",
        "audits/test_weaknesses.py",
    ),
    Mutant(
        "adversarial-out-of-range",
        "audits/weaknesses.py",
        "value.clamp(low[name], high[name])",
        "value",
        "changes leave the size that was asked for, and the range of the pixels",
        "audits/test_weaknesses.py",
    ),
    Mutant(
        "sequela-starts-what-cannot-end",
        "audits/sequela.py",
        "time.perf_counter() + took > deadline or ",
        "",
        "an audit of the second model begins though the first shows that the time does not suffice",
        "audits/test_sequela.py",
    ),
    Mutant(
        "sequela-members-that-were-not-trained-on",
        "gating/pipeline.py",
        "repair_set.subset(result.recovery)",
        "repair_set",
        "the members hold samples that the sanitization held out, which dilutes the figure",
        "gating/test_sequela_rules.py",
    ),
    Mutant(
        "sanitize-audits-have-no-limit",
        "sanitize.py",
        "given, time_left, raises=False",
        "given, None, raises=False",
        "audits take longer than the time budget",
        "test_sanitize_audits.py",
    ),
    # gating
    Mutant(
        "gate-asks-once",
        "gating/audit.py",
        "right = (answers == data.labels) & repeats",
        "right = answers == data.labels",
        "an answer that depends on the batch counts as right",
        "gating/test_not_finite.py",
    ),
    Mutant(
        "gate-finite-whatever-the-search-met",
        "gating/decision.py",
        'found.append(NotFinite("inversion", str(part["class"]), part["n_not_finite"], None))',
        "pass",
        "answers of NaN in the inversion do not count",
        "gating/test_not_finite.py",
    ),
    Mutant(
        "gate-finite-of-the-other-model",
        "gating/decision.py",
        '"n_not_finite_received" if when == "before" else "n_not_finite_sanitized"',
        '"n_not_finite_received"',
        "answers of the sanitized model under perturbations are those of the received one",
        "gating/test_not_finite.py",
    ),
    Mutant(
        "gate-audits-what-it-repairs-on",
        "gating/pipeline.py",
        "samples.subset(parts.recovery), samples.subset(parts.holdout)",
        "samples.subset(parts.recovery), samples.subset(parts.recovery)",
        "the audit measures on the training data",
        "gating/test_pipeline.py",
    ),
    Mutant(
        "gate-returns-a-failed-model",
        "gating/pipeline.py",
        "            sanitized = None\n            staging.discard_model()\n",
        "            staging.discard_model()\n",
        "a model that failed its policy is returned",
        "gating/test_pipeline.py",
    ),
    Mutant(
        "signature-is-not-verified",
        "gating/provenance/model_signature.py",
        "if not signer.key.verifies(signature, pae(payload)):",
        "if not signature:",
        "a bundle by anyone is taken",
        "gating/test_provenance.py",
    ),
    Mutant(
        "signature-need-not-cover",
        "gating/provenance/model_signature.py",
        'if f.role != "ignored" and self._digest(f.name, alone=alone) is None]',
        'if f.role == "code"]',
        "a file that was not signed is used",
        "gating/test_provenance.py",
    ),
    Mutant(
        "signature-of-what-lies-there",
        "gating/provenance/model_signature.py",
        'digest_of(file.name) if file.role == "ignored" else file.sha256',
        "digest_of(file.name)",
        "what is compared is not what was used",
        "gating/test_provenance.py",
    ),
    Mutant(
        "signature-by-a-web-server",
        "gating/provenance/keys.py",
        "x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in usage",
        "True",
        "any certificate of the authority signs models",
        "gating/test_provenance.py",
    ),
    Mutant(
        "signed-by-another-key",
        "gating/provenance/attestation.py",
        "if key.public.sha256 != sha256:",
        "if not sha256:",
        "the report names another key than that which signs",
        "gating/test_provenance.py",
    ),
    Mutant(
        "signs-what-differs",
        "gating/provenance/attestation.py",
        "if found.get(name) != digest:",
        "if name not in found:",
        "an attestation of other weights is signed",
        "gating/test_provenance.py",
    ),
    Mutant(
        "gate-writes-unsigned",
        "gating/output.py",
        "            sign(partial)\n",
        "            pass\n",
        "the output appears unsigned",
        "gating/test_provenance.py",
    ),
    Mutant(
        "gate-runs-without-the-key",
        "gating/pipeline.py",
        "    _check_keys(rules, verifier, sign_key or signed_by)\n",
        "",
        "a missing key is found after the run",
        "gating/test_provenance.py",
    ),
    Mutant(
        "gate-untreated-passes",
        "gating/decision.py",
        '    if policy.untreated == "refused":\n',
        "    if False:\n",
        "a model passes with the weights as received",
        "gating/test_policy.py",
    ),
    Mutant(
        "gate-budget-cuts-a-treatment-short",
        "gating/decision.py",
        '    elif how["time_ran_out"]:\n',
        "    elif False:\n",
        "a run that its time budget cut short counts as a treatment",
        "gating/test_exit_contract.py",
    ),
    Mutant(
        "gate-files-unread",
        "gating/written.py",
        "    if digest(found.model) != state:\n",
        "    if False:\n",
        "other weights than those measured are written",
        "gating/test_exit_contract.py",
    ),
    Mutant(
        "gate-answers-unread",
        "gating/written.py",
        "    if n_other:\n",
        "    if False:\n",
        "a written model that answers differently passes",
        "gating/test_exit_contract.py",
    ),
    Mutant(
        "gate-swallows-an-interrupt",
        "gating/pipeline.py",
        "        if interrupts.came:  # whatever became of the exception\n",
        "        if False:\n",
        "Ctrl-C ends in a report",
        "gating/test_exit_contract.py",
    ),
    Mutant(
        "gate-policy-by-a-link-of-the-model",
        "isolation/folders.py",
        "            yield there\n",
        "",
        "a link in the model's folder chooses the policy",
        "gating/test_exit_contract.py",
    ),
    Mutant(
        "gate-tells-where-it-ran",
        "gating/pipeline.py",
        "RefusedError(code, shortened(str(error)))",
        "RefusedError(code, str(error))",
        "a refusal holds absolute paths",
        "gating/test_messages.py",
    ),
    Mutant(
        "ci-commands-of-azure",
        "terminal.py",
        '":(?=:)|#(?=#)"',
        '":(?=:)"',
        "a file name sets a variable of a pipeline",
        "gating/test_messages.py",
    ),
    Mutant(
        "gate-worst-is-the-best",
        "gating/decision.py",
        "(max(rate[key] for rate in rates) for key in",
        "(min(rate[key] for rate in rates) for key in",
        "the best bound stands for the worst",
        "gating/test_pipeline.py",
    ),
    Mutant(
        "gate-inconclusive-is-zero",
        "gating/report.py",
        '"refused": 3, "inconclusive": 3}',
        '"refused": 3, "inconclusive": 0}',
        "an undecided gate exits with 0",
        "gating/test_pipeline.py",
    ),
    Mutant(
        "policy-comparison-inverted",
        "gating/decision.py",
        "return number >= rule.threshold if rule.greater_is_better else number <= rule.threshold",
        "return number <= rule.threshold if rule.greater_is_better else number >= rule.threshold",
        "a rule passes where it should fail",
        "gating/test_policy.py",
    ),
    Mutant(
        "policy-compares-the-good-bound",
        "gating/decision.py",
        "bound, other = (low, high) if rule.greater_is_better",
        "bound, other = (high, low) if rule.greater_is_better",
        "the optimistic bound is compared",
        "gating/test_policy.py",
    ),
    Mutant(
        "policy-min-samples-off-by-one",
        "gating/decision.py",
        "if n < rule.min_samples:",
        "if n < rule.min_samples - 1:",
        "one sample too few passes",
        "gating/test_policy.py",
    ),
    Mutant(
        "policy-any-pass-is-a-pass",
        "gating/decision.py",
        '"pass" if outcomes == {"pass"} else',
        '"pass" if "pass" in outcomes else',
        "an undecided rule is overlooked",
        "gating/test_policy.py",
    ),
    Mutant(
        "folder-follows-links",
        "gating/folder.py",
        "            if entry.is_symlink():",
        "            if False:",
        "a symbolic link in a model folder is not refused as one",
        "gating/test_folder.py",
    ),
    Mutant(
        "folder-takes-nan",
        "gating/folder.py",
        "if names := non_finite(state):",
        "if names := []:",
        "weights of NaN are received",
        "gating/test_folder.py",
    ),
    Mutant(
        "architecture-takes-remote-code",
        "gating/config_json.py",
        "for key in _REMOTE_CODE if key in entry):",
        "for key in _REMOTE_CODE if False):",
        "a configuration that names code to run is read",
        "gating/test_architecture_choice.py",
    ),
    Mutant(
        "html-not-escaped",
        "gating/documents/markup.py",
        "html.escape(visible(text, limit), quote=True)",
        'html.escape("") + visible(text, limit)',
        "text of a stranger is read as HTML",
        "gating/test_html.py gating/test_golden.py",
    ),
    Mutant(
        "wording-shows-controls",
        "gating/documents/wording.py",
        "plain = character.isprintable() and n_marks <= _MOST_MARKS",
        "plain = n_marks <= _MOST_MARKS",
        "control characters reach the reader",
        "gating/test_wording.py",
    ),
    Mutant(
        "sarif-failure-is-a-pass",
        "gating/documents/sarif.py",
        '"fail": ("fail", "error"),',
        '"fail": ("pass", "none"),',
        "dashboards show a failed rule as passed",
        "gating/test_formats.py gating/test_golden.py",
    ),
    Mutant(
        "in-toto-attests-received",
        "gating/documents/in_toto.py",
        "sanitized_weights(report) if passed else received_weights(report)",
        "received_weights(report)",
        "the weights as received are attested as passed",
        "gating/test_formats.py gating/test_golden.py",
    ),
    Mutant(
        "cyclonedx-audit-before",
        "gating/documents/cyclonedx.py",
        'sanitized", files, weights, report["audit"]["after"])',
        'sanitized", files, weights, report["audit"]["before"])',
        "the sanitized model carries the figures of the received one",
        "gating/test_formats.py gating/test_golden.py",
    ),
    Mutant(
        "markdown-takes-html",
        "gating/documents/markdown.py",
        "[\\\\`*\\[\\]<>|~$&@\\#]",
        "[\\\\`*\\[\\]|~$&@\\#]",
        "HTML of a stranger stands in the summary",
        "gating/test_markdown.py gating/test_golden.py",
    ),
    Mutant(
        "png-sides-swapped",
        "gating/documents/png.py",
        '">IIBBBBB", width, height,',
        '">IIBBBBB", height, width,',
        "width and height of a picture are swapped",
        "gating/test_png.py",
    ),
    Mutant(
        "charts-upside-down",
        "gating/documents/charts.py",
        "return _BOTTOM - share * (_BOTTOM - _TOP)",
        "return _TOP + share * (_BOTTOM - _TOP)",
        "the curve is upside down",
        "gating/test_html.py gating/test_golden.py",
    ),
    # intake
    Mutant(
        "tensors-with-holes",
        "intake/tensors.py",
        "        if entry.start != end:",
        "        if entry.start < end:",
        "bytes that belong to no tensor are let through",
        "intake/test_tensors.py",
    ),
    Mutant(
        "tensors-size-unchecked",
        "intake/tensors.py",
        "    if size > largest:",
        "    if False:",
        "a file larger than the model needs is read",
        "intake/test_tensors.py",
    ),
    Mutant(
        "json-doubled-keys",
        "intake/tensors.py",
        "    if len(result) != len(pairs):",
        "    if False:",
        "of a doubled key the last one counts",
        "intake/test_tensors.py",
    ),
    Mutant(
        "identify-pickle-unseen",
        "intake/identify.py",
        "        if named and opcode.name in _CALLS:",
        "        if False:",
        "a pickle that calls something passes for another file",
        "intake/test_identify.py",
    ),
    Mutant(
        "pickle-any-global",
        "intake/pickles.py",
        "            if named and named not in _GLOBALS:",
        "            if False:",
        "a pickle may name any function",
        "intake/test_pickles.py",
    ),
    # ops
    Mutant(
        "count-asr-over-target-class",
        "ops/reference/count_outcomes.py",
        "eligible & (predicted == wanted)",
        "predicted == wanted",
        "attack success counts samples of the target class too",
        "ops/test_count_outcomes.py",
    ),
    Mutant(
        "count-nan-is-right",
        "ops/reference/count_outcomes.py",
        "predicted = torch.where(nan, -1, logits.argmax(1))",
        "predicted = torch.where(nan, labels, logits.argmax(1))",
        "NaN counts as right",
        "ops/test_count_outcomes.py",
    ),
    Mutant(
        "cross-entropy-sum-for-mean",
        "ops/reference/cross_entropy.py",
        "        grad = grad / n\n",
        "",
        "the gradient of a mean is that of the sum",
        "ops/test_cross_entropy.py",
    ),
    Mutant(
        "gather-crop-not-keyed-by-epoch",
        "ops/augmented_images.py",
        "draw(seed, indices, epoch, STREAM_AUGMENT)",
        "draw(seed, indices, 0, STREAM_AUGMENT)",
        "crops are the same in each epoch",
        "ops/test_gather_augment.py",
    ),
    Mutant(
        "occlude-pastes-itself",
        "ops/reference/occlude.py",
        "images[partner[:, r]], filling)",
        "images, filling)",
        "an image is pasted over itself",
        "ops/test_occlude.py",
    ),
    Mutant(
        "dither-shares-swapped",
        "ops/reference/stamping.py",
        "(1, -1, 3 / 16), (0, 1, 7 / 16)",
        "(1, -1, 7 / 16), (0, 1, 3 / 16)",
        "errors spread in the wrong shares",
        "ops/test_stamp_trigger.py",
    ),
    Mutant(
        "triton-count-last-of-equals",
        "ops/triton/count_outcomes.py",
        "larger = tile_largest > largest",
        "larger = tile_largest >= largest",
        "of equal logits the last tile wins",
        "ops/test_count_outcomes.py",
    ),
    Mutant(
        "triton-flip-inverted",
        "ops/triton/gather_augment.py",
        "(mirror >> 31) == 1",
        "(mirror >> 31) == 0",
        "the other images are mirrored",
        "ops/test_golden.py",
    ),
    Mutant(
        "dispatch-warns-each-time",
        "ops/dispatch.py",
        "        _warned = True",
        "        _warned = False",
        "the slow backend is reported at each call",
        "ops/test_dispatch.py",
    ),
    Mutant(
        "library-loss-unscaled",
        "ops/library.py",
        'if outer.ndim == 0 and outer.device.type == "cpu" and outer.item() == 1:',
        "if outer.ndim == 0:",
        "the gradient ignores what comes after the loss",
        "ops/test_cross_entropy.py",
    ),
    Mutant(
        "random-labels-skip",
        "ops/random_labels.py",
        "    return wrong + (wrong >= labels)",
        "    return wrong",
        "the true class is drawn",
        "ops/test_random_labels.py",
    ),
    Mutant(
        "normalization-bias-sign",
        "ops/normalization.py",
        "tuple(-m / s for m, s in pairs)",
        "tuple(m / s for m, s in pairs)",
        "the mean is added",
        "ops/test_normalization.py",
    ),
    # acceptance
    Mutant(
        "acceptance-by-the-estimate",
        "acceptance.py",
        "if pairs.highest_loss <= limit:",
        "if pairs.loss <= limit:",
        "ten held-out samples are enough",
        "test_acceptance.py",
    ),
    Mutant(
        "acceptance-two-sided",
        "acceptance.py",
        "both_sides = 2 * LEVEL - 1",
        "both_sides = LEVEL - 0.2",
        "the bound fails too often",
        "test_acceptance.py",
    ),
    Mutant(
        "acceptance-undecided-hides-refused",
        "acceptance.py",
        "any(check.tells for check in failed)",
        "all(check.tells for check in failed)",
        "a bad result is undecided if it also cannot be told",
        "test_acceptance.py",
    ),
    Mutant(
        "record-cut-short-passes",
        "record.py",
        "if share < FEWEST_RECOVERY_SHARE:",
        "if share < 0:",
        "seven steps of recovery are enough",
        "test_sanitize.py",
    ),
    Mutant(
        "record-draws-are-held-out",
        "record.py",
        "        if agree is False:\n            return",
        "        if False:\n            return",
        "augmented held-out samples are believed",
        "test_sanitize.py",
    ),
    Mutant(
        "holdout-is-trained-on",
        "data/holdout.py",
        "if name not in first]",
        "if True]",
        "what is held out is trained on too",
        "data/test_holdout.py test_sanitize.py",
    ),
    Mutant(
        "adapters-holds-out-draws",
        "data/adapters.py",
        "(source if plain is None else plain).read(",
        "source.read(",
        "eval_transform is not used",
        "data/test_holdout.py",
    ),
    Mutant(
        "sanitize-splits-copies",
        "sanitize.py",
        "identities=samples.identities(),",
        "identities=None,",
        "copies of a sample fall on both sides",
        "test_sanitize.py",
    ),
    Mutant(
        "sanitize-trains-what-guesses",
        "sanitize.py",
        "            if record.guesses is not None:",
        "            if False:",
        "a model that guesses is trained",
        "test_guessing.py",
    ),
    Mutant(
        "guessing-judges-the-map-on-its-samples",
        "guessing.py",
        "found, judged = order[::2], order[1::2]",
        "found, judged = order, order",
        "a map fitted to its samples looks good",
        "test_guessing.py",
    ),
    # top
    Mutant(
        "sanitize-returns-half-a-run",
        "sanitize.py",
        "returned = copied.finish() if record.stopped is None else _copy_of(model)",
        "returned = copied.finish()",
        "a run that broke off returns its weights",
        "test_sanitize.py",
    ),
    Mutant(
        "sanitize-measures-unrounded",
        "sanitize.py",
        "if rounded or run.final_counts is None else",
        "if run.final_counts is None else",
        "accuracy is measured before the rounding to half precision",
        "test_report.py",
    ),
    Mutant(
        "sanitize-takes-poisoned-data",
        "data/holdout.py",
        "    if isinstance(samples, PoisonedSet):",
        "    if False:",
        "a poisoned set passes for clean data",
        "test_sanitize_bad_input.py",
    ),
    Mutant(
        "evaluate-rates-swapped",
        "evaluate.py",
        "Rate(t.n_hit, t.n_eligible), Rate(t.n_restored, t.n_eligible)",
        "Rate(t.n_restored, t.n_eligible), Rate(t.n_hit, t.n_eligible)",
        "attack success and robust accuracy are swapped",
        "test_evaluate.py",
    ),
    Mutant(
        "metrics-wilson-centre",
        "metrics.py",
        "center = (p + z2 / (2 * n)) / (1 + z2 / n)",
        "center = (p + z2 / n) / (1 + z2 / n)",
        "Wilson's interval is off its centre",
        "test_metrics.py",
    ),
    Mutant(
        "metrics-one-tail",
        "metrics.py",
        "tail = (1 - level) / 2 / n_looks",
        "tail = (1 - level) / n_looks",
        "exact intervals are too short",
        "test_metrics.py audits/test_bounds.py",
    ),
    Mutant(
        "record-fidelity-of-the-best",
        "record.py",
        "asr_after=max(a for _, a in rates)",
        "asr_after=min(a for _, a in rates)",
        "Fidelity counts the weakest trigger",
        "test_report.py",
    ),
    Mutant(
        "record-budget-off-by-one",
        "acceptance.py",
        "is_back = n_lost <= allowed",
        "is_back = n_lost < allowed",
        "a loss within the budget is not accepted",
        "test_sanitize.py",
    ),
    Mutant(
        "report-writes-nan",
        "report.py",
        "json.dumps(self, indent=2, allow_nan=False, ensure_ascii=False)",
        "json.dumps(self, indent=2, ensure_ascii=False)",
        "a report holds NaN, which is no JSON",
        "test_report.py",
    ),
    Mutant(
        "report-leaves-partial-files",
        "report.py",
        "        os.unlink(temporary)\n",
        "",
        "a failed write leaves its temporary file",
        "test_report.py",
    ),
    Mutant(
        "model-files-size-unchecked",
        "models/folder.py",
        "        if file_size(file) > max_bytes:",
        "        if False:",
        "a description of any size is read",
        "models/test_folder.py",
    ),
    Mutant(
        "cli-exit-zero",
        "cli.py",
        "return EXIT_OK if result.accepted else EXIT_NOT_ACCEPTED",
        "return EXIT_OK",
        "a model that was not accepted ends in 0",
        "test_cli.py",
    ),
    Mutant(
        "cli-prints-escapes",
        "terminal.py",
        "c if c.isprintable() else ascii(c)[1:-1] for c in text",
        "c for c in text",
        "terminal escapes of a stranger reach the terminal",
        "test_cli.py gating/test_gate_cli.py",
    ),
    Mutant(
        "launch-keeps-the-working-folder",
        "launch.py",
        "(entry and os.path.realpath(entry) != here)",
        "entry",
        "modules are looked for in the working folder",
        "gating/test_isolation.py",
    ),
    Mutant(
        "supervisor-passes-the-environment-on",
        "supervisor.py",
        'if name in _KEPT or name.startswith("LC_")',
        "if True",
        "hooks of the environment reach the run",
        "gating/test_isolation.py",
    ),
    Mutant(
        "supervisor-leaves-orphans",
        "supervisor.py",
        "while self.adopts and (left",
        "while False and (left",
        "what the operator's code started outlives the run",
        "gating/test_isolation.py",
    ),
    Mutant(
        "worker-is-not-confined",
        "worker.py",
        '    confine(folders, cuda=how["cuda"], isolation=state.current)\n',
        "",
        "a run may write and connect anywhere",
        "gating/test_isolation.py",
    ),
    Mutant(
        "plot-right-and-wanted-swapped",
        "plot.py",
        'kind = "right" if answer == true else',
        'kind = "right" if answer == wanted[column] else',
        "what the attacker wants is drawn as right",
        "test_plot.py",
    ),
    Mutant(
        "warmup-calls-back",
        "warmup.py",
        '"progress": False, "callbacks": (), ',
        '"progress": False, ',
        "the caller's callbacks see the warm-up",
        "test_warmup.py",
    ),
]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: ``"caught"``, ``"SURVIVED"`` or ``"does not apply"``; and by which test, or why not."""

    mutant: Mutant
    state: str
    seconds: float
    detail: str


def copy_of_tree(place: Path) -> Path:
    """The tracked files, as they are now, and the compiled extension."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [*filter(None, listed.split("\0")), *(str(p.relative_to(ROOT)) for p in ROOT.glob("seamfast/_native*.so"))]
    for name in names:
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    found = run_in(place, "-c", "import seamfast; print(seamfast.__file__)").stdout.strip()
    if Path(found) != place / "seamfast" / "__init__.py":
        sys.exit(f"Python imports seamfast from {found}; expected the copy in {place}")
    return place


def run_in(place: Path, *arguments: str, limit_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Python on the copy in ``place``."""
    data = os.environ.get("SEAMFAST_DATA") or str(ROOT.parent / "shared" / "data")
    env = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "SEAMFAST_DATA": data}
    return subprocess.run(
        [sys.executable, *arguments], cwd=place, env=env, capture_output=True, text=True, timeout=limit_s
    )


def run_tests(place: Path, files: list[str], limit_s: float | None = None) -> subprocess.CompletedProcess[str]:
    tests = [f"tests/{name}" for name in files]
    return run_in(place, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests, limit_s=limit_s)


def write(path: Path, text: str) -> None:
    """Replace a source file; its byte code, which Python knows by size and second of writing, is dropped."""
    path.write_text(text, encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def outcome_of(mutant: Mutant, place: Path) -> Outcome:
    """Plant the fault in the copy, run its tests, restore the file."""
    path = place / "seamfast" / mutant.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(mutant.old) != 1:
        return Outcome(mutant, "does not apply", 0.0, f"the text occurs {text.count(mutant.old)} times; expected once")
    start = time.perf_counter()
    try:
        write(path, text.replace(mutant.old, mutant.new))
        run = run_tests(place, mutant.tests.split(), _TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Outcome(mutant, "caught", time.perf_counter() - start, f"no end within {_TIMEOUT_S} s")
    finally:
        write(path, text)
    seconds = time.perf_counter() - start
    if run.returncode == 1:
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", run.stdout, re.MULTILINE)
        return Outcome(mutant, "caught", seconds, failed[1] if failed else "")
    if run.returncode == 0:
        return Outcome(mutant, "SURVIVED", seconds, mutant.breaks)
    last = (run.stdout + run.stderr).strip().splitlines()[-1:]
    return Outcome(mutant, "does not apply", seconds, f"pytest returned {run.returncode}: {''.join(last)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="ID", help="some of the mutants")
    parser.add_argument("--jobs", type=int, default=1, help="copies that run at a time (default: 1)")
    arguments = parser.parse_args()
    known = {mutant.id: mutant for mutant in MUTANTS}
    if len(known) < len(MUTANTS):
        parser.error("two mutants have one id")
    if unknown := [name for name in arguments.only or () if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}")
    chosen = [known[name] for name in arguments.only] if arguments.only else MUTANTS
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(arguments.jobs):
            copies.put(first := copy_of_tree(Path(folder).resolve() / str(number)))
        start = time.perf_counter()
        clean = run_tests(first, sorted({name for mutant in chosen for name in mutant.tests.split()}))
        if clean.returncode:
            print(clean.stdout[-5000:] + clean.stderr[-5000:])
            return 1
        print(f"the tests pass without a fault ({time.perf_counter() - start:.0f} s)", flush=True)

        def tried(mutant: Mutant) -> Outcome:
            place = copies.get()
            try:
                return outcome_of(mutant, place)
            finally:
                copies.put(place)

        outcomes = []
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for found in pool.map(tried, chosen):
                outcomes.append(found)
                print(f"{found.mutant.id:<34} {found.state:<14} {found.seconds:5.1f} s  {found.detail}", flush=True)
    bad = [found for found in outcomes if found.state != "caught"]
    print(f"{len(outcomes) - len(bad)} of {len(outcomes)} caught in {time.perf_counter() - start:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
