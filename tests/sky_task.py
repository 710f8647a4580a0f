"""SkyPilot's own class reads the book's task file, and the schema kept beside it is SkyPilot's: `nox -s skypilot`.

Runs in an environment with SkyPilot, whose versions do not go together with the book's; `--write` keeps it anew.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HOME"] = tempfile.mkdtemp()  # it keeps its state there
os.environ["IS_SKYPILOT_SERVER"] = "true"  # strict: what is unknown is refused

import sky
from sky.utils import schemas

FOLDER = Path(__file__).parents[1] / "recipes" / "cloud"
SCHEMA = FOLDER / "sky-task.schema.json"


def schema() -> dict:
    """SkyPilot's schema of a task, with that of resources put in its place; SkyPilot checks the two one by one."""
    task, resources = schemas.get_task_schema(), schemas.get_resources_schema()
    del resources["$schema"]
    task["properties"]["resources"] = resources
    return {"title": f"A task of SkyPilot {sky.__version__} (Apache-2.0)", **task}


def main() -> None:
    now = json.dumps(schema(), indent=1) + "\n"
    if "--write" in sys.argv:
        SCHEMA.write_text(now, encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == now, f"{SCHEMA.name}: SkyPilot's is another one; add --write"
    given = [(name, "given") for name in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    os.chdir(FOLDER.parents[1])
    task = sky.Task.from_yaml(str(FOLDER / "sky.yaml"))
    task.update_secrets(given)
    (resources,) = task.resources
    assert resources.use_spot and resources.accelerators == {"A10G": 1}, resources
    print(f"SkyPilot {sky.__version__} reads {FOLDER.name}/sky.yaml: {task.name}, {resources}")


main()
