import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `class_path: small...`, here and in the processes of a run
