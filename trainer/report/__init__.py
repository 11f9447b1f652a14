"""RUN/report.html and RUN/MODEL_CARD.md: how good a model is, what it gets wrong and what to try, for people."""
