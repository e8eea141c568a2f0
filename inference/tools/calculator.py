"""The tool `calculator`: sums, differences and products of whole numbers."""

from __future__ import annotations

import re

LONGEST = 64  # characters of an expression: bounds the recursion, and with it the time that a call takes
# ASCII digits only, since `int` reads other scripts as well. More than 18 digits fall into two tokens: an error.
_TOKEN = re.compile(r"\s*([0-9]{1,18}|[-+*()])")


class Calculator:
    """Evaluates + - * and parentheses by a parser of its own: nothing that the model writes is executed."""

    name = "calculator"
    description = "Computes an expression of whole numbers with +, -, * and parentheses."

    def run(self, argument: str) -> str:
        """The value of the expression; `error` for anything else."""
        try:
            return str(_Parser(argument).value())
        except (ValueError, RecursionError):
            return "error"


TOOL = Calculator()


class _Parser:
    """Recursive descent: sum = product {(+|-) product}, product = factor {* factor}, factor = -factor | (sum) | number.

    Messages of its `ValueError`s are for whoever debugs; the model reads only `error`.
    """

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise ValueError(f"longer than {LONGEST} characters")
        self._tokens: list[str] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise ValueError("neither a number nor an operator")
            self._tokens.append(match.group(1))
            position = match.end()

    def value(self) -> int:
        result = self._sum()
        if self._tokens:
            raise ValueError("text after the expression")
        return result

    def _accept(self, *wanted: str) -> str | None:
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in wanted else None

    def _sum(self) -> int:
        result = self._product()
        while sign := self._accept("+", "-"):
            term = self._product()
            result = result + term if sign == "+" else result - term
        return result

    def _product(self) -> int:
        result = self._factor()
        while self._accept("*"):
            result *= self._factor()
        return result

    def _factor(self) -> int:
        if self._accept("-"):
            return -self._factor()
        if self._accept("("):
            result = self._sum()
            if not self._accept(")"):
                raise ValueError("unclosed parenthesis")
            return result
        if not self._tokens or not self._tokens[0].isdigit():
            raise ValueError("a number is missing")
        return int(self._tokens.pop(0))
