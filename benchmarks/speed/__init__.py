"""Speed of what gsforge computes itself, against others that compute the same, measured side by side."""
