"""The trained vocabulary, loaded as a user of transformers loads it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

from fastbert.cli.app import app
from fastbert.data.wordpiece import SPECIAL_TOKENS, train_wordpiece
from fastbert.utils.errors import DataError, InputError

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pretrain"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared text is not beside the repository")

ENGLISH = [
    "The café near the old bridge opens early.",
    "Nobody opens the bridge, nobody closes it!",
    "An early café: 中文 words.",
]
KOREAN = ["한국어 문장을 나누어 봅니다.", "옛날 어느 산 밑에 늙은이 내외가 살고 있었습니다.", "값을 읽고 닭을 잃었다."]


@pytest.fixture
def english(tmp_path) -> str:
    file = tmp_path / "english.txt"
    file.write_text("\n\n".join("\n".join(ENGLISH) for _ in range(4)), encoding="utf-8")
    return str(file)


@pytest.fixture
def korean(tmp_path) -> str:
    file = tmp_path / "korean.txt"
    file.write_text("\n\n".join("\n".join(KOREAN) for _ in range(4)), encoding="utf-8")
    return str(file)


def load(folder):
    """By every class a user may name; all must be the same."""
    loaded = [
        cls.from_pretrained(folder)
        for cls in (transformers.AutoTokenizer, transformers.BertTokenizerFast, transformers.BertTokenizer)
    ]
    for other in loaded[1:]:
        assert other.get_vocab() == loaded[0].get_vocab()
        assert json.loads(other.backend_tokenizer.to_str()) == json.loads(loaded[0].backend_tokenizer.to_str())
    assert loaded[0].model_max_length == 512
    assert loaded[0].convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    vocabulary = loaded[0].get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    return loaded[0]


def test_uncased_lowers_strips_accents_and_splits_chinese(english, tmp_path):
    found = train_wordpiece([english], tmp_path / "out", vocab_size=120)
    tokenizer = load(tmp_path / "out")
    assert len(tokenizer) == found["vocab_size"] <= 120
    assert found["strip_accents"]
    assert (found["documents"], found["sentences"]) == (4, 12)
    assert tokenizer.tokenize("CAFÉ Café cafe") == tokenizer.tokenize("cafe") * 3
    assert tokenizer.tokenize("中文") == ["中", "文"]
    assert tokenizer.tokenize("nobody!")[-1] == "!"
    assert not [token for token in tokenizer.get_vocab() if token in ("##中", "##!", "É", "é")]
    ids = tokenizer("The bridge", "opens early")["input_ids"]
    assert ids[0] == 2
    assert ids[-1] == 3
    assert ids.count(3) == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the bridge opens early"


def test_cased_keeps_capitals_and_accents(english, tmp_path):
    found = train_wordpiece([english], tmp_path / "out", vocab_size=120, cased=True)
    tokenizer = load(tmp_path / "out")
    assert not found["strip_accents"]
    assert "".join(tokenizer.tokenize("The café")).replace("##", "") == "Thecafé"


def test_korean_keeps_its_syllables(korean, tmp_path):
    """Stripping accents by Unicode's decomposition would leave ᄒ ᅡ ᆫ of 한."""
    found = train_wordpiece([korean], tmp_path / "out", vocab_size=200)
    tokenizer = load(tmp_path / "out")
    assert not found["strip_accents"]
    for sentence in KOREAN:
        tokens = tokenizer.tokenize(sentence)
        assert "[UNK]" not in tokens
        assert "".join(tokens).replace("##", "") == sentence.replace(" ", "")
    assert not any("\u1100" <= letter <= "\u11ff" for token in tokenizer.get_vocab() for letter in token)


def test_accents_can_be_kept_or_stripped_on_request(english, korean, tmp_path):
    train_wordpiece([english], tmp_path / "kept", vocab_size=130, strip_accents=False)
    assert "".join(load(tmp_path / "kept").tokenize("CAFÉ")).replace("##", "") == "café"
    train_wordpiece([korean], tmp_path / "stripped", vocab_size=200, strip_accents=True)
    assert "\u1112" in load(tmp_path / "stripped").get_vocab()


def test_one_input_gives_one_vocabulary(english, korean, tmp_path):
    """In two processes: the seeds of hash maps differ between them."""
    code = (
        "import sys; from fastbert.data.wordpiece import train_wordpiece; "
        "train_wordpiece(sys.argv[2:], sys.argv[1], vocab_size=250, min_frequency=1)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there"), english, korean],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    train_wordpiece([english, korean], tmp_path / "here", vocab_size=250, min_frequency=1)
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("here", "there")]
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"tokenizer.json", "tokenizer_config.json"}


def test_rare_characters_become_unknown(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("some words here\n" * 500 + "q\n")
    found = train_wordpiece([str(file)], tmp_path / "out", vocab_size=60, character_coverage=1)
    assert found["characters_left_out"] == 1  # it occurs once, and a merge asks for two
    tokenizer = load(tmp_path / "out")
    assert tokenizer.tokenize("q some") == ["[UNK]", "some"]
    train_wordpiece([str(file)], tmp_path / "all", vocab_size=60, character_coverage=1, min_frequency=1)
    assert load(tmp_path / "all").tokenize("q") == ["q"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 5}, "more than the 5 special tokens, got 5"),
        ({"vocab_size": 30}, r"at least \d+ for this text \(5 special tokens, \d+ characters, .*got 30"),
        ({"min_frequency": 0}, "1 or more, got 0"),
        ({"character_coverage": 0}, "above 0"),
        ({"cased": True, "strip_accents": True}, "both cased and strip_accents"),
    ],
)
def test_rejects_bad_options(english, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        train_wordpiece([english], tmp_path / "out", **{"vocab_size": 120, **changes})
    assert not (tmp_path / "out").exists()


def test_the_least_size_that_the_error_names_is_enough(english, tmp_path):
    with pytest.raises(DataError) as caught:
        train_wordpiece([english], tmp_path / "out", vocab_size=6)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    assert train_wordpiece([english], tmp_path / "out", vocab_size=least)["vocab_size"] == least


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "an empty file"), (b"\n \n", "nothing but blanks"), (b"a\xff", "byte 0xff")]
)
def test_rejects_text_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    done = CliRunner().invoke(app, ["tokenizer", str(tmp_path / "a.txt"), "--vocab-size", "90", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_never_writes_over_a_folder(english, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="new or empty folder"):
            train_wordpiece([english], tmp_path / "out", vocab_size=120, overwrite=overwrite)
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_a_tokenizer_is_replaced_on_request_only(english, tmp_path):
    out = tmp_path / "out"
    train_wordpiece([english], out, vocab_size=120)
    before = (out / "tokenizer.json").read_bytes()
    with pytest.raises(
        InputError, match=r"expected a new output, --overwrite, which starts over, got .*out, which is finished"
    ):
        train_wordpiece([english], out, vocab_size=120, cased=True)
    assert (out / "tokenizer.json").read_bytes() == before
    train_wordpiece([english], out, vocab_size=120, cased=True, overwrite=True)
    assert (out / "tokenizer.json").read_bytes() != before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["english.txt", "out"]


def test_a_full_disk_leaves_nothing(english, tmp_path, monkeypatch):
    def full(self, folder, *args, **kwargs):
        Path(folder).mkdir()
        (Path(folder) / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.BertTokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        train_wordpiece([english], tmp_path / "out", vocab_size=120)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["english.txt"]


def test_the_command(english, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["tokenizer", english, "--vocab-size", "120", "--out", str(out), "--cased"])
    assert done.exit_code == 0, done.output
    assert "from 4 documents, 12 sentences" in done.output
    assert "cased, accents kept" in done.output
    assert "The" in "".join(load(out).get_vocab())


@needs_data
def test_real_korean_round_trip(tmp_path):
    names = [str(DATA / name) for name in ("ko_fairy_tales.txt", "ko_wikinews.txt")]
    train_wordpiece(names, tmp_path / "out", vocab_size=6000)
    tokenizer = load(tmp_path / "out")
    text = (DATA / "ko_fairy_tales.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line]
    unknown = total = 0
    for line, encoding in zip(lines, tokenizer(lines, add_special_tokens=False)["input_ids"]):
        unknown += encoding.count(tokenizer.unk_token_id)
        total += len(encoding)
        if tokenizer.unk_token_id not in encoding:
            joined = "".join(tokenizer.convert_ids_to_tokens(encoding)).replace("##", "")
            assert joined == "".join(line.lower().split())
    assert unknown / total < 0.002
    assert all(tokenizer.tokenize(syllable) == [syllable] for syllable in "가나다라마바사아자차카타파하한국말은는이을를값닭")


@needs_data
def test_real_english_words_are_whole(tmp_path):
    train_wordpiece([str(DATA / "en_books_heldout.txt")], tmp_path / "out", vocab_size=4000)
    tokenizer = load(tmp_path / "out")
    assert len(tokenizer) == 4000
    assert tokenizer.tokenize("The captain said nothing.") == ["the", "captain", "said", "nothing", "."]
