import pytest

from jaxforget.data.records import Record
from jaxforget.data.template import Template, render, renderer
from jaxforget.engine.errors import UserError

LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }} {{ date_string }}]\n\n"
    "{{ m.content.strip() }}<|im_end|>{% endfor %}"
)
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
DROPS = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
UPPER = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }};{% endfor %}"


def record(prompt, answer):
    return Record(prompt, answer, 3, "a.json")


def test_plain_and_verbatim_texts_hold_the_answer_where_they_say(tokenizer):
    plain = render(Template(), tokenizer, record("Who?", "Ann"))
    assert plain.text == "Question: Who?\nAnswer: Ann"
    assert plain.text[plain.start : plain.stop] == "Ann"
    verbatim = render(Template(kind="none"), tokenizer, record("Once ", "upon"))
    assert (verbatim.text, verbatim.start, verbatim.stop) == ("Once upon", 5, 9)


@pytest.mark.parametrize("kind", ["plain", "chat", "none"])
def test_a_record_without_prompt_is_its_answer_verbatim(tokenizer, kind):
    assert render(Template(kind=kind), tokenizer, record("", " text\n")) == (" text\n", 0, 6)


@pytest.mark.parametrize("template", [None, LLAMA_LIKE, SPACED])
@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Who?", "Ann"),
        ("Is it Ann?", "Ann"),
        ("Ann Ann", "Ann"),
        ("user", "assistant"),
        ("q", "  padded \n"),
        ("q", "<|im_end|>"),
        ("⁅answer⁆", "ß 😀"),
    ],
)
def test_a_chat_answer_is_located_even_where_it_occurs_before(
    new_tokenizer, template, prompt, answer
):
    tokenizer = new_tokenizer(**({} if template is None else {"chat_template": template}))
    text, start, stop = render(Template(kind="chat"), tokenizer, record(prompt, answer))
    assert text[start:stop].strip() == answer.strip()
    # what stands before does not hold the answer's turn: it is the prompt rendered alone
    prefix, first, _ = render(Template(kind="chat"), tokenizer, record(prompt, "Z"))
    assert text[:start].rstrip() == prefix[:first].rstrip()


def test_chat_has_a_fixed_date_unless_told(new_tokenizer):
    tokenizer = new_tokenizer(chat_template=LLAMA_LIKE)
    assert "26 Jul 2024" in render(Template(kind="chat"), tokenizer, record("q", "a")).text
    told = Template(kind="chat", variables={"date_string": "10 Apr 2025"})
    assert "10 Apr 2025" in render(told, tokenizer, record("q", "a")).text
    assert told.identity() != Template(kind="chat").identity()


def test_system_message_comes_first(tokenizer):
    text = render(Template(kind="chat", system="Be brief."), tokenizer, record("q", "a")).text
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


@pytest.mark.parametrize(
    ("chat_template", "system", "message"),
    [
        (None, None, "no chat template. Allowed for it: plain, none"),
        (NO_SYSTEM, "s", "refuses a system, a user and an assistant message: no system"),
        (DROPS, None, "drops the assistant's message"),
    ],
)
def test_unusable_chat_templates_are_refused(new_tokenizer, chat_template, system, message):
    tokenizer = new_tokenizer(chat_template=chat_template)
    with pytest.raises(UserError, match=message):
        renderer(Template(kind="chat", system=system), tokenizer)


def test_an_unknown_kind_is_refused(tokenizer):
    with pytest.raises(UserError, match="template.kind is 'chatml'. Did you mean 'chat'"):
        renderer(Template(kind="chatml"), tokenizer)  # pyright: ignore[reportArgumentType]


def test_a_chat_template_that_changes_the_answer_is_refused_by_row(new_tokenizer):
    tokenizer = new_tokenizer(chat_template=UPPER.replace("m.content | upper", "m.content[:9]"))
    with pytest.raises(UserError, match="row 3 of a.json.*cannot be located"):
        render(Template(kind="chat"), tokenizer, record("q", "an answer too long"))
