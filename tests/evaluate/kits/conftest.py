"""Small models of all systems as folders, for the evaluation kits."""

from __future__ import annotations

import pytest

from mae_ast.hub.load import hub_class
from tests.core.vits import with_random_weights
from tests.systems.cases import CASES, system_of

SYSTEMS = {
    **{"mae_ast patch": "mae_ast: patches", "mae_ast frame": "mae_ast: frames"},
    **{"ssast patch": "ssast: patches", "ssast frame": "ssast: frames"},
    **{"ast": "ast: two", "audio_mae": "audio_mae: fixed length"},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the models, by the names of ``SYSTEMS``."""
    root = tmp_path_factory.mktemp("models")
    for name, case in SYSTEMS.items():
        model = hub_class(system_of(CASES[case]))(CASES[case].config())
        with_random_weights(model).save_pretrained(root / name)
    return {name: str(root / name) for name in SYSTEMS}


@pytest.fixture(params=SYSTEMS)
def folder(request: pytest.FixtureRequest, folders: dict[str, str]) -> str:
    """Folder of a model of each system."""
    return folders[request.param]


@pytest.fixture(autouse=True)
def _no_choice_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAE_AST_MODEL", "MAE_AST_LAYERS"):
        monkeypatch.delenv(name, raising=False)
