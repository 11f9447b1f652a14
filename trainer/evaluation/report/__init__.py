"""RUN/report.html and RUN/MODEL_CARD.md."""
