"""States that are not recorded: how recordings come about from states, and the program that infers them."""
