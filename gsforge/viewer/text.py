"""Numbers and names as people read them."""

import math

_ABBREVIATIONS = ("psnr", "ssim", "lpips", "iou", "miou", "mse", "rmse", "fid", "kid", "clip", "kl", "l1")


def metric_label(metric: str) -> str:
    """Write a metric's name for people.

    Args:
        metric: its name in the logs.

    Returns:
        Abbreviations in capitals, underscores as spaces.
    """
    return " ".join(word.upper() if word in _ABBREVIATIONS else word for word in metric.split("_"))


def number(value: float | None, unit: bool = False, sign: bool = False) -> str:
    """Write a number for people.

    Args:
        value: any number, or None.
        unit: whether large ones end in K, M or B.
        sign: whether positive ones begin with +.

    Returns:
        Four digits at most; a dash for None.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if unit:
        for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
            if abs(value) >= size:
                return f"{value / size:.3g} {letter}"
    plus = "+" if sign else ""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:{plus}.2e}".replace("-", "−")
    digits = 4 if abs(value) < 1 else 3 if abs(value) < 10 else 2
    return f"{value:{plus}.{digits}f}".replace("-", "−")
