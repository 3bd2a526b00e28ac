"""Tables, figures and the origin of a number: everything that is made of records."""


def label_of(name: str) -> str:
    """A variant's name as tables and figures write it: a letter, alone or with a digit, stands in parentheses."""
    return f"({name})" if len(name) <= 2 and name.islower() else name
