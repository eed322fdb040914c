"""The snippets of docs/transformers.md and docs/curriculum.md run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import torch

import tpad
import tpad.publish
from serving import FIXTURES, REPOSITORY, import_checkpoint, program, wait_for
from test_transformers_tiers import tier_checkpoint
from tpad.transformers.families import FAMILIES

torch.set_num_threads(1)


def snippets(page: str) -> list[tuple[str, str]]:
    """A page's blocks of code, with what is said behind their fence."""
    text = (REPOSITORY / "docs" / page).read_text()
    return re.findall(r"^```(\S[^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to work in, with the programs on the path and a socket of one's own."""
    with tempfile.TemporaryDirectory(prefix="tpad-") as at:
        monkeypatch.chdir(at)
        monkeypatch.setenv("XDG_RUNTIME_DIR", at)
        monkeypatch.setenv("XDG_CACHE_HOME", f"{at}/cache")
        monkeypatch.setenv("PATH", f"{program('tpad').parent}:{os.environ['PATH']}")
        yield Path(at)


@contextmanager
def background(command: list[str]) -> Iterator[None]:
    """A program that runs meanwhile; ports are free ones, which a page need not say."""
    with open("background.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def answers() -> bool:
    """Whether the daemon at the default socket serves something."""
    try:
        with tpad.connect() as client:
            return all(model.revision for model in client.models())
    except tpad.TpadError:
        return False


def serve(stack: ExitStack, line: str) -> None:
    """`tpad serve ROOT` beside other daemons of this machine."""
    command = shlex.split(line)
    assert command[:2] == ["tpad", "serve"]
    ports = ["--grpc", "off", "--http", "off"]
    stack.enter_context(background([*command, *ports]))
    wait_for(answers, f"{line} answers")


def add_tokenizer(root: Path) -> None:
    """A tokenizer of 256 bytes, as one that came with the checkpoint."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(root)


def test_the_page_on_transformers_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    kinds = []
    with ExitStack() as stack:
        for kind, code in snippets("transformers.md"):
            kinds.append(kind)
            if kind == "python":
                exec(compile(code, "transformers.md", "exec"), scope)
                continue
            for line in code.splitlines():
                if kind == "sh background":
                    serve(stack, line)
                    continue
                if line.startswith("tpactl import"):
                    add_tokenizer(Path("mixtral"))
                subprocess.run(shlex.split(line), check=True, capture_output=True, timeout=120)
    assert kinds == ["sh", "sh background", *["python"] * 4]
    said = capsys.readouterr().out
    assert re.search(r"tensor\(\[\[ *1, +17, +42, ", said)
    assert "experts come as they are picked" in said
    assert re.search(r"\d+ bytes of its own, \d+ of 262144 in experts", said)


def test_the_page_on_the_curriculum_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = snippets("curriculum.md")
    (command,) = [code for kind, code in blocks if kind == "sh"]
    # test_curriculum.py runs it; here, that its options are there.
    _, script, at, *options = shlex.split(command)
    assert Path(at).is_absolute() and (REPOSITORY / script).is_file()
    usage = subprocess.run(
        ["python3", "-c", "import re,sys; print(open(sys.argv[1]).read())", REPOSITORY / script],
        capture_output=True,
        text=True,
        check=True,
    )
    for option in options:
        assert f'"{option}"' in usage.stdout
    (python,) = [code for kind, code in blocks if kind == "python"]
    import shutil

    shutil.copytree(FIXTURES["mixtral"], "demo")
    import_checkpoint(Path("demo"), "demo", place)
    tpad.publish.activate("demo")
    tier_checkpoint(Path("tier"), "code")
    with ExitStack() as stack:
        serve(stack, "tpad serve demo")
        exec(compile(python, "curriculum.md", "exec"), {})
    assert "['base'] until it is told: ['base', 'code']" in capsys.readouterr().out


def test_every_family_has_its_row() -> None:
    page = (REPOSITORY / "docs" / "transformers.md").read_text()
    table = page[page.index("| `model_type` |") : page.index("Another type is refused")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")][1:]
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == sorted(FAMILIES)
