"""Three texts of a town, each a passage, long enough to be found in a prompt that somebody else wrote."""

__all__ = ["TOWN"]

TOWN = {
    "bridge": "The suspension bridge of Ulvsund was opened in 1911 after four years of work. It spans 210 metres "
    "over the sound, and was built by the engineer Greta Holm. Its steel came from the mills of Karsby.",
    "museum": "The maritime museum of Ulvsund keeps the ship models of Captain Roos. It is closed on Mondays, and "
    "entry is free for children. Its oldest model shows a whaler that sank in 1802.",
    "cheese": "The dairy of Ulvsund makes a hard cheese of goat milk, which ripens for nine months in a cave by the "
    "sea. It is sold under the name of Grimost, and won a medal in Bergen.",
}
