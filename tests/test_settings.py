import dataclasses
import functools
import math

import pytest

from lnflax import bert, rules, settings
from lnflax.bert import BertConfig
from lnflax.errors import InputError
from lnflax.settings import MaskRule, Options
from lnflax.wording import ratio_percent

OPTIONS = Options("pooled", "both", 0, "all", random_per_seed=True, bitfit_scope="blocks", train_pooler=False)
TINY = BertConfig(31, 8, 2, 2, 16, 10, 2)
SMALL = BertConfig(30522, 384, 6, 12, 1536, 512, 2)
UNCASED = BertConfig(30522, 768, 12, 12, 3072, 512, 2)
CASED = dataclasses.replace(UNCASED, vocab_size=28996)
LARGE = BertConfig(30522, 1024, 24, 16, 4096, 512, 2)

EMBEDDINGS = [
    "bert/embeddings/LayerNorm/bias",
    "bert/embeddings/LayerNorm/scale",
    "bert/embeddings/position_embeddings/embedding",
    "bert/embeddings/token_type_embeddings/embedding",
    "bert/embeddings/word_embeddings/embedding",
]
POOLER = ["bert/pooler/dense/bias", "bert/pooler/dense/kernel"]
CLASSIFIER = ["classifier/bias", "classifier/kernel"]
ATTENTION = ("output/dense", "self/key", "self/query", "self/value")
MHA = [f"attention/{part}/{leaf}" for part in ATTENTION for leaf in ("bias", "kernel")]
FFN = ["intermediate/dense/bias", "intermediate/dense/kernel", "output/dense/bias", "output/dense/kernel"]
LN_A = ["attention/output/LayerNorm/bias", "attention/output/LayerNorm/scale"]
LN_F = ["output/LayerNorm/bias", "output/LayerNorm/scale"]
HALVES = ("intermediate/dense", "output/LayerNorm", "output/dense")
BITFIT = [f"{part}/bias" for part in ("attention/output/LayerNorm", *(f"attention/{a}" for a in ATTENTION), *HALVES)]


def blocks(names, numbers=(0, 1)):
    return [f"bert/encoder/layer/{i}/{name}" for i in numbers for name in names]


ENCODER = blocks(MHA + FFN + LN_A + LN_F)


@functools.cache
def shapes(config):
    return bert.parameter_shapes(config)


def make(name, config=TINY, user_rules=None, **options):
    return settings.make_setting(
        name,
        dataclasses.replace(OPTIONS, **options),
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        user_rules=user_rules or {},
    )


def by_label(name, config=TINY, user_rules=None, **options):
    """Paths by label: those that train whole, those under a mask."""
    setting = make(name, config, user_rules, **options)
    labels = rules.flatten(rules.label(shapes(config), setting.rules, name))
    return tuple([path for path, given in labels.items() if given == label] for label in ("trainable", "masked"))


def count(name, config, **options):
    """Trained scalars of the body, from shapes alone."""
    trainable, masked = by_label(name, config, **options)
    leaves = rules.flatten(shapes(config))
    total = sum(math.prod(leaves[path].shape) for path in trainable if path.startswith("bert/"))
    mask = make(name, config, **options).mask
    if mask is None:
        return total
    norms = {path.rpartition("/")[0] for path in masked}
    return total + mask.size * (1 if mask.kind == "random" else len(norms))


def body(config):
    return sum(
        math.prod(leaf.shape) for path, leaf in rules.flatten(shapes(config)).items() if path.startswith("bert/")
    )


@pytest.mark.parametrize(
    ("name", "whole", "masked"),
    [
        ("full", EMBEDDINGS + ENCODER + POOLER, []),
        ("frozen", [], []),
        ("mha", blocks(MHA), []),
        ("ffn", blocks(FFN), []),
        ("layernorms", blocks(LN_A + LN_F), []),
        ("ln_a", blocks(LN_A), []),
        ("ln_f", blocks(LN_F), []),
        ("bitfit", blocks(BITFIT), []),
        ("random", [], EMBEDDINGS + ENCODER + POOLER),
        ("single_norm_1", blocks(LN_A + LN_F, [0]), []),
        ("single_norm_2", blocks(LN_A + LN_F, [1]), []),
        ("outliers_4", [], blocks(LN_A + LN_F)),
        ("random_norms_4", [], blocks(LN_A + LN_F)),
    ],
)
def test_the_exact_paths_of_every_setting(name, whole, masked):
    found_whole, found_masked = by_label(name)
    assert found_whole == sorted(whole + CLASSIFIER)
    assert found_masked == sorted(masked)


@pytest.mark.parametrize(
    ("name", "options", "whole", "masked"),
    [
        ("bitfit", {"bitfit_scope": "all"}, [*blocks(BITFIT), EMBEDDINGS[0], POOLER[0]], []),
        ("random", {"random_scope": "encoder"}, [], ENCODER),
        ("random", {"train_pooler": True}, POOLER, EMBEDDINGS + ENCODER),
        ("frozen", {"train_pooler": True}, POOLER, []),
        ("full", {"train_pooler": True}, EMBEDDINGS + ENCODER + POOLER, []),
        ("bitfit", {"bitfit_scope": "all", "train_pooler": True}, [*blocks(BITFIT), EMBEDDINGS[0], *POOLER], []),
        ("outliers_4", {"outlier_norms": "a"}, [], blocks(LN_A)),
        ("outliers_4", {"outlier_norms": "f"}, [], blocks(LN_F)),
        ("outliers_4", {"outlier_pool": "scale"}, [], blocks([LN_A[1], LN_F[1]])),
        ("outliers_4", {"outlier_pool": "bias"}, [], blocks([LN_A[0], LN_F[0]])),
        ("outliers_4", {"outlier_pool": "bias", "outlier_norms": "f"}, [], blocks([LN_F[0]])),
        ("outliers_4", {"outlier_pool": "each"}, [], blocks(LN_A + LN_F)),
        ("random_norms_4", {"outlier_norms": "a"}, [], blocks(LN_A)),
    ],
)
def test_the_exact_paths_of_the_options(name, options, whole, masked):
    found_whole, found_masked = by_label(name, **options)
    assert found_whole == sorted(whole + CLASSIFIER)
    assert found_masked == sorted(masked)


@pytest.mark.parametrize(
    ("name", "options", "mask"),
    [
        ("layernorms", {}, None),
        ("random", {}, MaskRule("random", 64)),
        ("random", {"random_count": 7, "random_per_seed": False}, MaskRule("random", 7, per_seed=False)),
        ("outliers_16", {}, MaskRule("outliers", 16)),
        ("outliers_8", {"outlier_pool": "scale"}, MaskRule("outliers", 8, "scale")),
        ("random_norms_2", {"outlier_pool": "each"}, MaskRule("random_norms", 2, "each")),
        ("random_norms_2", {"random_per_seed": False}, MaskRule("random_norms", 2, per_seed=False)),
    ],
)
def test_mask_rules(name, options, mask):
    assert make(name, **options).mask == mask


COUNTS = {
    # name: (bert-base, its share uncased, its share cased, bert-large, its share)
    "frozen": (0, "0 %", "0 %", 0, "0 %"),
    "mha": (28_348_416, "25.893 %", "26.173 %", 100_761_600, "30.065 %"),
    "ffn": (56_669_184, "51.761 %", "52.321 %", 201_449_472, "60.109 %"),
    "layernorms": (36_864, "0.034 %", "0.034 %", 98_304, "0.029 %"),
    "ln_a": (18_432, "0.017 %", "0.017 %", 49_152, "0.015 %"),
    "ln_f": (18_432, "0.017 %", "0.017 %", 49_152, "0.015 %"),
    "bitfit": (101_376, "0.093 %", "0.094 %", 270_336, "0.081 %"),
    "random": (36_864, "0.034 %", "0.034 %", 98_304, "0.029 %"),
    "single_norm_1": (3_072, "0.0028 %", "0.0028 %", 4_096, "0.0012 %"),
    "single_norm_12": (3_072, "0.0028 %", "0.0028 %", 4_096, "0.0012 %"),
    "outliers_256": (6_144, "0.0056 %", "0.0057 %", 12_288, "0.0037 %"),
    "outliers_16": (384, "0.00035 %", "0.00035 %", 768, "0.00023 %"),
    "random_norms_256": (6_144, "0.0056 %", "0.0057 %", 12_288, "0.0037 %"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_from_shapes_alone(name):
    base, *shares, large, large_share = COUNTS[name]
    for config, share in zip((UNCASED, CASED), shares, strict=True):
        assert count(name, config) == base
        assert ratio_percent(base / body(config)) == share
    assert count(name, LARGE) == large
    assert ratio_percent(large / body(LARGE)) == large_share


@pytest.mark.parametrize(("config", "size"), [(UNCASED, 109_482_240), (CASED, 108_310_272), (LARGE, 335_141_888)])
def test_full_is_the_body(config, size):
    assert body(config) == count("full", config) == size


@pytest.mark.parametrize(
    ("config", "pooling", "size"),
    [
        (SMALL, "pooler", 22_713_216),
        (SMALL, "mean", 22_565_376),
        (CASED, "mean", 107_719_680),
        (CASED, "cls", 107_719_680),
        (UNCASED, "mean", 108_891_648),
    ],
)
def test_the_body_has_a_pooler_only_where_the_head_uses_it(config, pooling, size):
    config = dataclasses.replace(config, pooling=pooling)
    assert body(config) == count("full", config) == size


def test_the_options_change_counts():
    assert count("bitfit", UNCASED, bitfit_scope="all") == 102_912
    assert count("outliers_256", UNCASED, outlier_norms="a") == 12 * 256
    assert count("outliers_256", UNCASED, outlier_pool="scale") == 24 * 256
    assert count("outliers_256", UNCASED, outlier_pool="each") == 24 * 256
    assert count("random", UNCASED, random_count=1000) == 1000
    assert count("layernorms", UNCASED, train_pooler=True) == 36_864 + 590_592
    assert count("layernorms", SMALL) == count("random", SMALL) == 6 * 2 * 2 * 384


@pytest.mark.parametrize("name", [*settings.WHOLE, "random", "single_norm_2", "outliers_4", "random_norms_4"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_every_setting_holds_without_a_pooler(name, pooling):
    config = dataclasses.replace(TINY, pooling=pooling)
    whole, masked = by_label(name, config)
    assert not any("pooler" in path for path in whole + masked)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("layernorm", {}, "'layernorm' is not known; allowed are full, .*; did you mean 'layernorms'"),
        ("outlier_16", {}, "'outlier_16' is not known; .*; did you mean 'outliers_N'"),
        ("outliers_", {}, "'outliers_' is not known; .*; did you mean 'outliers_N'"),
        ("outliers_-4", {}, "'outliers_-4' is not known"),
        ("outliers_4.5", {}, "'outliers_4.5' is not known"),
        ("outliers_016", {}, "'outliers_016' is not known"),
        ("", {}, "'' is not known"),
        ("single_norm_7", {}, "'single_norm_7': the model has 6 blocks; allowed are single_norm_1 … single_norm_6"),
        ("single_norm_0", {}, "'single_norm_0': the model has 6 blocks"),
        ("outliers_5000", {}, "'outliers_5000': a LayerNorm has 768 scalars .*; allowed are 1 … 768"),
        ("outliers_0", {}, "'outliers_0': .* allowed are 1 … 768"),
        ("outliers_385", {"outlier_pool": "scale"}, "384 scalars with outliers.pool=scale; allowed are 1 … 384"),
        ("outliers_385", {"outlier_pool": "bias"}, "384 scalars with outliers.pool=bias"),
        ("outliers_15", {"outlier_pool": "each"}, "'outliers_15': .* N must be even"),
        ("random_norms_769", {}, "'random_norms_769': a LayerNorm has 768 scalars"),
        ("random_norms_3", {"outlier_pool": "each"}, "N must be even"),
    ],
)
def test_bad_names(name, options, message):
    with pytest.raises(InputError, match=f"^settings: .*{message}"):
        make(name, SMALL, **options)


def test_the_largest_numbers_that_fit():
    assert make("outliers_768", SMALL).mask.size == 768
    assert make("outliers_384", SMALL, outlier_pool="scale").mask.size == 384
    assert by_label("single_norm_6", SMALL)[0][:2] == blocks(LN_A, [5])


def test_a_config_adds_a_setting():
    own = {"last_values": [["bert/encoder/layer/1/attention/self/value/.*", "trainable"], ["bert/.*", "frozen"]]}
    own["last_values"].append(["classifier/.*", "trainable"])
    whole, masked = by_label("last_values", user_rules=own)
    assert whole == [*blocks(MHA[-2:], [1]), *CLASSIFIER]
    assert masked == []


@pytest.mark.parametrize("name", ["full", "random", "single_norm_1", "outliers_16", "random_norms_2"])
def test_a_config_may_not_take_a_reserved_name(name):
    assert settings.is_reserved(name)
    with pytest.raises(InputError, match=f"rules: '{name}' is a setting of the paper; choose another name"):
        make(name, user_rules={name: [(".*", "trainable")]})


def test_names_that_are_free():
    assert not any(map(settings.is_reserved, ("mine", "outliers", "single_norm", "outliers_all", "full_2")))


def test_a_configs_setting_has_no_mask():
    with pytest.raises(
        InputError, match=r"rules\.mine: label 'masked' needs a mask; allowed here are trainable, frozen"
    ):
        make("mine", user_rules={"mine": [(".*", "masked")]})


def test_a_configs_own_name_is_among_the_hints():
    with pytest.raises(InputError, match="did you mean 'my_norms'"):
        make("my_norm", user_rules={"my_norms": [(".*", "trainable")]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outlier_pool": "pool"}, "outliers.pool: 'pool' is not known; allowed are pooled, scale, bias, each"),
        ({"outlier_norms": "c"}, "outliers.norms: 'c' is not known; allowed are both, a, f"),
        ({"random_scope": "encodr"}, "random.scope: 'encodr' is not known; .* did you mean 'encoder'"),
        ({"bitfit_scope": "block"}, "bitfit.scope: 'block' is not known; .* did you mean 'blocks'"),
        ({"random_count": -1}, "random.count: -1; allowed are 0"),
    ],
)
def test_bad_options(options, message):
    settings.check_options(OPTIONS)
    with pytest.raises(InputError, match=message):
        settings.check_options(dataclasses.replace(OPTIONS, **options))
