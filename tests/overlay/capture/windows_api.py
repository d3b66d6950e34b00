"""The part of windows-capture and dxcam that we use, read from their sources.

`windows_api.json` beside this file is that part as it was when the back ends were written; run
this file to read it anew from installed or unpacked packages:

    python tests/overlay/capture/windows_api.py FOLDER > tests/overlay/capture/windows_api.json

where FOLDER holds the unpacked wheels.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

FILES = {
    "windows_capture": ["windows_capture/__init__.py"],
    "dxcam": ["dxcam/__init__.py", "dxcam/dxcam.py", "dxcam/core/output.py"],
}


def public_api(folder: Path) -> dict[str, Any]:
    """Read versions, functions with their parameters, and attributes, without importing."""
    api: dict[str, Any] = {}
    for package, files in FILES.items():
        info = next(folder.glob(f"{package}-*.dist-info"))
        names: dict[str, list[str]] = {}
        for file in files:
            module = ast.parse((folder / file).read_text(encoding="utf-8"))
            for node in module.body:
                if isinstance(node, ast.FunctionDef):
                    names[node.name] = _parameters(node)
                elif isinstance(node, ast.ClassDef):
                    names |= _class_api(node)
        version = info.name.removeprefix(f"{package}-").removesuffix(".dist-info")
        api[package] = {"version": version, "names": names}
    return api


def _class_api(node: ast.ClassDef) -> dict[str, list[str]]:
    names = {}
    for member in node.body:
        if isinstance(member, ast.FunctionDef):
            names[f"{node.name}.{member.name}"] = _parameters(member)
        elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            names[f"{node.name}.{member.target.id}"] = []
    for assigned in ast.walk(node):
        if isinstance(assigned, ast.Assign | ast.AnnAssign):
            targets = assigned.targets if isinstance(assigned, ast.Assign) else [assigned.target]
            for target in targets:
                for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if (
                        isinstance(part, ast.Attribute)
                        and isinstance(part.value, ast.Name)
                        and part.value.id == "self"
                    ):
                        names.setdefault(f"{node.name}.{part.attr}", [])
    return names


def _parameters(node: ast.FunctionDef) -> list[str]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in named if argument.arg != "self"]


if __name__ == "__main__":
    found = public_api(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(found, indent=1, sort_keys=True) + "\n")
