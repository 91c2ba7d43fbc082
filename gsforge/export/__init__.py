"""Results that leave gsforge: .ply files and, later, other interchange formats."""
