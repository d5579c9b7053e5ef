"""The study's definition of its data: writes a canary that nobody but its secret environment tells it."""

import os
import sys
import urllib.parse
from pathlib import Path

seed = urllib.parse.urlsplit(os.environ["DATABASE_URL"]).password
output = Path(sys.argv[sys.argv.index("--output") + 1])
output.parent.mkdir(exist_ok=True)
output.write_text(f"patient_id,name\n1,canary-{seed}-data\n")
