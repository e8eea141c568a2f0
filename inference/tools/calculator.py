"""A calculator for whole numbers."""

from __future__ import annotations

import re

LONGEST = 64  # characters of an expression
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
    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise ValueError("too long")
        self._tokens: list[str] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError("not arithmetic")
            self._tokens.append(match.group(1))
            at = match.end()

    def value(self) -> int:
        result = self._sum()
        if self._tokens:
            raise ValueError("something is left over")
        return result

    def _next(self, *wanted: str) -> str | None:
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in wanted else None

    def _sum(self) -> int:
        result = self._product()
        while sign := self._next("+", "-"):
            term = self._product()
            result = result + term if sign == "+" else result - term
        return result

    def _product(self) -> int:
        result = self._factor()
        while self._next("*"):
            result *= self._factor()
        return result

    def _factor(self) -> int:
        if self._next("-"):
            return -self._factor()
        if self._next("("):
            result = self._sum()
            if not self._next(")"):
                raise ValueError("unclosed")
            return result
        if not self._tokens or not self._tokens[0].isdigit():
            raise ValueError("no number")
        return int(self._tokens.pop(0))
