"""Examples: read (`sources`), held (`examples`), cleaned (`hygiene`), counted (`ngrams`), and exchanged with others."""
