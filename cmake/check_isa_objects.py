"""Fails when an object built with its own -m flags holds a weak symbol.

The linker may keep that copy of an inline function for the whole extension, and it would trap on older CPUs.
Usage: check_isa_objects.py NM OBJECT...
"""

import subprocess
import sys

nm, *objects = sys.argv[1:]
bad = []
for path in objects:
    listing = subprocess.run([nm, "-C", path], capture_output=True, text=True, check=True).stdout
    bad += [f"{path}: {line}" for line in listing.splitlines() if line[17:18] in {"W", "V", "u"}]
print("\n".join(bad) or f"no weak symbols in {len(objects)} objects")
sys.exit(bool(bad) or not objects)
