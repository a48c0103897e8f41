"""Judges of answers: `interface` says what one is, `table` names them, `ask` gets verdicts through the cache."""
