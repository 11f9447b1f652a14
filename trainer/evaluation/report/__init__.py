"""The report of a run: RUN/report.html, RUN/confusion_matrix.png and RUN/MODEL_CARD.md."""
