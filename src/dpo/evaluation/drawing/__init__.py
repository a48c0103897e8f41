"""Where else than from the loaded model an evaluation's answers are drawn."""
