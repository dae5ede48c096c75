"""Generates a client from the OpenAPI document with openapi-python-client, and uses it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = os.environ.get("ROOMCAST_OPENAPI", HERE / "../../../openapi/openapi.json")
GENERATION_SECONDS = 120

# A folder for each run, since runs may overlap. A failed run leaves it behind for inspection.
folder = Path(tempfile.mkdtemp(prefix="generated-", dir=HERE))

generator = [sys.executable, "-m", "openapi_python_client", "generate"]
options = ["--path", DOCUMENT, "--output-path", folder / "client", "--config", HERE / "generator.yaml", "--meta", "none"]
# The generator warns that it leaves out text bodies beside JSON ones. It does not support them.
subprocess.run(generator + options, check=True, timeout=GENERATION_SECONDS)
print("ok - a client can be generated from the document", flush=True)

# The module `client` exists only from here on.
sys.path[:0] = [str(folder), str(HERE)]
import use_client  # noqa: E402

use_client.run(os.environ["ROOMCAST_URL"])
shutil.rmtree(folder)
