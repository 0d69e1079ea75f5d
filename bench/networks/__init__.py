"""Small networks of other libraries, trained with those libraries' own code, and closed forms."""
