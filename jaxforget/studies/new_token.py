"""What a method with a token of its own needs: a grown model, and the sets around the token."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxforget.config import UnlearnConfig
from jaxforget.data.alternates import GENERATED, refusals_by_prompt
from jaxforget.data.records import Record
from jaxforget.data.sets import TokenisedSet
from jaxforget.data.sources import load_records
from jaxforget.data.template import Template
from jaxforget.data.token_sets import token_questions, token_refusals
from jaxforget.edits.material import EARLIER, FORMS, PLAIN, QUESTIONS, NewToken
from jaxforget.engine.errors import UserError
from jaxforget.models.language_model import LanguageModel
from jaxforget.models.vocabulary import with_tokens
from jaxforget.studies.common import longest
from jaxforget.studies.roles import refuse_strangers


def grown(lm: LanguageModel, token: NewToken, requests: int) -> tuple[LanguageModel, list[int]]:
    """The model with one new token a request, and their ids.

    Args:
      lm: the starting model.
      token: see `NewToken`.
      requests: how many there are.
    Raises:
      UserError: a token that the tokenizer has, or that is blank.
    """
    texts = [token.text, *(_numbered(token.text, number) for number in range(2, requests + 1))]
    try:
        found, ids = with_tokens(lm, texts)
    except UserError as error:
        raise UserError(f"method.token: {error}") from None
    return found, list(ids)


def _numbered(text: str, number: int) -> str:
    """ "[UNL]" -> "[UNL-2]"."""
    inside = len(text) > 2 and not (text[0].isalnum() or text[-1].isalnum())
    return f"{text[:-1]}-{number}{text[-1]}" if inside else f"{text}-{number}"


def token_sets(
    config: UnlearnConfig, token: NewToken, lm: LanguageModel, ids: Sequence[int]
) -> list[Mapping[str, TokenisedSet]]:
    """For every request the sets around its token, by role; see `NewToken`.

    Refusals are named by a hash of the question, or read from `alternate`. The chat form is the
    tokenizer's template; the plain form is the configured template, or question and answer alone
    where that is the chat template. Questions are asked in the configured one.

    Args:
      config: of the run.
      token: see `NewToken`.
      lm: the grown model.
      ids: of the requests' tokens.
    Raises:
      UserError: unreadable data, a record without a prompt, one that is too long, alternate
        answers that are no refusals or belong to other questions.
    """
    sources, made = [config.forget, *config.requests], []
    records = [load_records(source) for source in sources]
    plain, forms = _forms(config.template, lm)
    limit = longest(config, lm)
    for index, (some, own) in enumerate(zip(records, ids, strict=True)):
        refused = _refused(config, some)
        asked = {QUESTIONS: some}
        if index:
            asked[EARLIER] = [record for each in records[:index] for record in each]
        made.append(
            {
                PLAIN: token_refusals(refused, lm.tokenizer, [plain], own, max_length=limit),
                FORMS: token_refusals(refused, lm.tokenizer, forms, own, max_length=limit),
                **_questions(asked, config, token, lm, own),
            }
        )
    return made


def _refused(config: UnlearnConfig, records: Sequence[Record]) -> list[Record]:
    source = config.alternate
    if source is None or source.path == "refusals":
        return refusals_by_prompt(records)
    if source.path in GENERATED:
        raise UserError(
            f"alternate: {source.path!r} are no refusals; name a file of them, or leave it out"
        )
    found = load_records(source)
    refuse_strangers(records, found)
    return found


def _questions(
    asked: Mapping[str, Sequence[Record]],
    config: UnlearnConfig,
    token: NewToken,
    lm: LanguageModel,
    own: int,
) -> dict[str, TokenisedSet]:
    limit = longest(config, lm)
    return {
        role: token_questions(
            records,
            lm.tokenizer,
            config.template,
            own,
            neutral=token.neutral,
            max_length=limit,
        )
        for role, records in asked.items()
    }


def _forms(template: Template, lm: LanguageModel) -> tuple[Template, list[Template]]:
    """The plain form, and all forms."""
    plain = replace(template, kind="none") if template.kind == "chat" else template
    if not getattr(lm.tokenizer, "chat_template", None):
        return plain, [plain]
    return plain, [plain, replace(template, kind="chat")]
