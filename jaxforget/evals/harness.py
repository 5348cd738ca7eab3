"""lm-evaluation-harness asks our models: its three kinds of request, each as one packed pass.

Nothing of that package is imported before `adapter` is called; `Asked` works without it.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxforget.data.sets import TokenisedSet
from jaxforget.data.tokenise import starts_with_bos
from jaxforget.engine.errors import UserError, did_you_mean
from jaxforget.evals.suites.suite import Judged
from jaxforget.evals.teacher_forced import TokenTable, score_set

_OPTIONS = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")

type Window = tuple[np.ndarray, int]
"""(token ids, index of the first that is scored, at least 1)."""


class Asked:
    """Answers to lists of requests; a request is anything whose `args` are a tuple.

    Attributes:
      judged: the model, and the most tokens of one example; its template is not used.
      batch_size: prompts generated at a time.
      max_new_tokens: longest answer where a request does not say.
      seed: of sampling, where a request asks for it.
    """

    def __init__(
        self, judged: Judged, *, batch_size: int = 32, max_new_tokens: int = 256, seed: int = 0
    ) -> None:
        self.judged, self.batch_size = judged, batch_size
        self.max_new_tokens, self.seed = max_new_tokens, seed

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, is it the likeliest one?) of each.

        Args:
          requests: args are (context, continuation); what is longer than `max_length` loses the
            beginning of its context.
        Raises:
          UserError: a continuation without tokens, or longer than `max_length`.
        """
        windows = [self._pair(*request.args) for request in requests]
        if not windows:
            return []
        table = self._scored(windows, share_prompts=True)
        assert table.hit is not None
        bounds = table.offsets[1:-1]
        sums = [float(part.astype(np.float64).sum()) for part in np.split(table.logp, bounds)]
        greedy = [bool((part == 1).all()) for part in np.split(table.hit, bounds)]
        return list(zip(sums, greedy, strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probability of each whole text in nats, every token with all the context there is.

        Args:
          requests: args are (text,).
        """
        windows: list[Window] = []
        owner: list[int] = []
        for index, request in enumerate(requests):
            found = rolling(self._begun(self._ids(request.args[0])), self.judged.max_length)
            windows += found
            owner += [index] * len(found)
        if not windows:
            return [0.0] * len(requests)
        table = self._scored(windows)
        sums = [part.astype(np.float64).sum() for part in np.split(table.logp, table.offsets[1:-1])]
        return np.bincount(owner, sums, len(requests)).tolist()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the model writes after each context, before the first stop string.

        Args:
          requests: args are (context, options); options: `until` (text or several),
            `max_gen_toks`, and with `do_sample` `temperature`, `top_p`, `top_k`. What is longer
            than `max_length` loses the beginning of its context.
        Raises:
          UserError: another option, or a context without tokens.
        """
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[self._how(request.args[1])].append(index)
        texts = [""] * len(requests)
        for (longest, temperature, top_p, top_k), members in groups.items():
            prompts = [self._prompt(requests[index].args[0], longest) for index in members]
            made = self.judged.lm.generate(
                self.judged.params,
                prompts,
                max_new_tokens=longest,
                batch_size=self.batch_size,
                key=jax.random.key(self.seed) if temperature else None,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
            )
            ids = [tokens.tolist() for tokens in made]
            decoded = self.judged.lm.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for index, text in zip(members, decoded, strict=True):
                texts[index] = before(text, requests[index].args[1].get("until", ()))
        return texts

    def _how(self, options: Mapping[str, Any]) -> tuple[int, float, float, int]:
        """(most tokens, temperature, top p, top k) of a request."""
        for name in options:
            if name not in _OPTIONS:
                near = did_you_mean(name, _OPTIONS)
                raise UserError(f"harness: no generation option {name!r} here. {near}")
        longest = int(options.get("max_gen_toks") or self.max_new_tokens)
        warm = float(options.get("temperature") or 0.0)
        if "do_sample" in options:
            warm = (warm or 1.0) if options["do_sample"] else 0.0
        if not warm:
            return longest, 0.0, 1.0, 0
        return longest, warm, float(options.get("top_p", 1.0)), int(options.get("top_k", 0))

    def _prompt(self, context: str, longest: int) -> np.ndarray:
        room = self.judged.max_length - longest
        if room < 1:
            raise UserError(
                f"harness: {longest} new tokens leave no room for a question within max_length "
                f"{self.judged.max_length}; raise max_length"
            )
        ids = self._ids(context)
        return (ids if len(ids) else self._begun(ids))[-room:]

    def _pair(self, context: str, continuation: str) -> Window:
        """Both as tokens of one text; white space between them belongs to the continuation."""
        bare = context.rstrip()
        ids = self._ids(context + continuation)
        first = len(self._ids(bare))
        if not bare:
            ids = self._begun(self._ids(context + continuation))
            first = 1
        count = len(ids) - first
        longest = self.judged.max_length
        if not 0 < count <= longest:
            raise UserError(
                f"harness: a continuation has {count} tokens, allowed is 1 to max_length "
                f"{longest}: {continuation!r:.60}"
            )
        kept = ids[-(longest + 1) :]
        return kept, len(kept) - count

    def _ids(self, text: str) -> np.ndarray:
        """Tokens of a text, begun as the tokenizer's convention wants it."""
        tokenizer = self.judged.lm.tokenizer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = [tokenizer.bos_token_id] if starts_with_bos(tokenizer) else []
        return np.asarray(begin + ids if ids[:1] != begin else ids, np.int32)

    def _begun(self, ids: np.ndarray) -> np.ndarray:
        """Tokens behind one that begins a text: their own, else the one that ends texts."""
        tokenizer = self.judged.lm.tokenizer
        if starts_with_bos(tokenizer):
            return ids
        first = tokenizer.bos_token_id
        first = tokenizer.eos_token_id if first is None else first
        if first is None:
            raise UserError("harness: the tokenizer has no token to begin a text with")
        return np.concatenate([np.asarray([first], np.int32), ids])

    def _scored(self, windows: Sequence[Window], *, share_prompts: bool = False) -> TokenTable:
        return score_set(
            self.judged.lm.score,
            self.judged.params,
            as_set(windows),
            stats=True,
            share_prompts=share_prompts,
            counted=lambda done, total: self.judged.counted("scoring", done, total),
        )


def rolling(ids: np.ndarray, longest: int) -> list[Window]:
    """A text in windows of at most `longest` inputs, each token scored once.

    Args:
      ids: int32 `[n + 1]`, the first of which is not scored.
      longest: >= 1.
    Returns:
      Windows of `longest` inputs where the text has them: the last one scores few tokens, but
      these with as much context as the others.
    """
    found = []
    for start in range(0, len(ids) - 1, longest):
        stop = min(start + longest, len(ids) - 1)
        begin = max(0, stop - longest)
        found.append((ids[begin : stop + 1], start - begin + 1))
    return found


def as_set(windows: Sequence[Window]) -> TokenisedSet:
    """Windows as examples; each holds two tokens at least."""
    sizes = [len(ids) - 1 for ids, _ in windows]
    return TokenisedSet(
        tokens=np.concatenate([ids[:-1] for ids, _ in windows]),
        targets=np.concatenate([ids[1:] for ids, _ in windows]),
        mask=np.concatenate([np.arange(1, len(ids)) >= first for ids, first in windows]),
        offsets=np.cumsum([0, *sizes], dtype=np.int64),
        rows=np.arange(len(windows)),
        fingerprint="",
    )


def before(text: str, stops: str | Sequence[str] | None) -> str:
    """A text up to the first of some stop strings."""
    stops = [stops] if isinstance(stops, str) else stops or []
    return text[: min((text.find(stop) for stop in stops if stop and stop in text), default=None)]


def adapter(judged: Judged, **options: Any) -> Any:
    """The model as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`.

    Args:
      judged: see `Asked`; `options` are its further arguments.
    Raises:
      UserError: the package is not installed.
    """
    try:
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"the harness cannot be used ({error}); install it: pip install 'jaxforget[harness]'"
        ) from error
    asked = Asked(judged, **options)

    class Model(LM):
        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            return asked.loglikelihood(requests)

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            return asked.loglikelihood_rolling(requests)

        def generate_until(self, requests: Any) -> list[str]:
            return asked.generate_until(requests)

    return Model()


def flat(results: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """The harness's results by task as (metrics, 95 % intervals), named task_metric.

    A filter other than "none" ends the name.
    """
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for task, found in results.items():
        for key, value in found.items():
            metric, comma, how = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = "_".join([task, metric, *([] if how == "none" else [how])])
            values[name] = float(value)
            error = found.get(f"{metric}_stderr,{how}")
            if isinstance(error, int | float) and math.isfinite(error):
                intervals[name] = (value - 1.96 * error, value + 1.96 * error)
    return values, intervals
