"""Speed of what gsforge computes itself, against others that compute the same, measured side by side."""

import os

# Before torch is loaded: else its idle threads keep the cores busy, which the others of a process then lack.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
