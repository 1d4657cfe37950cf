"""How the features write amounts."""


def dollars(amount: int) -> str:
    """Whole dollars: $12,345."""
    return f"${amount:,}"


def count(amount: int, one: str, many: str | None = None) -> str:
    """A number with its noun: 1 client, 1,200 clients."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def figure(value: float) -> str:
    """A number of any kind, with up to six decimals: 1,234,567 or 0.25."""
    return f"{value:,.6f}".rstrip("0").rstrip(".")


def half_up(numerator: int, denominator: int) -> int:
    """The quotient of two whole numbers, not negative, to the nearest whole, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)
