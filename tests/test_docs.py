"""Every example in the documents runs, parses or exists."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import yaml

from restorekit.cli import app
from restorekit.config import PipelineSpec

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)


@every_document
def test_python_examples_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "noisy.png", tmp_path / "examples")
    namespace = {"__name__": document.stem}
    for block in blocks(document, "python"):
        exec(compile(block, document.name, "exec"), namespace)


@every_document
def test_yaml_examples_are_pipelines(document):
    for block in blocks(document, "yaml"):
        PipelineSpec.parse(yaml.safe_load(block), document.name)


@every_document
def test_commands_and_options_in_examples_exist(document):
    commands = typer.main.get_command(app).commands
    lines = [line.partition("#")[0] for block in blocks(document, "bash") for line in block.splitlines()]
    for words in (shlex.split(line) for line in lines if "restorekit " in line and "pip" not in line):
        assert Path(words[0]).name == "restorekit"
        command, rest = commands[words[1]], words[2:]
        if hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if re.match(r"-+[a-z]", word)} <= known, words


@every_document
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_readme_quotes_the_figures_of_the_bundled_weights():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    card = (ROOT / "plugins/zoo/restorekit_zoo/files/nafnet-denoise.md").read_text(encoding="utf-8")
    table = r"<!-- figures: begin -->\n(.+)\n<!-- figures: end -->"
    assert re.search(table, readme, re.S)[1] == re.search(table, card, re.S)[1]
