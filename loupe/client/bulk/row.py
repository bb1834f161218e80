"""What is written of one picture: Row.of(found, answer), and as text and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loupe.client.result import Result
from loupe.errors import LoupeError, Problem

FIELDS = ("file", "label", "confidence", "certain", "reason", "version", "error")
_TRUTH = {"true": True, "false": False, "": None}


@dataclass(frozen=True)
class Row:
    file: str
    label: str = ""  # empty if there is an error
    confidence: float | None = None
    certain: bool | None = None
    reason: str = ""
    version: int | None = None
    error: str = ""
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, file: str, answer: Result | LoupeError) -> Row:
        if isinstance(answer, LoupeError):
            code = f"{answer.code}: " if isinstance(answer, Problem) else ""
            return cls(file, error=code + str(answer))
        return cls(
            file,
            answer.label,
            answer.confidence,
            answer.certain,
            answer.reason or "",
            answer.version,
            scores=answer.scores,
        )

    def cells(self) -> list[str]:
        """Return the fields as texts, in the order of FIELDS."""
        confidence = "" if self.confidence is None else f"{self.confidence:.6f}"
        certain = "" if self.certain is None else str(self.certain).lower()
        version = "" if self.version is None else str(self.version)
        return [self.file, self.label, confidence, certain, self.reason, version, self.error]

    @classmethod
    def from_cells(cls, cells: list[str]) -> Row:
        """Return the row that these texts stand for, without its scores. ValueError if they are none."""
        file, label, confidence, certain, reason, version, error = cells
        if certain not in _TRUTH:
            raise ValueError(f"{certain!r} is neither true nor false")
        return cls(
            file,
            label,
            float(confidence) if confidence else None,
            _TRUTH[certain],
            reason,
            int(version) if version else None,
            error,
        )

    def to_json(self) -> dict[str, Any]:
        if self.error:
            return {"file": self.file, "error": self.error}
        return {
            "file": self.file,
            "label": self.label,
            "confidence": self.confidence,
            "certain": self.certain,
            "reason": self.reason or None,
            "scores": self.scores,
            "version": self.version,
        }
