import pytest
from command_line import CommandLine


@pytest.fixture
def cutaway(capsys, tmp_path, monkeypatch) -> CommandLine:
    """Command lines, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return CommandLine(capsys)
