"""PyTorch's side of the comparison: transformers' BertForSequenceClassification and torch.optim.Adam."""

import math

import numpy as np
import torch
import transformers

from lnflax import bert, rules
from tests import tiny
from tests.parity import cases


def build(case, kind=transformers.BertForSequenceClassification):
    """The model of a case in evaluation mode, its body read by transformers itself where there is a checkpoint."""
    _, flat = cases.weights(case)
    state = {name: torch.tensor(leaf) for name, leaf in tiny.foreign_state(flat).items()}
    shared = {"num_labels": case.outputs, "attn_implementation": "eager"}
    if case.model == "minilm":
        transformers.logging.set_verbosity_error()  # the head is new, as we know
        transformers.logging.disable_progress_bar()
        model = kind.from_pretrained(cases.minilm_folder(), **shared)
        head = {name: leaf for name, leaf in state.items() if name.startswith("classifier.")}
        model.load_state_dict(head, strict=False)
    else:
        model = kind(transformers.BertConfig(**shared))
        model.load_state_dict(state)
    return model.eval()


def logits(model, case, batch):
    """Logits of rows with one example each; without the pooler by hand from the hidden states."""
    attended = torch.tensor(batch.example_ids > 0)
    inputs = {
        "input_ids": torch.tensor(batch.tokens, dtype=torch.long),
        "token_type_ids": torch.tensor(batch.token_types, dtype=torch.long),
        "attention_mask": attended.long(),
    }
    if case.pooling == "pooler":
        return model(**inputs).logits
    hidden = model.bert(**inputs).last_hidden_state
    if case.pooling == "cls":
        return model.classifier(hidden[:, 0])
    share = attended[..., None].float()
    return model.classifier((hidden * share).sum(1) / share.sum(1))


def loss(scores, targets):
    """What transformers computes: cross-entropy, or squared error of the one output."""
    if scores.shape[1] == 1:
        return torch.nn.functional.mse_loss(scores[:, 0], torch.tensor(targets.label))
    return torch.nn.functional.cross_entropy(scores, torch.tensor(targets.label, dtype=torch.long))


def by_path(model, case, what):
    """Our paths and layout for the parameters of a model; `what` takes a parameter to its values or gradient."""
    config, _ = cases.weights(case)
    own = dict(model.named_parameters())
    leaves = {}
    for path in rules.flatten(bert.parameter_shapes(config)):
        leaf = what(own[tiny.foreign(path)]).detach().numpy()
        leaves[path] = leaf.T if path.endswith("/kernel") else leaf
    return leaves


def gradients(case):
    """The same as `cases.gradients`, one example a row."""
    model, batch = build(case), cases.batch(case, "plain")
    scores = logits(model, case, batch)
    loss(scores, batch.targets).backward()
    return scores.detach().numpy(), by_path(model, case, lambda parameter: parameter.grad)


def tagged_gradients():
    """The same of `cases.tagged_batch`, by BertForTokenClassification, one example a row."""
    case, batch = cases.Case("minilm", "cls", 3), cases.tagged_batch("plain")
    model = build(case, transformers.BertForTokenClassification)
    scores = model(
        input_ids=torch.tensor(batch.tokens, dtype=torch.long),
        token_type_ids=torch.tensor(batch.token_types, dtype=torch.long),
        attention_mask=torch.tensor(batch.example_ids > 0).long(),
    ).logits[batch.targets.row, batch.targets.position]
    loss(scores, batch.targets).backward()
    return scores.detach().numpy(), by_path(model, case, lambda parameter: parameter.grad)


def ten_steps(setting):
    """The same as `cases.ten_steps`."""
    case = cases.Case("minilm", "pooler", 3)
    model = build(case)
    labels = dict(cases.settings_of(cases.weights(case)[0], setting))
    trained = [path for path, label in labels.items() if label != "frozen"]
    names = {tiny.foreign(path) for path in trained}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(moving, lr=cases.TEN_STEPS[setting], betas=(0.9, 0.999), eps=1e-6)
    warmup = math.ceil(cases.WARMUP_RATIO * cases.STEPS)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, warmup, cases.STEPS)
    for batch in cases.training_batches():
        optimizer.zero_grad()
        loss(logits(model, case, batch), batch.targets).backward()
        optimizer.step()
        scheduler.step()
    leaves = by_path(model, case, lambda parameter: parameter)
    return {path: leaves[path] for path in trained}


def rates(rate, steps):
    """The learning rate of every update of a schedule as transformers makes it, float64 `[steps]`."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    warmup = math.ceil(cases.WARMUP_RATIO * steps)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(out)
