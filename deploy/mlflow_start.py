"""Start MLflow's server with accounts; arguments go on to `mlflow server`.

MLflow reads from a file where its accounts are. The file is written here, from the environment,
and nothing has a default:

    MLFLOW_ADMIN_PASSWORD            of the account `admin`, when the database is new
    MLFLOW_FLASK_SERVER_SECRET_KEY   signs sessions
    MLFLOW_BACKEND_STORE_URI         the database, which holds the accounts, too
    MLFLOW_ARTIFACTS_DESTINATION     where files go
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping

NEEDED = (
    "MLFLOW_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_ARTIFACTS_DESTINATION",
)
MIN_PASSWORD = 12

_ACCOUNTS = """\
[mlflow]
default_permission = READ
database_uri = {MLFLOW_BACKEND_STORE_URI}
admin_username = admin
admin_password = {MLFLOW_ADMIN_PASSWORD}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def problem(environ: Mapping[str, str]) -> str | None:
    """Say why it cannot start, if so."""
    missing = [name for name in NEEDED if not environ.get(name)]
    if missing:
        return f"set {', '.join(missing)}"
    if len(environ["MLFLOW_ADMIN_PASSWORD"]) < MIN_PASSWORD:
        return f"MLFLOW_ADMIN_PASSWORD has {MIN_PASSWORD} characters or more"
    if any(not environ[name].isprintable() for name in NEEDED):
        return f"{', '.join(NEEDED)}: a line break or another control character"
    return None


def main(arguments: list[str], environ: Mapping[str, str] = os.environ) -> int:
    """Become `mlflow server`; return only if that cannot be."""
    if reason := problem(environ):
        sys.stderr.write(f"mlflow_start: {reason}\n")
        return 2
    handle, path = tempfile.mkstemp(suffix=".ini")  # for this user alone
    doubled = {name: environ[name].replace("%", "%%") for name in NEEDED}  # % is the file's own
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(_ACCOUNTS.format(**doubled))
    passed = {name: value for name, value in environ.items() if name != "MLFLOW_ADMIN_PASSWORD"}
    command = ["mlflow", "server", "--app-name", "basic-auth", *arguments]
    os.execvpe(command[0], command, {**passed, "MLFLOW_AUTH_CONFIG_PATH": path})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
