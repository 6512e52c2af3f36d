import dataclasses
import functools
import io
import json

import numpy as np
import pytest
from rich.console import Console

from lnflax import bert, masks, rules, settings, trained
from lnflax.bert import BertConfig
from lnflax.settings import MaskRule, Options, Setting

OPTIONS = Options(
    outlier_pool="pooled",
    outlier_norms="both",
    random_count=0,
    random_scope="all",
    random_per_seed=True,
    bitfit_scope="blocks",
    train_pooler=False,
)
TINY = BertConfig(31, 8, 2, 2, 16, 10, 2)
UNCASED = BertConfig(30522, 768, 12, 12, 3072, 512, 2)
# Embeddings 31 · 8 + 10 · 8 + 2 · 8 + 16; a block 4 · 72 + 16 + 144 + 136 + 16; pooler 72.
BODY = 360 + 2 * 600 + 72


@functools.cache
def shapes(config):
    return bert.parameter_shapes(config)


def report(name, config=TINY, seeds=(0, 1), seen=None, params=None, **options):
    setting = settings.make_setting(
        name,
        dataclasses.replace(OPTIONS, **options),
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        user_rules={},
    )
    return report_of(setting, params or shapes(config), seeds, seen, options)


def report_of(setting, params, seeds=(0, 1), seen=None, options=None):
    labels = rules.label(params, setting.rules, setting.name)
    drawn = [masks.choose(setting.mask, params, labels, seed) for seed in seeds]
    return trained.report(
        "rte", setting, params, labels, drawn, seeds=seeds, model_name="tiny", seen=seen, options=options
    )


def test_the_content_of_trained_json():
    found = report("ln_a")
    path = "bert/encoder/layer/1/attention/output/LayerNorm/scale"
    ln_a = {path: [8, 8] for path in (path, path.replace("scale", "bias"))}
    assert {key: value for key, value in found.items() if key not in ("parameters", "groups")} == {
        "format": 1,
        "task": "rte",
        "setting": "ln_a",
        "model": {"name": "tiny", "sha256": None},
        "seeds": [0, 1],
        "body": BODY,
        "head": 18,
        "trained": 32,
        "ratio": 32 / BODY,
        "with_head": {"trained": 50, "ratio": 50 / BODY},
        "with_embeddings_norm": {"trained": 48, "ratio": 48 / BODY},
        "reachable": [32, 32],
        "rules": [
            [r"bert/encoder/layer/\d+/attention/output/LayerNorm/(scale|bias)", "trainable"],
            ["bert/.*", "frozen"],
            ["classifier/.*", "trainable"],
        ],
        "masks": None,
    }
    by_path = {parameter["path"]: parameter for parameter in found["parameters"]}
    assert list(by_path) == sorted(rules.flatten(shapes(TINY)))
    assert by_path[path] == {"path": path, "shape": [8], "size": 8, "label": "trainable", "trained": [8, 8]}
    assert by_path["classifier/kernel"]["trained"] == [16, 16]
    assert by_path["bert/pooler/dense/kernel"] == {
        "path": "bert/pooler/dense/kernel",
        "shape": [8, 8],
        "size": 64,
        "label": "frozen",
        "trained": [0, 0],
    }
    moving = {p: by_path[p]["trained"] for p in by_path if "/1/" in p and by_path[p]["label"] != "frozen"}
    assert moving == ln_a
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_groups_of_everything():
    assert report("full")["groups"] == {
        "word_embeddings": [248, 248],
        "position_embeddings": [80, 80],
        "token_type_embeddings": [16, 16],
        "embeddings_norm": [16, 16],
        "query": [144, 144],
        "key": [144, 144],
        "value": [144, 144],
        "attention_output": [144, 144],
        "ln_a": [32, 32],
        "intermediate": [288, 288],
        "ffn_output": [272, 272],
        "ln_f": [32, 32],
        "pooler": [72, 72],
        "classifier": [18, 18],
    }


@pytest.mark.parametrize(
    ("name", "options", "count", "with_norm"),
    [
        ("frozen", {}, 0, 16),
        ("layernorms", {}, 64, 80),
        ("full", {}, BODY, BODY),
        ("bitfit", {}, 2 * 72, 2 * 72 + 16),
        ("bitfit", {"bitfit_scope": "all"}, 2 * 72 + 16, 2 * 72 + 24),  # the norm's bias already trains
        ("random", {}, 64, 64),
        ("random", {"random_scope": "encoder"}, 64, 80),
        ("random_norms_3", {}, 12, 28),
    ],
)
def test_counts_with_and_without(name, options, count, with_norm):
    found = report(name, **options)
    assert (found["trained"], found["ratio"]) == (count, count / BODY)
    assert found["with_head"] == {"trained": count + 18, "ratio": (count + 18) / BODY}
    assert found["with_embeddings_norm"] == {"trained": with_norm, "ratio": with_norm / BODY}


def test_nobody_has_to_guess_at_bert_base():
    found = report("layernorms", UNCASED, seeds=(0,))
    assert (found["body"], found["head"], found["trained"]) == (109_482_240, 1538, 36_864)
    assert f"{100 * found['ratio']:.3f}" == "0.034"
    assert found["with_head"] == {"trained": 38_402, "ratio": 38_402 / 109_482_240}
    assert found["with_embeddings_norm"] == {"trained": 38_400, "ratio": 38_400 / 109_482_240}
    assert [f"{100 * found[key]['ratio']:.3f}" for key in ("with_head", "with_embeddings_norm")] == ["0.035"] * 2


def test_random_counts_are_equal_in_sum_and_differ_by_leaf():
    found = report("random", seeds=(0, 1, 2), random_per_seed=True)
    body = [parameter["trained"] for parameter in found["parameters"] if parameter["path"].startswith("bert/")]
    assert np.sum(body, axis=0).tolist() == [64, 64, 64]
    assert any(len(set(counts)) > 1 for counts in body)
    assert np.sum([v for k, v in found["groups"].items() if k != "classifier"], axis=0).tolist() == [64, 64, 64]
    assert found["masks"]["kind"] == "random"
    assert found["masks"]["options"] == {"random_per_seed": True}
    assert len(set(found["masks"]["sha256"])) == 3
    assert found["reachable"] is None


def test_outliers_read_the_values():
    params = rules.unflatten({path: np.zeros(leaf.shape) for path, leaf in rules.flatten(shapes(TINY)).items()})
    params["bert"]["encoder"]["layer"]["1"]["output"]["LayerNorm"]["bias"][3:5] = 1
    found = report("outliers_2", params=params)
    counts = {parameter["path"]: parameter["trained"] for parameter in found["parameters"]}
    assert counts["bert/encoder/layer/1/output/LayerNorm/bias"] == [2, 2]
    assert counts["bert/encoder/layer/0/output/LayerNorm/scale"] == [2, 2]
    assert found["trained"] == 8
    assert found["masks"]["sha256"][0] == found["masks"]["sha256"][1]


def rows(size, *used):
    return np.isin(np.arange(size), used)


SEEN = {
    "word_embeddings": rows(31, 0, 5, 7),
    "position_embeddings": rows(10, 0, 1, 2, 3),
    "token_type_embeddings": rows(2, 0),
}


def test_what_can_be_reached_of_whole_embeddings():
    assert report("full", seen=SEEN)["reachable"] == [BODY - (28 + 6 + 1) * 8] * 2


def test_what_can_be_reached_under_a_mask():
    params = {"bert": {"embeddings": {"word_embeddings": {"embedding": np.zeros((4, 2))}}, "x": np.zeros(3)}}
    setting = Setting("random", ((".*", "masked"),), MaskRule("random", 4))
    labels = rules.label(params, setting.rules)
    drawn = [
        {
            "bert": {
                "embeddings": {"word_embeddings": {"embedding": np.array(words, bool)}},
                "x": np.array(others, bool),
            }
        }
        for words, others in (
            ([[1, 0], [1, 1], [0, 0], [0, 0]], [1, 0, 0]),  # seen, unseen, unseen; 1 other
            ([[0, 0], [0, 0], [1, 1], [0, 0]], [1, 1, 0]),
        )
    ]
    given = {"word_embeddings": np.array([True, False, True, False])}
    found = trained.report("rte", setting, params, labels, drawn, seeds=(0, 1), model_name="m", seen=given)
    assert found["reachable"] == [2, 4]
    assert found["groups"] == {"word_embeddings": [3, 2], "other": [1, 2]}


@pytest.mark.parametrize("seen", [None, {}, {**SEEN, "position_embeddings": None}])
def test_what_can_be_reached_is_unknown_only_where_embeddings_train(seen):
    assert report("full", seen=seen)["reachable"] is None
    assert report("layernorms", seen=seen)["reachable"] == [64, 64]
    assert report("random", seen=seen, random_scope="encoder")["reachable"] == [64, 64]


def test_any_other_tree():
    params = {"encoder": {"w": np.zeros((2, 3)), "b": np.zeros(3)}, "classifier": {"w": np.zeros(2)}}
    setting = Setting("mine", (("encoder/b", "trainable"), ("encoder/.*", "frozen"), ("classifier/.*", "trainable")))
    found = report_of(setting, params)
    assert (found["body"], found["head"], found["trained"], found["ratio"]) == (9, 2, 3, 3 / 9)
    assert found["groups"] == {"classifier": [2, 2], "other": [3, 3]}


def test_masks_that_do_not_fit_the_seeds():
    params = shapes(TINY)
    setting = Setting("random", (("bert/.*", "masked"), (".*", "trainable")), MaskRule("random", 5))
    labels = rules.label(params, setting.rules)
    drawn = [masks.choose(MaskRule("random", size), params, labels, 0) for size in (5, 6)]
    with pytest.raises(ValueError, match="1 masks for 2 seeds"):
        trained.report("rte", setting, params, labels, drawn[:1], seeds=(0, 1), model_name="m")
    with pytest.raises(ValueError, match=r"the seeds train \[5, 6\] scalars; they should be equal"):
        trained.report("rte", setting, params, labels, drawn, seeds=(0, 1), model_name="m")


def shown(reports, width=100):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(trained.terminal_table(reports))
    return console.file.getvalue()


def test_the_table():
    text = shown([report("layernorms"), report("full"), report("frozen")])
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "with with",
        "setting leaves trained ratio head emb. norm reachable",
        "layernorms 8 64 3.922 % 5.025 % 4.902 % 64",
        "full 39 1,632 100 % 101.103 % 100 % unknown",
        "frozen 0 0 0 % 1.103 % 0.98 % 0",
    ]


def test_the_table_says_what_a_random_mask_hit():
    found = report("random", seen=SEEN, seeds=(0, 1, 2))
    text = " ".join(shown([report("layernorms"), found]).split())
    words = found["groups"]["word_embeddings"]
    assert f"rte random, drawn: word_embeddings {min(words)}–{max(words)}, " in text
    assert f"{min(found['reachable'])}–{max(found['reachable'])} rte random" in text
    assert "classifier" not in text


def test_the_table_names_the_task_where_there_are_several():
    text = shown([report("ln_a"), {**report("ln_a"), "task": "cola"}])
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [
        ["task", "setting"],
        ["rte", "ln_a"],
        ["cola", "ln_a"],
    ]


def test_a_narrow_terminal_loses_no_digit():
    assert "109,482,240" in shown([report("full", UNCASED)], width=80)
    assert "…" not in shown([report("full", UNCASED)], width=40)
