"""The checks of `gsforge doctor`: small functions, each of which looks at one thing and returns a `Finding`."""
