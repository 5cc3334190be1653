"""`poe feature`: writes a feature in the style of the example, from the names of its fields."""
