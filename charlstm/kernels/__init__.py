"""Fast forms of the equations in `cells`, in C where a compiler was found at install, each beside its parity test."""
