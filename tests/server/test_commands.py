"""The operator's commands where JupyterLab is: they know the hosts that its server knows."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_commands_have_the_hosts_of_the_users_own_configuration(tmp_path: Path) -> None:
    """Without --config and --hosts, a command asks the hosts that `jupyter_config.py` names, and no others."""
    (tmp_path / "jupyter_config.py").write_text("c.Distributed.remote_hosts = ['nowhere.invalid']\n")
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "JUPYTER_CONFIG_DIR": str(tmp_path),
        "EG_REMOTE_HOSTS": "elsewhere.invalid",
    }
    asked = subprocess.run(
        [sys.executable, "-m", "eg_distributed", "hosts", "--json"],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert [host["host"] for host in json.loads(asked.stdout)["hosts"]] == ["nowhere.invalid"]
    assert asked.returncode == 1
    assert "nowhere.invalid" in asked.stderr
