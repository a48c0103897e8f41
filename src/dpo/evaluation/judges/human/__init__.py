"""People as judges: blind sheets, their page, and the ratings that come back."""
