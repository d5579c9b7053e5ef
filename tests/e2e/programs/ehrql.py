"""What runs in the tests' image `ehrql`: like the real one, it runs the study's own definition of its data."""

import runpy
import sys

_, _verb, definition, *rest = sys.argv
sys.argv = [definition, *rest]
runpy.run_path(definition, run_name="__main__")
