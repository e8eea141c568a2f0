"""A text that several tests read."""

PROSE = (
    "The harbour was quiet that morning, and the boats lay close to the wall. Nobody spoke of the storm. "
    "We walked along the pier with our coats buttoned, and we counted the gulls that sat upon the rails. "
    "Later the baker opened his shop, and the smell of bread came over the square to us."
)
