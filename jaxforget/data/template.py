"""How a prompt and an answer become one text, and where in it the answer stands."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from jaxforget.data.records import Record
from jaxforget.engine.errors import UserError, did_you_mean

# a clock in a chat template would make every day's tokens differ
_FIXED_DATE = {"date_string": "26 Jul 2024"}
_KINDS = ("plain", "chat", "none")
_PROBE = "\u2045answer\u2046"


class Rendered(NamedTuple):
    """A text and its answer, `text[start:stop]` (character indices)."""

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class Template:
    """How records are rendered. A record with an empty prompt is always its answer, verbatim.

    Attributes:
      kind: "plain": question_tag + prompt + answer_tag + answer; "chat": the tokenizer's own
        chat template; "none": prompt + answer, verbatim.
      question_tag: stands before the prompt ("plain").
      answer_tag: stands between prompt and answer ("plain").
      end: the end-of-sequence token is appended and is a target; a chat template ends the turn
        itself.
      system: system message ("chat"); None: none is given.
      peer_compat: labels begin after as many tokens as the prompt has alone, and that is what is
        generated from, as in open-unlearning: where a token reaches over the boundary, or stands
        alone before it, first labels go missing or the prompt's last token is labelled (its issue
        195).
      variables: further variables of the chat template. `date_string` is set to a fixed day
        unless given, because some templates ask the clock.
    """

    kind: Literal["plain", "chat", "none"] = "plain"
    question_tag: str = "Question: "
    answer_tag: str = "\nAnswer: "
    end: bool = True
    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)
    peer_compat: bool = False

    def identity(self) -> str:
        """Canonical JSON of every field, for fingerprints."""
        fields = asdict(self)
        if not self.peer_compat:  # older than this option are fingerprints that are still right
            del fields["peer_compat"]
        return json.dumps(fields, sort_keys=True, default=str)


def is_chat(template: Template, record: Record) -> bool:
    """True where the chat template writes the special tokens of this record."""
    return template.kind == "chat" and record.prompt != ""


def render(template: Template, tokenizer: Any, record: Record) -> Rendered:
    """Text of one record; see `renderer`, which is cheaper for many."""
    return renderer(template, tokenizer)(record)


def renderer(template: Template, tokenizer: Any) -> Callable[[Record], Rendered]:
    """Function from records to texts.

    Args:
      template: see `Template`.
      tokenizer: transformers tokenizer; only its chat template is used here.
    Returns:
      Function of a record. It raises UserError where the chat template loses the answer.
    Raises:
      UserError: an unknown kind; "chat" without a chat template, or with one that refuses such
        messages.
    """
    if template.kind not in _KINDS:
        raise UserError(
            f"template.kind is {template.kind!r}. {did_you_mean(template.kind, _KINDS)}"
        )
    if template.kind == "chat":
        return _chat_renderer(template, tokenizer)

    def render_tags(record: Record) -> Rendered:
        before = record.prompt
        if template.kind == "plain" and record.prompt:
            before = f"{template.question_tag}{record.prompt}{template.answer_tag}"
        text = before + record.answer
        return Rendered(text, len(before), len(text))

    return render_tags


def _chat_renderer(template: Template, tokenizer: Any) -> Callable[[Record], Rendered]:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "template.kind is 'chat' but this tokenizer has no chat template. "
            "Allowed for it: plain, none."
        )
    probe = _chat(template, tokenizer, "question", _PROBE)
    if _PROBE not in probe:
        raise UserError("the chat template drops the assistant's message; use template.kind=plain")
    # what follows the answer does not depend on it, so the answer is located from the end
    tail = probe[probe.rfind(_PROBE) + len(_PROBE) :]

    def render_chat(record: Record) -> Rendered:
        if not record.prompt:
            return Rendered(record.answer, 0, len(record.answer))
        text = _chat(template, tokenizer, record.prompt, record.answer)
        answer, body = record.answer, text.removesuffix(tail)
        for kept in (answer, answer.rstrip(), answer.lstrip(), answer.strip()):
            if text.endswith(tail) and body.endswith(kept):
                return Rendered(text, len(body) - len(kept), len(body))
        start = text.rfind(answer.strip())
        if start < 0:
            raise UserError(
                f"row {record.row} of {record.source}: the chat template changes the answer "
                f"{answer!r:.60} so that it cannot be located; use template.kind=plain"
            )
        return Rendered(text, start, start + len(answer.strip()))

    return render_chat


def _chat(template: Template, tokenizer: Any, prompt: str, answer: str) -> str:
    import jinja2

    system = [] if template.system is None else [{"role": "system", "content": template.system}]
    messages = [
        *system,
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]
    variables = {**_FIXED_DATE, **template.variables}
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **variables)
    except jinja2.TemplateError as error:
        given = "a system, a user and an assistant" if system else "a user and an assistant"
        raise UserError(f"the chat template refuses {given} message: {error}") from error
