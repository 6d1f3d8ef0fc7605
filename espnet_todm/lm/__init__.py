"""Language models beside the acoustic one: n-grams, their text, lexicons and spelling."""
