"""The TOFU suite as open-unlearning composes it, in PyTorch, in an environment of its own.

Every metric is a pass of its own over its set, in the order of the rows, 32 at a time, padded to
the longest of the batch; a model call gives logits of all positions; perturbed answers are scored
place by place of the list; answers are generated in fixed batches that end with their longest row.

    python evaluate.py MODEL_FOLDER SETS.json OUT.json THREADS DTYPE
"""

import json
import sys
import time

import torch
from rouge_score import rouge_scorer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH, LONGEST_ANSWER, IGNORED = 32, 200, -100


def encoded(tokenizer, record, answer):
    """Tokens and labels of a question and an answer."""
    prompt = tokenizer.encode(record["prompt"], add_special_tokens=False)
    whole = tokenizer.encode(
        record["prompt"] + answer + tokenizer.eos_token, add_special_tokens=False
    )
    labels = [IGNORED] * len(prompt) + whole[len(prompt) :]
    return whole, labels


def padded(rows, value, left=False):
    """Rows as one tensor, filled to the longest."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([f + r if left else r + f for r, f in zip(rows, fill, strict=True)])


def passes(model, tokenizer, records, answers):
    """Batches of (logits, labels) of one pass over a set."""
    for start in range(0, len(records), BATCH):
        part = zip(records[start : start + BATCH], answers[start : start + BATCH], strict=True)
        rows = [encoded(tokenizer, record, answer) for record, answer in part]
        tokens = padded([row[0] for row in rows], tokenizer.pad_token_id)
        labels = padded([row[1] for row in rows], IGNORED)
        mask = padded([[1] * len(row[0]) for row in rows], 0)
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=mask).logits
        yield logits[:, :-1].contiguous(), labels[:, 1:].contiguous()


def losses(model, tokenizer, records, answers):
    """Mean NLL of each answer."""
    found = []
    for logits, labels in passes(model, tokenizer, records, answers):
        each = cross_entropy(
            logits.transpose(-1, -2), labels, ignore_index=IGNORED, reduction="none"
        )
        found += (each.sum(-1) / (labels != IGNORED).sum(-1)).tolist()
    return torch.tensor(found)


def wrong_losses(model, tokenizer, records):
    """Mean over each record's perturbed answers, one pass for each place of the list."""
    count = len(records[0]["perturbed"])
    columns = [
        losses(model, tokenizer, records, [record["perturbed"][k] for record in records])
        for k in range(count)
    ]
    return torch.stack(columns)


def extraction_strength(model, tokenizer, records, answers):
    """Share of each answer that follows from its beginning."""
    found = []
    for logits, labels in passes(model, tokenizer, records, answers):
        best = torch.log_softmax(logits, -1).argmax(-1)
        for row in range(len(labels)):
            real = labels[row] != IGNORED
            said, true = best[row][real][:-1], labels[row][real][:-1]
            k = next((k for k in range(len(true)) if torch.equal(said[k:], true[k:])), len(true))
            found.append(1 - k / max(1, len(true)))
    return sum(found) / len(found)


def min_k(model, tokenizer, records, answers):
    """Minus the mean of the lowest 40 % of log-probabilities of each answer."""
    found = []
    for logits, labels in passes(model, tokenizer, records, answers):
        logp = torch.log_softmax(logits, -1)
        for row in range(len(labels)):
            real = labels[row] != IGNORED
            mine = logp[row][real].gather(1, labels[row][real][:, None])[:-1, 0]
            found.append(-mine.sort().values[: max(1, int(0.4 * len(mine)))].mean().item())
    return found


def rouge(model, tokenizer, records):
    """Mean ROUGE-L recall of greedy answers, and how many tokens were made."""
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    found, made = [], 0
    for start in range(0, len(records), BATCH):
        part = records[start : start + BATCH]
        rows = [tokenizer.encode(record["prompt"], add_special_tokens=False) for record in part]
        tokens = padded(rows, tokenizer.pad_token_id, left=True)
        mask = padded([[1] * len(row) for row in rows], 0, left=True)
        out = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=LONGEST_ANSWER,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
        )
        new = out[:, tokens.shape[1] :]
        made += int((new != tokenizer.pad_token_id).sum())
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        for record, text in zip(part, texts, strict=True):
            found.append(scorer.score(record["answer"], text.strip())["rougeL"].recall)
    return sum(found) / len(found), made


def true(records):
    """The right answers."""
    return [record["answer"] for record in records]


def suite(model, tokenizer, sets):
    """The default TOFU suite with the membership attack of privleak."""
    found, seconds = {}, {}

    def timed(name, call, *arguments):
        begin = time.perf_counter()
        value = call(model, tokenizer, *arguments)
        seconds[name] = time.perf_counter() - begin
        return value

    for name in ("forget", "retain", "real_authors", "world_facts"):
        records = sets[name]
        correct = timed(f"{name}_prob", losses, records, true(records))
        found[f"{name}_prob"] = torch.exp(-correct).mean().item()
        judged = correct
        if "paraphrased" in records[0]:
            answers = [record["paraphrased"] for record in records]
            judged = timed(f"{name}_paraphrase", losses, records, answers)
        wrong = timed(f"{name}_perturbed", wrong_losses, records)
        found[f"{name}_truth_ratio_mean"] = torch.exp(judged - wrong.mean(0)).mean().item()
        found[f"{name}_rouge"], made = timed(f"{name}_rouge", rouge, records)
        found[f"{name}_tokens_made"] = made
    forget, holdout = sets["forget"], sets["holdout"]
    found["extraction_strength"] = timed("strength", extraction_strength, forget, true(forget))
    members = timed("min_k forget", min_k, forget, true(forget))
    others = timed("min_k holdout", min_k, holdout, true(holdout))
    pairs = [float(a < b) + 0.5 * float(a == b) for a in members for b in others]
    found["mia_min_k_auc"] = sum(pairs) / len(pairs)
    return found, seconds


def main():
    """Read, evaluate, write."""
    folder, sets, out, threads, dtype = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with open(sets) as file:
        given = json.load(file)
    begin, cpu = time.perf_counter(), time.process_time()
    found, seconds = suite(model, tokenizer, given)
    total = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    about = {"torch": torch.__version__, "metrics": found, "passes": seconds, **total}
    with open(out, "w") as file:
        json.dump(about, file, indent=1)


if __name__ == "__main__":
    main()
