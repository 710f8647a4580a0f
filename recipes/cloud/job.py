"""Go on with the run that the bucket has, or begin it; each checkpoint goes to the bucket while training goes on."""

import os
import sys
from pathlib import Path

from ftdocs import cli, processes, storage
from ftdocs.errors import InputError

run, url, (recipe, *settings) = Path("runs/job"), os.environ.get("BUCKET"), sys.argv[1:] or [""]
if not (url and recipe):
    print(
        "job.py: set BUCKET, such as s3://my-bucket/my-run, and give a recipe: job.py RECIPE", file=sys.stderr
    )
    sys.exit(2)
if not processes.is_main():  # of several that train one model, by torchrun, one speaks to the bucket
    sys.exit(cli.main(["train", recipe, "--output", str(run), "--resume", *settings]))
try:
    storage.pull(url, run)
    with storage.kept(run, url):
        code = cli.main(["train", recipe, "--output", str(run), "--resume", *settings])
except InputError as error:
    print(f"ftdocs: {error}", file=sys.stderr)
    sys.exit(2)
sys.exit(code)
