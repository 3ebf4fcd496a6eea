"""Texts to run a model on: a user's file, or sentences of uneven length written for this project.

Among the sentences are pairs that mean nearly the same.
"""

from pathlib import Path

from .errors import InputError

SENTENCES = (
    "Rain again.",
    "It has been raining since early morning, and the forecast promises more of the same until at least Thursday evening.",
    "The bakery on the corner sells out of rye bread before nine.",
    "If you want the dark loaf from the little bakery at the crossing, you had better be standing in the queue when they "
    "unlock the door, because by the time most people have finished breakfast there is nothing left but white rolls.",
    "My flight was cancelled.",
    "The airline wrote that our plane would not leave today and offered us seats for tomorrow instead.",
    "How do I reset my password?",
    "I can no longer log in to my account; where can I choose a new password?",
    "The orchestra tuned for a long time.",
    "Before the concert the violins and oboes searched for a common note while the audience slowly stopped talking.",
    "Water boils at a lower temperature on a mountain.",
    "Because air pressure falls with altitude, a kettle on a high pass begins to boil well below one hundred degrees, and "
    "beans have to be cooked for much longer than they would be by the sea.",
    "She repaired the old radio with a paper clip.",
    "With nothing but a bent piece of wire and some patience, my aunt got the broken wireless to play again.",
    "Our cat is afraid of the vacuum cleaner.",
    "Whenever someone turns on the hoover, the cat vanishes under the bed and stays there for the rest of the afternoon.",
    "The museum is closed on Mondays.",
    "You cannot visit the gallery at the start of the week.",
    "A good index makes a slow query fast.",
    "Adding the right index to the table cut the report from eleven minutes to less than a second, which is why nobody now "
    "remembers that it was ever a problem.",
    "Goal!",
    "In the last minute of extra time the substitute scored from a corner, and the whole stadium stood up.",
    "He learned to swim at sixty.",
    "Only after he had retired did my grandfather take his first swimming lesson, and within a year he crossed the lake.",
    "The train to the coast leaves from platform four.",
    "Passengers for the seaside should go to the fourth platform.",
    "Tomatoes need sun, water and something to climb.",
    "If the plants are tied to a stake, watered at the root and given a place in full light, they will bear fruit from July.",
    "The court dismissed the appeal.",
    "Having heard both sides, the judges found no error in the first ruling and let it stand, so that the company must now "
    "pay the damages in full, together with interest and the costs of all three proceedings.",
    "This soup is too salty.",
    "Whoever cooked the broth must have been in love: there is far more salt in it than anyone could want.",
    "Vaccines train the immune system.",
    "A harmless piece of a virus is enough for the body to learn what to attack when the real one arrives.",
    "The bridge will be closed for repairs.",
    "From next month until the autumn no cars may cross the river here, since the steel under the roadway has to be renewed.",
    "Yes.",
    "The parcel arrived with a dent in the box, but everything inside it was whole.",
    "Nobody had told the new translator that the author invents words, so she spent her first week looking them up in "
    "dictionaries, then in older dictionaries, then in letters to colleagues, before she wrote to the author himself and "
    "received a postcard with a single line: make up your own.",
    "Interest rates were left unchanged.",
)

MASKED = (
    "She opened the [MASK] and looked out into the garden.",
    "He had a wife and two [MASK].",
    "She shook her [MASK].",
    '"What do you [MASK]?" she asked.',
)


def read_texts(file: Path | None) -> list[str]:
    """The non-empty lines of a UTF-8 file, or the built-in sentences. Raises InputError for none, and for what is not text."""
    if file is None:
        return list(SENTENCES)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 in {file}, got byte 0x{error.object[error.start]:02x} at {error.start}") from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f"expected lines of text in {file}, got none")
    return lines
