"""Training steps as open-unlearning composes them, in PyTorch, in an environment of its own.

A step is four micro-batches of eight rows of each role, drawn and tokenised when they are needed,
each half padded to its own longest row; every term is a forward pass of its own over the logits of
all positions, with labels, so that transformers computes its loss too; a reference is a second
model that runs at every micro-batch; then clipping to 1, AdamW, linear decay.

    python train.py MODEL_FOLDER ROWS.json METHOD THREADS DTYPE

Reads numbers of steps from standard input, takes them, and answers each with a line of JSON:
seconds, the processor's seconds, and real tokens. At the end of input it tells its peak of resident
memory.
"""

import copy
import json
import random
import resource
import sys
import time

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

MICRO, ACCUMULATION, IGNORED = 8, 4, -100
BETA, MARGIN, SIMNPO_BETA, UNDIAL_BETA = 0.1, 0.0, 4.5, 10.0
LAYER, COEFFICIENT, RETAIN_WEIGHT = 2, 2.0, 1200.0
REFERENCE = ("npo", "kl", "undial", "dpo", "rmu")


class Rows:
    """A set's rows, tokenised whenever one is asked for."""

    def __init__(self, rows, tokenizer, answer):
        self.rows, self.tokenizer, self.answer = rows, tokenizer, answer

    def __getitem__(self, index):
        row, tokenizer = self.rows[index], self.tokenizer
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        text = row["prompt"] + row[self.answer] + tokenizer.eos_token
        whole = tokenizer.encode(text, add_special_tokens=False)
        return whole, [IGNORED] * len(prompt) + whole[len(prompt) :]

    def batch(self, indices):
        """Padded to the longest, and how many tokens are real."""
        some = [self[index] for index in indices]
        longest = max(len(ids) for ids, _ in some)
        real = sum(len(ids) for ids, _ in some)
        pad = self.tokenizer.pad_token_id
        tokens = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in some])
        labels = torch.tensor([own + [IGNORED] * (longest - len(own)) for _, own in some])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in some])
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}, real


def sequence_nll(model, batch):
    """Sum of each row's losses, and the model's output with its own loss."""
    out = model(**batch)
    labels = batch["labels"][:, 1:].contiguous()
    logits = out.logits[:, :-1].contiguous()
    each = cross_entropy(logits.transpose(-1, -2), labels, ignore_index=IGNORED, reduction="none")
    return each.sum(-1), (labels != IGNORED).sum(-1), out


def ratio_loss(model, reference, lose, win=None):
    """NPO's forget term, or DPO's where there is a row to prefer."""
    with torch.no_grad():
        lose_before = sequence_nll(reference, lose)[0]
        win_before = sequence_nll(reference, win)[0] if win else None
    ratio = sequence_nll(model, lose)[0] - lose_before
    if win:
        ratio = ratio - (sequence_nll(model, win)[0] - win_before)
    return -2 / BETA * logsigmoid(BETA * ratio).mean()


def kl_to(model, reference, batch):
    """Forward KL over all positions, and the retain pass that is not used."""
    model(**batch)
    with torch.no_grad():
        before = log_softmax(reference(**batch).logits, -1).flatten(0, 1)
    now = log_softmax(model(**batch).logits, -1).flatten(0, 1)
    return kl_div(now, before, reduction="batchmean", log_target=True)


def self_distillation(model, reference, batch):
    """UNDIAL's forget term: towards the reference with the label's logit lowered, all positions."""
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        target = reference(**batch).logits[:, :-1].clone()
        row, place = torch.meshgrid(*map(torch.arange, labels.shape), indexing="ij")
        target[row, place, labels] -= UNDIAL_BETA  # an ignored label counts from the end, as there
        target = target.softmax(-1)
    now = model(**batch).logits[:, :-1]
    return cross_entropy(now.flatten(0, 1), target.flatten(0, 1))


class Activations:
    """The output of a layer of a model that is run whole."""

    def __init__(self, model):
        self.found = None
        model.model.layers[LAYER].register_forward_hook(self._keep)

    def _keep(self, module, inputs, output):
        self.found = output[0] if isinstance(output, tuple) else output


def misdirection(model, reference, seen, seen_before, vector, forget, retain):
    """RMU's two terms."""

    def distance(batch, here, target):
        kept = (batch["labels"] != IGNORED).float()
        each = (here - target).square().mean(-1)
        return ((each * kept).sum(-1) / kept.sum(-1)).mean()

    model(**forget)
    first = distance(forget, seen.found, vector)
    model(**retain)
    with torch.no_grad():
        reference(**retain)
    return first + RETAIN_WEIGHT * distance(retain, seen.found, seen_before.found)


def losses(method, model, reference, seen, vector):
    """The loss of a micro-batch, by method."""
    if method == "rmu":
        return lambda forget, retain, alternate: misdirection(
            model, reference, *seen, vector, forget, retain
        )

    def simnpo(forget):
        total, counts, _ = sequence_nll(model, forget)
        return -2 / SIMNPO_BETA * logsigmoid(SIMNPO_BETA * (total / counts - MARGIN)).mean()

    terms = {
        "graddiff": lambda forget, _: -model(**forget).loss,
        "kl": lambda forget, _: -model(**forget).loss,
        "simnpo": lambda forget, _: 0.125 * simnpo(forget),
        "npo": lambda forget, _: ratio_loss(model, reference, forget),
        "undial": lambda forget, _: self_distillation(model, reference, forget),
        "dpo": lambda forget, win: ratio_loss(model, reference, forget, win),
    }

    def loss(forget, retain, alternate):
        kept = kl_to(model, reference, retain) if method == "kl" else model(**retain).loss
        weight = 0 if method == "undial" else 1  # run all the same
        return terms[method](forget, alternate) + weight * kept

    return loss


def main():
    """Read, answer, tell."""
    folder, rows, method, threads, dtype = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    draw = random.Random(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    reference = copy.deepcopy(model).eval() if method in REFERENCE else None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with open(rows) as file:
        given = json.load(file)
    forget, retain = (Rows(given[name], tokenizer, "answer") for name in ("forget", "retain"))
    refusing = Rows(given["forget"], tokenizer, "refusal")
    owned = list(model.parameters())
    seen, vector = None, None
    if method == "rmu":
        seen = Activations(model), Activations(reference)
        vector = torch.rand(model.config.hidden_size)
        vector = vector / vector.norm() * COEFFICIENT
        owned = [model.model.layers[k].mlp.down_proj.weight for k in range(LAYER - 2, LAYER + 1)]
    optimizer = torch.optim.AdamW(owned, lr=1e-5, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 1e4))
    loss_of = losses(method, model, reference, seen, vector)
    order = []

    def step():
        real = 0
        for _ in range(ACCUMULATION):
            if len(order) < MICRO:
                order[:] = draw.sample(range(len(forget.rows)), len(forget.rows))
            mine = [order.pop() for _ in range(MICRO)]
            others = [draw.randrange(len(retain.rows)) for _ in range(MICRO)]
            first, count = forget.batch(mine)
            second, more = retain.batch(others)
            third, extra = refusing.batch(mine) if method == "dpo" else (None, 0)
            real += count + extra + (0 if method == "undial" else more)  # of no use there
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = loss_of(first, second, third) / ACCUMULATION
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.zero_grad()
        return real

    for line in sys.stdin:
        begin, cpu, real = time.perf_counter(), time.process_time(), 0
        for _ in range(int(line)):
            real += step()
        spent = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
        print(json.dumps({**spent, "tokens": real}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_kib": peak, "torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
