"""pipeline("text-generation") beyond plain texts: chats, fill-in-the-middle, code up to stop patterns, cut prompts."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conftest import data_path, toy_folder

import pyllm
from pyllm.errors import ContextLengthError, InvalidOptionError, PromptError, TokenizerError, UnsupportedModelError
from pyllm.pipelines.infilling import FORMATS, Infiller
from pyllm.tokenization import Tokenizer, load_tokenizer

TEMPLATE = (
    "{% for tool in tools or [] %}({{ tool.function.name }}){% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<{{ speaker or 'assistant' }}>{% endif %}"
)
CHAT = [{"role": "user", "content": "It was"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "So"}]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}
TOOL = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def generator() -> Any:
    return pyllm.pipeline("text-generation")


@pytest.fixture(scope="module")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The default model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(pyllm.default_model(), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return pyllm.pipeline("text-generation", folder, **GREEDY)


def continued(chatter: Any, text: str) -> str:
    return chatter(text, add_special_tokens=False, return_full_text=False)[0]["generated_text"]


def test_a_chat_comes_back_with_the_answer(chatter: Any) -> None:
    answer = continued(chatter, "<user>It was\n<assistant>a\n<user>So\n<assistant>")
    assert chatter(CHAT) == [{"generated_text": [*CHAT, {"role": "assistant", "content": answer}]}]
    assert chatter(CHAT, return_full_text=False) == [{"generated_text": answer}]
    assert chatter([CHAT, CHAT[:1]])[0] == chatter(CHAT)
    assert list(chatter(iter([CHAT, CHAT[:1]]))) == chatter([CHAT, CHAT[:1]])
    ids = chatter(CHAT, return_tensors=True)[0]["generated_token_ids"]
    assert chatter.tokenizer.decode(ids).endswith("<user>So\n<assistant>" + answer)
    assert len(chatter(CHAT, num_return_sequences=2, num_beams=2)) == 2


def test_a_chat_that_ends_with_the_assistant_is_continued(chatter: Any) -> None:
    begun = CHAT[:2]
    more = continued(chatter, "<user>It was\n<assistant>a")
    assert chatter(begun) == [{"generated_text": [begun[0], {"role": "assistant", "content": "a" + more}]}]
    anew = chatter(begun, continue_final_message=False)[0]["generated_text"]
    assert anew == [
        *begun,
        {"role": "assistant", "content": continued(chatter, "<user>It was\n<assistant>a\n<assistant>")},
    ]
    user = chatter(CHAT[:1], continue_final_message=True)[0]["generated_text"]
    assert user == [{"role": "user", "content": "It was" + continued(chatter, "<user>It was")}]


def test_what_a_template_is_told(chatter: Any) -> None:
    found = chatter(CHAT[:1], tools=[TOOL], tokenizer_encode_kwargs={"speaker": "wizard"}, return_full_text=False)
    assert found[0]["generated_text"] == continued(chatter, "(weather)<user>It was\n<wizard>")


def test_wrong_chats(chatter: Any, generator: Any) -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        generator(CHAT)
    with pytest.raises(PromptError, match="message 1 is not"):
        chatter([CHAT[0], {"content": "no role"}])
    with pytest.raises(PromptError, match="message 0 is not"):
        chatter([{"role": "user"}])
    with pytest.raises(PromptError, match="must have text as its content to be continued, got list"):
        chatter([{"role": "assistant", "content": [{"type": "text", "text": "x"}]}])
    with pytest.raises(PromptError, match=r"input 1: .*tools go with chats, got a str"):
        chatter([CHAT, "text"], tools=[TOOL])
    with pytest.raises(InvalidOptionError, match=r"handle_long_generation must be 'hole'.*tools must be a list"):
        chatter(CHAT, tools=TOOL, handle_long_generation="cut")


def test_prompts_are_cut_only_when_asked(generator: Any) -> None:
    context = generator.model.max_positions
    text = "It was the best of times. " * 200
    with pytest.raises(ContextLengthError):
        generator(text, max_new_tokens=8)
    ids = generator.tokenizer.encode(text)
    kept = generator.tokenizer.decode(ids[8 - context :])
    for options in ({"truncation": True}, {"handle_long_generation": "hole"}):
        record = generator(text, max_new_tokens=8, do_sample=False, **options)[0]
        assert record["truncated_tokens"] == len(ids) - (context - 8)
        assert record["generated_text"] == text + generator(kept, max_new_tokens=8, do_sample=False)[0][
            "generated_text"
        ].removeprefix(kept)
    assert "truncated_tokens" not in generator("short", max_new_tokens=8, truncation=True)[0]
    with pytest.raises(PromptError, match="ask for fewer new tokens"):
        generator(text, max_new_tokens=context, truncation=True)


def scripted(prompt: Sequence[int], script: Sequence[int]) -> Callable[[int, Any], list[int]]:
    """A prefix_allowed_tokens_fn under which the model can only write the script, again and again."""
    return lambda _, ids: [script[(len(ids) - len(prompt)) % len(script)]]


def test_code_ends_at_stop_patterns(generator: Any) -> None:
    """The model is made to write HumanEval's solution and then another definition, of which nothing may be left."""
    tokenizer = generator.tokenizer
    stops = ["\ndef ", "\nclass ", "\n\n\n", "\nif __name__"]
    lines = gzip.decompress(data_path("corpora/humaneval/HumanEval.jsonl.gz").read_bytes()).decode().splitlines()
    tails = ["\ndef check(x):\n    pass\n", "\nclass Check:\n    pass\n", "\n\nprint(1)\n", "\nif __name__ == 'main':"]
    tested = 0
    for index, task in enumerate(map(json.loads, lines)):
        solution = task["canonical_solution"]
        prompt, script = tokenizer.encode(task["prompt"]), tokenizer.encode(solution + tails[index % 4])
        if len(prompt) + len(script) > generator.model.max_positions or any(stop in solution for stop in stops):
            continue
        options = {"max_new_tokens": len(script), "do_sample": False, "stop_strings": stops}
        options["prefix_allowed_tokens_fn"] = scripted(prompt, script)
        wanted = solution + tails[index % 4]
        wanted = wanted[: min(wanted.index(stop) for stop in stops if stop in wanted)]
        assert wanted.rstrip() == solution.rstrip()
        found = generator(task["prompt"], include_stop_str_in_output=False, **options)[0]["generated_text"]
        assert found == task["prompt"] + wanted
        whole = generator(task["prompt"], return_full_text=False, **options)[0]["generated_text"]
        assert any(whole.startswith(wanted + stop) for stop in stops)
        assert len(whole) < len(solution + tails[index % 4])
        tested += 1
        if tested == 4:
            return
    raise AssertionError("fewer than 4 tasks fit the context")


def test_unscripted_code_ends_at_a_blank_line(generator: Any) -> None:
    task = json.loads(gzip.decompress(data_path("corpora/humaneval/HumanEval.jsonl.gz").read_bytes()).split(b"\n")[1])
    options = {"max_new_tokens": 60, "seed": 1, "return_full_text": False}
    prompt = task["prompt"].rstrip()
    free = generator(prompt, **options)[0]["generated_text"]
    assert "\n\n" in free.lstrip()
    stopped = generator(prompt, stop_strings=["\n\n"], include_stop_str_in_output=False, **options)
    assert stopped[0]["generated_text"] == free[: free.index("\n\n")]


def letters_tokenizer(folder: Path, special: Sequence[str], ordinary: Sequence[str] = ()) -> Tokenizer:
    """Byte-level letters, <|endoftext|> (0), and tokens of a fill-in-the-middle format."""
    byte_level = [chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"]
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE({"<|endoftext|>": 0, **{c: i + 1 for i, c in enumerate(byte_level)}}, [])
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>", *special])
    core.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in ordinary])
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder, {"vocab_size": 131})


@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if not each.spaced])
def test_formats_are_chosen_by_the_vocabulary(tmp_path: Path, name: str) -> None:
    known = FORMATS[name]
    tokenizer = letters_tokenizer(tmp_path, [known.prefix, known.suffix, known.middle, known.ends[-1]])
    infiller = Infiller.of(tokenizer)
    assert infiller.format is known
    ids = infiller.prompt("def f(x):\n", " y")
    assert ids == tokenizer.encode(f"{known.prefix}def f(x):\n{known.suffix} y{known.middle}")
    assert tokenizer.token_to_id(known.ends[-1]) in infiller.ends
    with pytest.raises(PromptError, match="must not spell the tokens"):
        infiller.prompt("x" + known.suffix, "y")


def test_code_llama_puts_no_space_before_the_suffix(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abxy()"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    replace = tokenizers.normalizers.Replace(" ", "\u2581")
    core.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("\u2581"), replace])
    core.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.add_tokens(
        [tokenizers.AddedToken(f"\u2581<{name}>", normalized=False) for name in ("PRE", "SUF", "MID", "EOT")]
    )
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}')
    tokenizer = load_tokenizer(tmp_path, {"vocab_size": len(pieces) + 4})
    infiller = Infiller.of(tokenizer)
    found = [tokenizer.id_to_token(id) for id in infiller.prompt("a(", "x) y")]
    assert found == ["<s>", "\u2581<PRE>", *"\u2581a(", "\u2581<SUF>", *"x)\u2581y", "\u2581<MID>"]
    assert tokenizer.token_to_id("\u2581<EOT>") in infiller.ends


def test_the_middle_is_filled_in(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_folder("gpt2"), folder)
    letters_tokenizer(folder, ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], ["<file_sep>"])
    fill = pyllm.pipeline("text-generation", folder, do_sample=False, max_new_tokens=20)
    tokenizer = fill.tokenizer
    ids = Infiller.of(tokenizer).prompt("f(", ") + 1")
    script = [*tokenizer.encode("x, y"), tokenizer.token_to_id("<file_sep>")]
    scripts = {"prefix_allowed_tokens_fn": scripted(ids, script)}
    assert fill("f(", suffix=") + 1", **scripts) == [{"generated_text": "f(x, y) + 1"}]
    assert fill("f(", suffix=") + 1", return_full_text=False, **scripts) == [{"generated_text": "x, y"}]
    assert fill(["f(", "f("], suffix=[") + 1", ") + 1"], **scripts) == [[{"generated_text": "f(x, y) + 1"}]] * 2
    assert list(fill(iter(["f("]), suffix=") + 1", **scripts)) == [[{"generated_text": "f(x, y) + 1"}]]
    found = fill("f(", suffix=") + 1", return_tensors=True, **scripts)[0]["generated_token_ids"]
    assert found == [*ids, *script]
    with pytest.raises(InvalidOptionError, match="suffix must be one for each prompt, got 1 for 2"):
        fill(["f(", "g("], suffix=["x"])
    with pytest.raises(PromptError, match="suffix goes with texts, got a chat"):
        fill([{"role": "user", "content": "f("}], suffix="x")
    with pytest.raises(PromptError, match="suffix as a list goes with a list of prompts"):
        fill("f(", suffix=["x"])


def test_models_that_cannot_fill_in_say_so(generator: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="suffix needs a model that fills in the middle"):
        generator("f(", suffix=")")
