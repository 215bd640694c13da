"""The tabulator key, asked of the shells themselves where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from medbench.cli import cli

# Each prints what is offered for the words of $ASKED, one a line.
SCRIPTS = {
    "bash": """
        eval "$(_MEDBENCH_COMPLETE=bash_source medbench)"
        complete -p medbench >/dev/null || exit 7
        COMP_WORDS=($ASKED); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _medbench_completion medbench
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "fish": """
        _MEDBENCH_COMPLETE=fish_source medbench | source
        complete -C "$ASKED" | string replace -r '\\t.*' '' || true
    """,
    # zsh completes at a prompt alone; what its completion would offer there is printed instead.
    "zsh": r"""
        autoload -Uz compinit && compinit -u -d "$HOME/dump"
        eval "$(_MEDBENCH_COMPLETE=zsh_source medbench)"
        (( $+_comps[medbench] )) || exit 7
        compadd() { print -l -- "${(@P)@[-1]}" }
        _describe() { local -a all; all=("${(@P)3}"); print -l -- "${(@)all%%:*}" }
        words=(${=ASKED}); CURRENT=${#words}
        _medbench_completion
    """,
}


@pytest.fixture
def ask(tmp_path: Path):
    """What a shell offers for the words so far, with medbench on its path."""
    program = tmp_path / "bin" / "medbench"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom medbench.cli import main\nmain()\n")
    program.chmod(0o755)

    def run(shell: str, words: str) -> set[str]:
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        settings = {
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "HOME": str(tmp_path),
            "ASKED": words,
            "MEDBENCH_PLUGINS": "",
        }
        quiet = {"bash": ["--norc"], "fish": ["--no-config"], "zsh": ["-f"]}[shell]
        done = subprocess.run(
            [shell, *quiet, "-c", SCRIPTS[shell]],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=os.environ | settings,
        )
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    return run


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shell_offers_commands_and_names(shell, ask):
    assert ask(shell, "medbench expl") == {"explain"}
    assert {"protonet", "protomaml"} <= ask(shell, "medbench check proto")


@pytest.mark.parametrize(
    ("words", "begun", "offered"),
    [
        ([], "expl", {"explain"}),
        (["board"], "", {"init", "add", "build", "check"}),
        (["gate"], "--thr", {"--thresholds"}),
        (["new"], "al", {"algorithm"}),
        (["new", "dataset", "acme/x", "--with"], "m", {"masks", "meta-train"}),
        (["check"], "nearest-n", {"nearest-neighbour"}),
        (["info"], "quick", {"quickstart"}),
        (["run"], "omni", {"omniglot", "omni"}),  # the last stands for files
    ],
)
def test_commands_options_and_names_complete(words, begun, offered):
    found = ShellComplete(cli, {}, "medbench", "_MEDBENCH_COMPLETE").get_completions(words, begun)
    assert {item.value for item in found} == offered
