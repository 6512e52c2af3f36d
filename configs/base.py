"""Every field and its default: the protocol of the paper (section 2.1). The other configs change this one.

    python train.py --config=configs/base.py --workdir=runs/base

trains the LayerNorms of bert-base-uncased on RTE over the paper's seven learning rates and three seeds.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.name = "google-bert/bert-base-uncased"  # hub id, or a folder in the hub's layout
    config.model.pooling = "pooler"  # pooler | cls | mean
    config.model.dtype = "float32"  # of products: float32 | bfloat16; norms, losses and state are float32

    config.data = ConfigDict()
    # Hub id, or a folder in the same layout, or of columns or JSON lines for words, or synthetic, or nltk (pos alone).
    config.data.path = ""  # empty: the task's own, nyu-mll/glue, nltk for pos, lhoestq/conll2003 for ner
    config.data.eval_split = ""  # empty: the task's own development split(s)

    config.tasks = ("rte",)  # cola sst2 mrpc stsb qqp mnli qnli rte; pos ner
    config.settings = ("layernorms",)  # what trains besides the classifier: see the README's table
    config.rules = ConfigDict()  # settings of your own: name -> (("regex", "trainable" | "frozen"), ...)

    config.seeds = (0, 1, 2)
    config.learning_rates = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
    config.epochs = 0  # 0: the paper's (full 5; else 10 for sst2, qqp, mnli, qnli and 20 for the rest)
    config.batch_size = 16  # examples a step, over all devices
    config.max_length = 128  # tokens an example; pairs are cut longest first
    config.max_train_examples = 0  # 0: all; else a fixed random part
    config.packing = True  # several examples a row; the same examples a step, and no other result than plain rows
    config.frozen_dropout = True  # False: none below the first trained parameter, which is then computed once for all
    config.report_epoch = "last"  # last | best; both are stored
    config.save_minutes = 10.0  # between two saves inside an epoch, which is saved at its end anyway; 0: only then
    config.save_deltas = "best"  # what runs have trained: best (the selected rate, all seeds) | all | none
    config.train_pooler = False  # whether the pooler trains beside every setting
    config.schedule = "linear"  # linear (to zero) | constant, after the warm-up
    config.head_init = "normal"  # normal | truncated_normal | zeros, with the checkpoint's initializer_range

    config.optimizer = ConfigDict()
    config.optimizer.eps = 1e-6
    config.optimizer.epsilon_form = "adam"  # adam | keras (eps divided by sqrt(1 - b2^t))
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0  # decoupled (AdamW)
    config.optimizer.clip_norm = 0.0  # 0: no clipping; else of all trained scalars together
    config.optimizer.warmup_ratio = 0.1
    config.optimizer.head_learning_rate = 0.0  # 0: the run's own rate

    config.outliers = ConfigDict()
    config.outliers.pool = "pooled"  # over scale and bias pooled | scale | bias | each (N/2 of both)
    config.outliers.norms = "both"  # both | a (attention's) | f (feed-forward's)

    config.random = ConfigDict()
    config.random.count = 0  # 0: as many as layernorms
    config.random.scope = "all"  # all | encoder
    config.random.per_seed = True  # False: one mask for all seeds

    config.bitfit = ConfigDict()
    config.bitfit.scope = "blocks"  # blocks | all (embeddings' norm and pooler too)
    return config.lock()
