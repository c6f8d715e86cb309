"""Tests of experiments/runs/text_work.py; language_test.py and preferences_test.py train by it."""

from kullback.experiments.runs import plans, text_work, unchanged
from kullback.lm import data, gemma, tasks, tokenizer, tuning

SUMS = tasks.arithmetic(tasks.Arithmetic(digits=1, num_train=20, num_test=5))


def test_both_splits_are_read_and_told_in_the_configuration():
    bpe = tokenizer.train_bpe(SUMS.texts("train"), 300)
    learning = tuning.Config(max_prompt_length=6, max_new_tokens=3, overlong="drop")
    limits = text_work.limits(learning, gemma.PRESETS["tiny"])
    assert (limits.max_length, limits.max_prompt_length, limits.overlong) == (9, 6, "drop")
    assert limits.vocab_size == gemma.PRESETS["tiny"].vocab_size
    splits = text_work.read_splits(SUMS.examples, bpe, limits, 2)
    assert splits.train and splits.test and {*splits.train}.isdisjoint(splits.test)
    details = splits.details()
    assert details["rule"] == 2 and {*details} == {"rule", "train", "test"}
    assert details["train"]["rows"] == 20 and details["test"]["rows"] == 5


def test_other_rows_of_the_same_count_are_told():
    bpe = tokenizer.train_bpe(SUMS.texts("train"), 300)
    splits = text_work.read_splits(SUMS.examples, bpe, data.Limits(), 2)
    first, *rest = splits.train
    (_, *answer) = first.completion
    other = first._replace(completion=(first.completion[0] + 1, *answer))
    plan = plans.Plan(agent="sft", environment="tokens/arithmetic", steps=1)
    before = {"data": splits.details()}
    for train, count in (([first, *rest], 0), ([other, *rest], 1), ([*rest, first], 1)):
        now = {"data": splits._replace(train=train).details()}
        said = list(unchanged.differences(plan, now, before))
        assert len(said) == count and all(x.startswith("data.train.sha256 was ") for x in said)
